"""Send tasks to actors and take back what becomes of each: attempts are counted, deadlines kept, poison quarantined."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from pipeline.errors import Refused, Unreadable

ATTEMPTS = 3
IN_FLIGHT = 2  # tasks an actor holds, so that it never waits for the driver
RETRY_READY_S = 0.5  # between questions to an actor that is being started again
STALLED_S = 300.0  # without any actor that answers: give up


@dataclass
class Task:
    """A method of an actor, its arguments, and how often it was begun."""

    method: str
    arguments: tuple[Any, ...]
    about: Any = None  # the caller's own; comes back with the outcome
    size: int = 1  # how much work it is, against the others
    attempts: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of a task: its result, or why it failed for good."""

    task: Task
    result: Any = None
    failure: str | None = None


@dataclass
class _Actor:
    handle: Any
    flying: dict[Any, Task] = field(default_factory=dict)
    head_since: float = 0.0  # when the task that it works on now was begun
    asked: Any = None  # the reference of a `ready` call that is under way
    ask_at: float = 0.0
    up: bool = False

    def free(self) -> int:
        """How many more tasks it may hold; a task that failed before travels alone, so that it takes no other along."""
        if not self.up or any(task.attempts > 1 for task in self.flying.values()):
            return 0
        return IN_FLIGHT - len(self.flying)

    def load(self) -> int:
        return sum(task.size for task in self.flying.values())


def dispatch(work: deque[Task], handles: Sequence[Any], *, deadline_s: float, tick: Callable[[], None] = lambda: None) -> Iterator[Outcome]:
    """Run the tasks in `work` and yield their outcomes as they come; the caller may add to `work` meanwhile.

    `tick` is called every second or more often.

    A task whose actor dies, that runs past `deadline_s`, or that raises, is begun again, up to 3 times in all; one that
    raises Unreadable has failed on its data and is not. Raises Refused where an actor does, since then all would, and
    RuntimeError where no actor comes up.
    """
    actors = [_Actor(handle) for handle in handles]
    suspects: deque[Task] = deque()
    alive_at = time.monotonic()
    while work or suspects or any(actor.flying for actor in actors):
        now = time.monotonic()
        tick()
        for actor in actors:
            _ask(actor, now)
            _load(actor, actors, work, suspects, now)
            if actor.flying and now - actor.head_since > deadline_s:
                yield from _overdue(actor, suspects, deadline_s)
        owners = {ref: actor for actor in actors for ref in (*actor.flying, *([actor.asked] if actor.asked else []))}
        finished = ray.wait(list(owners), num_returns=1, timeout=1.0, fetch_local=False)[0] if owners else []
        if not owners:
            time.sleep(RETRY_READY_S / 2)
        for ref in finished:
            yield from _settle(ref, owners[ref], suspects)
        if any(actor.up for actor in actors):
            alive_at = time.monotonic()
        elif time.monotonic() - alive_at > STALLED_S:
            raise RuntimeError(f"no actor came up within {STALLED_S:.0f} s: does the cluster have the cores and memory asked for?")


def _ask(actor: _Actor, now: float) -> None:
    """Ask an actor that is not known to be up whether it is, without waiting for the answer."""
    if not actor.up and actor.asked is None and now >= actor.ask_at:
        actor.asked = actor.handle.ready.remote()


def _load(actor: _Actor, actors: Sequence[_Actor], work: deque[Task], suspects: deque[Task], now: float) -> None:
    """Give an actor what it may hold; the last tasks, where it waits for them behind another, only if it has the least to do."""
    while actor.free() > 0:
        if actor.flying and len(work) <= IN_FLIGHT * len(actors) and actor.load() > min(other.load() for other in actors if other.up):
            return
        if suspects and not actor.flying:
            task = suspects.popleft()
        elif work:
            task = work.popleft()
        else:
            return
        task.attempts += 1
        if not actor.flying:
            actor.head_since = now
        actor.flying[getattr(actor.handle, task.method).remote(*task.arguments)] = task


def _settle(ref: Any, actor: _Actor, suspects: deque[Task]) -> Iterator[Outcome]:
    """Take the answer of one call."""
    task = actor.flying.pop(ref, None)
    actor.head_since = time.monotonic()
    if task is None:
        actor.asked = None
    try:
        result = ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, Refused):
            raise error.cause from None
        if task:
            yield from _again(task, suspects, _reason(error.cause), for_good=isinstance(error.cause, Unreadable))
        return
    except (RayActorError, OutOfMemoryError) as error:
        actor.up, actor.ask_at = False, time.monotonic() + RETRY_READY_S
        if task:
            yield from _again(task, suspects, _reason(error))
        return
    if task:
        yield Outcome(task, result)
    else:
        actor.up = True


def _overdue(actor: _Actor, suspects: deque[Task], deadline_s: float) -> Iterator[Outcome]:
    """Kill an actor whose task runs past its deadline; do not wait for it, since in a partition no answer comes."""
    late, *queued = actor.flying.values()
    actor.flying.clear()
    actor.up, actor.ask_at = False, time.monotonic() + RETRY_READY_S
    ray.kill(actor.handle, no_restart=False)
    for task in queued:
        task.attempts -= 1  # it was never begun
        suspects.append(task)
    yield from _again(late, suspects, f"took longer than {deadline_s:.0f} s")


def _again(task: Task, suspects: deque[Task], reason: str, *, for_good: bool = False) -> Iterator[Outcome]:
    if for_good or task.attempts >= ATTEMPTS:
        yield Outcome(task, failure=f"{reason} ({task.attempts} attempt{'s' * (task.attempts > 1)})")
    else:
        suspects.append(task)


def _reason(error: BaseException | RayError | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
