"""Send tasks to actors and take back what becomes of each: attempts are counted, deadlines kept, poison quarantined."""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.deadlines import ATTEMPTS
from pipeline.errors import Refused, Unreadable
from pipeline.imagery.storage import OUT_OF_REACH

IN_FLIGHT = 2  # tasks an actor holds, so that it never waits for the driver
RETRY_READY_S = 0.5  # between questions to an actor that is being started again
STALLED_S = 300.0  # without any actor that answers: give up
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # so that no other task would fare better


@dataclass
class Task:
    """A method of an actor, its arguments, and how often it was begun."""

    method: str
    arguments: tuple[Any, ...]
    about: Any = None  # the caller's own; comes back with the outcome
    size: int = 1  # how much work it is, against the others
    counted: bool = False  # the method's last argument is the number of the attempt
    attempts: int = 0

    def send(self, handle: Any) -> Any:
        """Begin it once more; returns the reference of the answer."""
        self.attempts += 1
        return getattr(handle, self.method).remote(*self.arguments, *([self.attempts] if self.counted else []))


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
    head_since: float = 0.0  # when the oldest of them came to be that
    asked: Any = None  # the reference of a `ready` call that is under way
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


def dispatch(
    work: deque[Task], handles: Sequence[Any], *, deadline_s: Callable[[Task], float], tick: Callable[[], None] = lambda: None
) -> Iterator[Outcome]:  # fmt: skip
    """Run the tasks in `work` and yield their outcomes as they come; the caller may add to `work` meanwhile.

    `tick` is called every second or more often; `deadline_s` says how long a task may take.

    A task whose actor dies, that runs past its deadline, or that raises, is begun again, up to 3 times in all: the second
    time alone in an actor, the last time when nothing else is left, so that trouble which passes has passed. One that raises
    Unreadable has failed on its data and is not begun again. Raises Refused where an actor does, and OSError where an actor
    cannot write, since then all would; RuntimeError where no actor comes up.
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
            if actor.flying and now - actor.head_since > (limit := deadline_s(next(iter(actor.flying.values())))):
                yield from _overdue(actor, suspects, limit)
        owners = {ref: actor for actor in actors for ref in (*actor.flying, *([actor.asked] if actor.asked else []))}
        finished = ray.wait(list(owners), num_returns=1, timeout=1.0, fetch_local=False)[0] if owners else []
        if not owners:
            time.sleep(RETRY_READY_S / 2)
        for ref in finished:
            yield from _settle(ref, owners[ref], suspects)
        if any(actor.up for actor in actors):
            alive_at = time.monotonic()
        elif time.monotonic() - alive_at > STALLED_S:
            reasons = "; ".join(dict.fromkeys(actor.refused_to_start for actor in actors if actor.refused_to_start))
            raise RuntimeError(
                f"no actor came up within {STALLED_S:.0f} s: {reasons or 'does the cluster have the cores and memory asked for?'}"
            )


def _ask(actor: _Actor, now: float) -> None:
    """Ask an actor that is not known to be up whether it is, without waiting for the answer."""
    if not actor.up and actor.asked is None and now >= actor.ask_at:
        actor.asked = actor.handle.ready.remote()


def _load(actor: _Actor, actors: Sequence[_Actor], work: deque[Task], suspects: deque[Task], now: float) -> None:
    """Give an actor what it may hold; the last tasks, where it waits for them behind another, only if it has the least to do."""
    while actor.free() > 0:
        if actor.flying and len(work) <= IN_FLIGHT * len(actors) and actor.load() > min(other.load() for other in actors if other.up):
            return
        if not actor.flying and (suspect := _suspect(suspects, work)):
            task = suspect
        elif work:
            task = work.popleft()
        else:
            return
        if not actor.flying:
            actor.head_since = now
        actor.flying[task.send(actor.handle)] = task


def _suspect(suspects: deque[Task], work: deque[Task]) -> Task | None:
    """The next task to be begun again; those with their last attempt left wait until there is nothing else."""
    task = next((task for task in suspects if task.attempts < ATTEMPTS - 1), None)
    if task is None and suspects and not work:
        task = suspects[0]
    if task:
        suspects.remove(task)
    return task


def _settle(ref: Any, actor: _Actor, suspects: deque[Task]) -> Iterator[Outcome]:
    """Take the answer of one call."""
    if ref == next(iter(actor.flying), None):
        actor.head_since = time.monotonic()
    task = actor.flying.pop(ref, None)
    if task is None:
        actor.asked = None
    try:
        result = ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, (Refused, *OUT_OF_REACH)) or getattr(error.cause, "errno", None) in FULL:
            raise error.cause from None
        if task:
            yield from _again(task, suspects, _reason(error.cause), for_good=isinstance(error.cause, Unreadable))
        else:
            actor.refused_to_start, actor.ask_at = _reason(error.cause), time.monotonic() + RETRY_READY_S
        return
    except RayError as error:  # the actor died, or its node, with an answer that was still there
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
    suspects.extend(queued)  # from now on they travel alone: none is taken along twice
    yield from _again(late, suspects, f"took longer than {deadline_s:.0f} s")


def _again(task: Task, suspects: deque[Task], reason: str, *, for_good: bool = False) -> Iterator[Outcome]:
    if for_good or task.attempts >= ATTEMPTS:
        yield Outcome(task, failure=f"{reason} ({task.attempts} attempt{'s' * (task.attempts > 1)})")
    else:
        suspects.append(task)


def _reason(error: BaseException | RayError | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
