"""What goes wrong in the processes of a run: Python imports this first where this folder is on PYTHONPATH.

The file that FAULTS names holds {"where": {"what": how}}, and is read each time, so that a test may change its mind:
`where` is the name of a shard, `every shard`, `publish`, `deadlines` or `clock`. What happens before a shard or publication is begun:

    sleep   so many seconds
    die     SIGKILL of the process
    hang    for ever
    stop    SIGSTOP of the process, so that it answers nothing at all
    grow    by so many MiB, which are used, and wait until something ends it
    raise   OSError with this errno

`times` limits how often, over all processes: each time leaves a line in the file `where` beside FAULTS.
`deadlines` are attributes of cluster.deadlines; `clock` is by how many seconds the wall clock jumps to and fro.
"""

from __future__ import annotations

import errno
import fcntl
import importlib.abc
import importlib.util
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

FILE = os.environ.get("FAULTS")


def faults() -> dict[str, Any]:
    return json.loads(Path(FILE).read_text()) if FILE and Path(FILE).exists() else {}


def happens(where: str) -> None:
    """Do what is asked for at this place, if it has not happened often enough."""
    how = faults().get(where)
    if how is None or ("times" in how and not counted(where, how["times"])):
        return
    time.sleep(how.get("sleep", 0))
    if "raise" in how:
        raise OSError(getattr(errno, how["raise"]), os.strerror(getattr(errno, how["raise"])))
    if "grow" in how:
        held = [os.urandom(2**20) for _ in range(how["grow"])]
        time.sleep(60 * len(held))
    for name, sent in (("die", signal.SIGKILL), ("stop", signal.SIGSTOP)):
        if name in how:
            os.kill(os.getpid(), sent)
    if "hang" in how:
        time.sleep(100_000)


def counted(where: str, times: int) -> bool:
    with Path(FILE).with_name(where).open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        if len(file.readlines()) >= times:
            return False
        file.write(f"{os.getpid()}\n")
    return True


def break_segment(module: Any) -> None:
    honest = module.Segmenter.write_part

    def write_part(self: Any, plan: Any, shard: Any, *others: Any) -> Any:
        for where in ("every shard", plan.shard_name(shard)):
            happens(where)
        return honest(self, plan, shard, *others)

    module.Segmenter.write_part = write_part


def break_publish(module: Any) -> None:
    honest = module.publish_scene

    def publish_scene(*arguments: Any, **named: Any) -> Any:
        happens("publish")
        return honest(*arguments, **named)

    module.publish_scene = publish_scene


def break_deadlines(module: Any) -> None:
    for name, value in faults().get("deadlines", {}).items():
        setattr(module, name, value)


def break_clock(module: Any) -> None:
    """The project's own modules see a wall clock that jumps each time they look at it; Ray's see the true one."""
    jumps = itertools.cycle((-1, 1, 0))
    honest = time.time

    def jumping() -> float:
        of = sys._getframe(1).f_globals.get("__name__", "")
        return honest() + (next(jumps) * faults().get("clock", 0) if of.startswith(("pipeline", "cluster")) else 0)

    time.time = jumping
    if hasattr(module, "datetime"):
        true = module.datetime

        class Jumping(true):
            @classmethod
            def now(cls, zone: Any = None) -> Any:
                return true.fromtimestamp(honest() + next(jumps) * faults().get("clock", 0), zone)

        module.datetime = Jumping


BREAKERS = {
    "pipeline.inference.segment": break_segment,
    "pipeline.results.publish": break_publish,
    "cluster.deadlines": break_deadlines,
    "pipeline.inference.stages": break_clock,
    "cluster.record": break_clock,
}


class AfterImport(importlib.abc.MetaPathFinder):
    """Breaks a module once it was imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in BREAKERS:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                BREAKERS[name](module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if FILE:
    sys.meta_path.insert(0, AfterImport())
