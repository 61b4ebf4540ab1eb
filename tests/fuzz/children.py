"""Run cases in children that may crash, hang or eat memory: each is told, and the next child goes on with the case after it."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

LIMIT_BYTES = 16 * 2**30  # of addresses, of which torch's libraries alone take some; what is really used is told


class Case(NamedTuple):
    """What became of one: `outcome` is what the work said, or hang, crash or traceback. `used_mib` is its process's peak so far."""

    name: str
    outcome: str
    said: str
    seconds: float
    used_mib: int


def run_cases(names: Sequence[str], work: Callable[[str], tuple[str, str]], *, timeout_s: float, each: int) -> Iterator[Case]:
    """The outcome of `work` for each name, in order; at most `each` share a child, and one that takes longer than `timeout_s` is ended."""
    done = 0
    while done < len(names):
        batch = names[done : done + each]
        finished = list(_in_child(batch, work, timeout_s))
        yield from finished
        done += len(finished)


def _in_child(names: Sequence[str], work: Callable[[str], tuple[str, str]], timeout_s: float) -> Iterator[Case]:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _work_through(names, work, writing)
    os.close(writing)
    began, waiting = time.monotonic(), b""
    told = 0
    with open(reading, "rb", buffering=0) as told_by:
        while told < len(names):
            if not select.select([told_by], [], [], timeout_s)[0]:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                yield Case(names[told], "hang", f"took longer than {timeout_s:g} s", time.monotonic() - began, 0)
                return
            waiting += (news := told_by.read(65536))
            if not news:
                _, status = os.waitpid(child, 0)
                yield Case(names[told], "crash", f"ended with {os.waitstatus_to_exitcode(status)}", time.monotonic() - began, 0)
                return
            *lines, waiting = waiting.split(b"\n")
            for line in lines:
                yield Case(names[told], *json.loads(line))
                told, began = told + 1, time.monotonic()
    os.waitpid(child, 0)


def _work_through(names: Sequence[str], work: Callable[[str], tuple[str, str]], writing: int) -> None:
    """What the child does; it never returns."""
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # GDAL and libtiff say much
    for name in names:
        began = time.monotonic()
        try:
            outcome, said = work(name)
        except BaseException as error:
            outcome, said = "traceback", f"{type(error).__name__}: {error}"[:300]
        used_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        line = json.dumps([outcome, said, round(time.monotonic() - began, 3), used_mib])
        os.write(writing, line.encode() + b"\n")
    os._exit(0)


def resident_mib() -> int:
    """What this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20
