"""Where a worker's time went: named stages, for a table and for a trace."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

# read: a window, by the reading thread. turn: for the shard before, which has the device. wait: the device, for a tile.
# device: the network and what it gives. hand over: the device's thread, for strips to be taken. write: strips into a part,
# by the writing thread. publish: reading a part back and giving it its name.
STAGES = ("read", "turn", "wait", "device", "hand over", "write", "publish")


class Span(NamedTuple):
    """One stretch of a stage: when it began, in seconds since 1970, how long it took, and the thread it was on."""

    stage: str
    began: float
    seconds: float
    thread: int


class Stages:
    """Collects the spans of one shard, from any thread."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began, at = time.perf_counter(), time.time()
        try:
            yield
        finally:
            self.spans.append(Span(stage, at, time.perf_counter() - began, threading.get_ident()))


def totals(spans: Iterable[Span]) -> dict[str, float]:
    """Seconds of each stage."""
    sums = dict.fromkeys(STAGES, 0.0)
    for span in spans:
        sums[span.stage] += span.seconds
    return {stage: round(seconds, 4) for stage, seconds in sums.items()}


def events(worker: str, spans: Iterable[Span]) -> Iterator[dict[str, Any]]:
    """The spans of a worker, which is `host pid ...`, as events of a Chrome trace; times in microseconds."""
    pid = int(worker.split()[1])
    yield {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": worker}}
    for span in spans:
        times = {"ts": round(span.began * 1e6), "dur": round(span.seconds * 1e6)}
        yield {"ph": "X", "pid": pid, "tid": span.thread % 2**31, "name": span.stage, **times}
