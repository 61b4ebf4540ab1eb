"""Processes of this machine: who started whom, which are still there, and how they are ended, by their numbers alone."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

POLL_S = 0.1


class Process(NamedTuple):
    """A process that was seen: its number, and when it began, in clock ticks after the boot, which a later one of that number did not."""

    pid: int
    began: int


def seen(pid: int) -> Process | None:
    """The process that has this number now; None where it has ended."""
    state, _, began = _stat(pid)
    return None if state in "ZX" else Process(pid, began)


def alive(pids: Sequence[int]) -> list[int]:
    """Those processes that have not ended."""
    return [pid for pid in pids if seen(pid)]


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    parents = {int(folder.name): _stat(int(folder.name))[1] for folder in Path("/proc").iterdir() if folder.name.isdigit()}
    found, known = [], {pid}
    while new := [child for child, parent in parents.items() if parent in known and child not in known]:
        known |= set(new)
        found += new
    return found


def _stat(pid: int) -> tuple[str, int, int]:
    """State, parent, and beginning; X, for dead, where there is no such process."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return words[0], int(words[1]), int(words[19])
    except (OSError, IndexError):
        return "X", 0, 0


def end(processes: Sequence[Process], patience_s: float) -> None:
    """End these and all that they started, after `patience_s` by force; who has one of their numbers by now is left alone."""
    first = [process for process in processes if seen(process.pid) == process]
    others = [process for one in first for pid in descendants(one.pid) if (process := seen(pid))]
    until = time.monotonic() + patience_s
    _signal(first, signal.SIGTERM)
    while time.monotonic() < until and any(seen(process.pid) == process for process in first):
        time.sleep(POLL_S)
    _signal([*first, *others], signal.SIGKILL)


def _signal(processes: Sequence[Process], number: signal.Signals) -> None:
    for process in processes:
        if seen(process.pid) == process:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)


def free_port() -> int:
    """A port of the loopback interface that nobody has."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0
