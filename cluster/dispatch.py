"""Send tasks to actors and take back what becomes of each: attempts are counted, deadlines kept, poison quarantined, and the
last tasks do not wait for a slow actor. Ray is behind `Crew`, so that the same loop runs on pretended actors."""

from __future__ import annotations

import errno
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cluster.deadlines import ATTEMPTS, NODE_TIMEOUT_S, TELL_EVERY_S
from pipeline.errors import Refused, Unreadable
from pipeline.imagery.storage import OUT_OF_REACH

IN_FLIGHT = 2  # tasks an actor holds, so that it never waits for the driver
LOOK_S = 0.5  # between looks at deadlines, at actors that are not up, and at whether there should be more or fewer of them
RETRY_READY_S = 0.5  # before an actor that is being started again is asked whether it is up
STALLED_S = NODE_TIMEOUT_S  # without any actor that answers: give up
IDLE_S = 60.0  # after which an actor that has nothing to do is let go
SLOW, SLOW_S = 1.5, 2.0  # times, and seconds, that a task may take longer than others do until an idle actor does it as well
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # so that no other task would fare better


class Lost(Exception):
    """An actor, or its node, ended with a call unanswered."""


class Crew(Protocol):
    """The actors of a run, and how they are asked. A handle has methods with `remote(...)`, which return a call, without waiting."""

    def share(self, value: Any) -> Any:
        """An argument of many calls, sent to a node once."""
        ...

    def hire(self, tasks: int, seconds: float) -> Sequence[Any]:
        """Handles of actors to add, now that so many tasks wait for one, which will take one actor about so long (0 if that is
        not known yet); none where there is no room for more, and no node worth waiting for."""
        ...

    def wait(self, calls: Sequence[Any], seconds: float) -> Sequence[Any]:
        """Those of some calls that are answered, once any is or the time is over."""
        ...

    def answer(self, call: Any) -> Any:
        """The answer of a call. Raises what its method raised, and Lost where the actor is gone, which may come back."""
        ...

    def end(self, handle: Any, *, again: bool) -> None:
        """Kill an actor without waiting for it; `again`: it is started anew."""
        ...

    def check(self) -> None:
        """Raise RuntimeError where all of them are gone, with what they ran on; asked every second or more often."""
        ...

    def missing(self) -> str:
        """What actors wait for that do not come up: for a person."""
        ...


@dataclass(eq=False)
class Task:
    """A method of an actor and its arguments; `attempts` and `shared` say what became of it."""

    method: str
    arguments: tuple[Any, ...]
    about: Any = None  # the caller's own; comes back with the outcome
    size: int = 1  # how much work it is, against the others
    counted: bool = False  # the method's last argument is the number of the attempt
    harmless: bool = False  # it may be done twice at once: the first answer counts
    attempts: int = 0
    shared: bool = False  # two actors were at it


@dataclass(frozen=True)
class Outcome:
    """What became of a task: its result, or why it failed for good."""

    task: Task
    result: Any = None
    failure: str | None = None


@dataclass(eq=False)
class _Actor:
    handle: Any
    flying: dict[Any, Task] = field(default_factory=dict)
    head_since: float = 0.0  # when the oldest of them came to be that
    idle_since: float = 0.0
    asked: Any = None  # the `ready` call that is under way
    ask_at: float = 0.0
    up: bool = False
    refused_to_start: str = ""  # what its last `ready` raised

    def free(self) -> int:
        """How many more tasks it may hold; a task that failed before travels alone, so that it takes no other along."""
        if not self.up or any(task.attempts > 1 for task in self.flying.values()):
            return 0
        return IN_FLIGHT - len(self.flying)

    def load(self) -> int:
        return sum(task.size for task in self.flying.values())


@dataclass
class _Flight:
    """A task that is under way, at times in two actors at once."""

    since: float
    actors: int = 1


def dispatch(
    work: deque[Task], crew: Crew, *, deadline_s: Callable[[Task], float], tick: Callable[[], None] = lambda: None
) -> Iterator[Outcome]:  # fmt: skip
    """Run the tasks in `work` and yield their outcomes as they come; the caller may add to `work` meanwhile.

    `tick` is called every second or more often; `deadline_s` says how long a task may take.

    A task whose actor dies, that runs past its deadline, or that raises, is begun again, up to 3 times in all: the second
    time alone in an actor, the last time when nothing else is left, so that trouble which passes has passed. One that raises
    Unreadable has failed on its data and is not begun again. When nothing is left to begin, an actor without work does what
    has been under way for longest a second time, if that takes far longer than usual and is harmless.

    Actors are added as the crew finds room for them. Once nothing is left to begin, those that are not up yet are let go, and
    those that have had nothing to do for a while. Raises Refused where an actor does, and OSError where an actor cannot
    write, since then all would; RuntimeError where no actor comes up.
    """
    return _Dispatch(work, crew, deadline_s, tick).outcomes()


