"""A crew of pretended actors for `dispatch`: in this process, answering after the seconds, and with the failures, that a test says."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.dispatch import Lost

NEVER = float("inf")
Behaviour = Callable[["Pretended", str, tuple[Any, ...]], tuple[float, Any]]


@dataclass(eq=False)
class Call:
    """A call that is answered at a time, with a result or an error."""

    actor: Pretended
    due: float
    answer: Any


@dataclass(eq=False)
class Pretended:
    """An actor's handle. It does one call after another; `ready` takes `start_s`."""

    number: int
    crew: Crew
    busy_until: float = 0.0
    calls: set[Call] = field(default_factory=set)
    asked: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)

    def __getattr__(self, method: str) -> Method:
        return Method(self, method)


@dataclass
class Method:
    """A method of an actor, as Ray's handles have them."""

    actor: Pretended
    name: str

    def remote(self, *arguments: Any) -> Call:
        return self.actor.crew.ask(self.actor, self.name, arguments)


class Crew:
    """`behave` says of an actor, a method and its arguments how long the answer takes and what it is (an exception is raised)."""

    def __init__(self, behave: Behaviour, room: Callable[[], int], start_s: float = 0.0):
        self.behave, self.room, self.start_s = behave, room, start_s
        self.hired: list[Pretended] = []
        self.ended: list[tuple[Pretended, bool]] = []
        self._due: list[tuple[float, int, Call]] = []
        self._order = itertools.count()

    def ask(self, actor: Pretended, method: str, arguments: tuple[Any, ...]) -> Call:
        now = time.monotonic()
        if method == "ready":
            seconds, answer = self.start_s, None
        else:
            actor.asked.append((method, arguments))
            seconds, answer = self.behave(actor, method, arguments)
        actor.busy_until = max(now, actor.busy_until) + seconds
        call = Call(actor, actor.busy_until, answer)
        actor.calls.add(call)
        heapq.heappush(self._due, (call.due, next(self._order), call))
        return call

    def share(self, value: Any) -> Any:
        return value

    def hire(self, tasks: int, seconds: float) -> list[Pretended]:
        there = len(self.hired) - sum(not again for _, again in self.ended)
        new = [Pretended(len(self.hired) + number, self) for number in range(min(tasks, self.room() - there))]
        self.hired += new
        return new

    def wait(self, calls: Sequence[Call], seconds: float) -> list[Call]:
        until, asked = time.monotonic() + seconds, set(calls)
        while True:
            finished = []
            while self._due and self._due[0][0] <= time.monotonic():
                due, _, call = heapq.heappop(self._due)
                if due == call.due and call in asked:  # not one whose actor ended before
                    finished.append(call)
            if finished:
                return finished
            if (now := time.monotonic()) >= until:
                return []
            next_at = min(until, self._due[0][0]) if self._due else until
            time.sleep(max(0.0, next_at - now))

    def answer(self, call: Call) -> Any:
        call.actor.calls.discard(call)
        if isinstance(call.answer, Exception):
            if isinstance(call.answer, Lost):
                self._lose(call.actor)
            raise call.answer
        return call.answer

    def end(self, handle: Pretended, *, again: bool) -> None:
        self.ended.append((handle, again))
        self._lose(handle)

    def check(self) -> None:
        pass

    def missing(self) -> str:
        return "each worker needs a wish: does a node have that free?"

    def _lose(self, actor: Pretended) -> None:
        """All that it was asked is answered by its end."""
        now = time.monotonic()
        actor.busy_until = now
        for call in actor.calls:
            call.due, call.answer = now, Lost("it ended")
            heapq.heappush(self._due, (now, next(self._order), call))
        actor.calls.clear()