class _Dispatch:
    """The state of `dispatch`."""

    def __init__(self, work: deque[Task], crew: Crew, deadline_s: Callable[[Task], float], tick: Callable[[], None]):
        self.work, self.crew, self.deadline_s, self.tick = work, crew, deadline_s, tick
        self.actors: list[_Actor] = []
        self.suspects: deque[Task] = deque()  # that failed before
        self.flights: dict[Task, _Flight] = {}
        self.owners: dict[Any, _Actor] = {}  # of the calls that are under way
        self.took: dict[str, tuple[float, int]] = {}  # seconds and sizes of what is done, by method
        self.done = 0
        self.alive_at = self.told_at = time.monotonic()  # when an actor was last known to be up, or a person was told

    def outcomes(self) -> Iterator[Outcome]:
        look_at = 0.0
        while self.work or self.suspects or self.flights:
            self.tick()
            self.crew.check()
            now = time.monotonic()
            if now >= look_at:
                look_at = now + LOOK_S
                yield from self._look(now)
            if not self.owners:
                time.sleep(LOOK_S)
                continue
            finished = self.crew.wait(list(self.owners), LOOK_S)
            answered = dict.fromkeys(self.owners[call] for call in finished)
            for call in finished:
                yield from self._settle(call)
            for actor in answered:
                self._load(actor, time.monotonic())
        self._leave()

    def _look(self, now: float) -> Iterator[Outcome]:
        """All that no answer tells: who is up, who is late, who waits for work, and whether there should be more of them."""
        waiting = sum(not (actor.up and actor.flying) for actor in self.actors)
        if (more := len(self.work) + len(self.suspects) - waiting) > 0:
            self.actors += map(_Actor, self.crew.hire(more, more * self._seconds_a_task()))
        for actor in self.actors:
            if not actor.up and actor.asked is None and now >= actor.ask_at:
                actor.asked = actor.handle.ready.remote()
                self.owners[actor.asked] = actor
            self._load(actor, now)
            if actor.flying and now - actor.head_since > (limit := self.deadline_s(next(iter(actor.flying.values())))):
                yield from self._overdue(actor, limit)
        if not (self.work or self.suspects):
            self._share(now)
            self._let_go(now)
        self._check_alive(now)

    def _load(self, actor: _Actor, now: float) -> None:
        """Give an actor what it may hold; the last tasks, where it waits for them behind another, only if it has the least to do."""
        while actor.free() > 0:
            last = actor.flying and len(self.work) <= IN_FLIGHT * len(self.actors)
            if last and actor.load() > min(other.load() for other in self.actors if other.up):
                return
            task = self._suspect() if not actor.flying else None
            if task is None and self.work:
                task = self.work.popleft()
            if task is None:
                return
            task.attempts += 1
            self.flights[task] = _Flight(now)
            self._send(actor, task, now)

    def _send(self, actor: _Actor, task: Task, now: float) -> None:
        call = getattr(actor.handle, task.method).remote(*task.arguments, *([task.attempts] if task.counted else []))
        if not actor.flying:
            actor.head_since = now
        actor.flying[call], self.owners[call] = task, actor

    def _suspect(self) -> Task | None:
        """The next task to be begun again; those with their last attempt left wait until there is nothing else."""
        task = next((task for task in self.suspects if task.attempts < ATTEMPTS - 1), None)
        if task is None and self.suspects and not self.work:
            task = self.suspects[0]
        if task:
            self.suspects.remove(task)
        return task

    def _settle(self, call: Any) -> Iterator[Outcome]:
        """Take the answer of one call."""
        actor, now = self.owners.pop(call), time.monotonic()
        if call == next(iter(actor.flying), None):
            actor.head_since = now
        task = actor.flying.pop(call, None)
        actor.idle_since = now
        if task is None:
            actor.asked = None
        try:
            result = self.crew.answer(call)
        except Lost as error:
            actor.up, actor.ask_at = False, now + RETRY_READY_S
            if task:
                yield from self._again(task, str(error))
        except Exception as error:
            if isinstance(error, (Refused, *OUT_OF_REACH)) or getattr(error, "errno", None) in FULL:
                raise
            if task:
                yield from self._again(task, reason_of(error), for_good=isinstance(error, Unreadable))
            else:
                actor.refused_to_start, actor.ask_at = reason_of(error), now + RETRY_READY_S
        else:
            if task is None:
                actor.up = True
            elif flight := self.flights.pop(task, None):  # or another actor was done before
                seconds, size = self.took.get(task.method, (0.0, 0))
                self.took[task.method] = seconds + now - flight.since, size + task.size
                self.done += 1
                yield Outcome(task, result)

    def _again(self, task: Task, reason: str, *, for_good: bool = False) -> Iterator[Outcome]:
        """What becomes of a task that an actor has not done: it is begun again, or has failed, if no other actor is at it."""
        if not self._left(task):
            return
        if for_good or task.attempts >= ATTEMPTS:
            yield Outcome(task, failure=f"{reason} ({task.attempts} attempt{'s' * (task.attempts > 1)})")
        else:
            self.suspects.append(task)

    def _left(self, task: Task) -> bool:
        """Whether a task that an actor has not done is now with none, and not done."""
        flight = self.flights.get(task)
        if flight is None:
            return False
        flight.actors -= 1
        if flight.actors:
            return False
        del self.flights[task]
        return True

    def _overdue(self, actor: _Actor, deadline_s: float) -> Iterator[Outcome]:
        """Kill an actor whose task runs past its deadline; do not wait for it, since in a partition no answer comes."""
        late, *queued = actor.flying.values()
        for call in actor.flying:
            del self.owners[call]
        actor.flying.clear()
        actor.up, actor.ask_at = False, time.monotonic() + RETRY_READY_S
        self.crew.end(actor.handle, again=True)
        self.suspects.extend(filter(self._left, queued))  # from now on they travel alone: none is taken along twice
        yield from self._again(late, f"took longer than {deadline_s:.0f} s")

    def _share(self, now: float) -> None:
        """Let actors without work do what has been under way for far longer than usual, the oldest first."""
        idle = [actor for actor in self.actors if actor.up and not actor.flying]
        slow = [task for task, flight in self.flights.items() if now - flight.since > self._patience(task) and flight.actors == 1]
        for actor, task in zip(idle, sorted(slow, key=lambda task: self.flights[task].since), strict=False):
            self.flights[task].actors += 1
            task.shared = True
            self._send(actor, task, now)

    def _patience(self, task: Task) -> float:
        """Seconds that a task may be under way before another actor does it, too."""
        seconds, size = self.took.get(task.method, (0.0, 0))
        if not (task.harmless and size) or task.attempts > 1:
            return math.inf
        return max(SLOW * seconds / size * task.size, SLOW_S)

    def _seconds_a_task(self) -> float:
        """What a task takes an actor on average, which has as many at once as it may hold; 0 before the first is done."""
        return sum(seconds for seconds, _ in self.took.values()) / max(self.done, 1) / IN_FLIGHT

    def _let_go(self, now: float) -> None:
        """Let actors go that are not up, so that no node is started for them any more, and those that have had nothing to do for
        a while, so that their nodes may go; one that is up stays."""
        there = sum(actor.up for actor in self.actors)
        for actor in [actor for actor in self.actors if not actor.flying and (not actor.up or now - actor.idle_since > IDLE_S)]:
            if there > actor.up:
                there -= actor.up
                self.actors.remove(actor)
                self.owners.pop(actor.asked, None)
                self.crew.end(actor.handle, again=False)

    def _check_alive(self, now: float) -> None:
        """Raise RuntimeError where no actor has been up for too long."""
        if any(actor.up for actor in self.actors):
            self.alive_at = self.told_at = now
            return
        why = "; ".join(dict.fromkeys(actor.refused_to_start for actor in self.actors if actor.refused_to_start)) or self.crew.missing()
        if now - self.alive_at > STALLED_S:
            raise RuntimeError(f"no worker came up within {STALLED_S:.0f} s: {why}")
        if now - self.told_at > TELL_EVERY_S:
            self.told_at = now
            print(f"waiting for workers, for up to {STALLED_S:.0f} s: {why}", file=sys.stderr, flush=True)

    def _leave(self) -> None:
        """End the actors that still do what another has done before them."""
        behind = [actor for actor in self.actors if actor.flying]
        for actor in behind:
            self.crew.end(actor.handle, again=False)
        for actor in behind:
            self.crew.wait(list(actor.flying), LOOK_S)


def reason_of(error: BaseException) -> str:
    """An error in a line, with the name of its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
