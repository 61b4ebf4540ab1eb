"""The dispatch loop on a real Ray: order does not matter, attempts are counted, poison is quarantined, nothing hangs."""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster import dispatch as dispatching
from cluster.actors import Actors
from cluster.deadlines import ATTEMPTS
from cluster.dispatch import Lost, Outcome, Task, _Actor, _Dispatch, dispatch
from pipeline.errors import Refused, Unreadable
from pipeline.imagery.s3 import NoBucket
from tests.cluster.crews import NEVER, Crew, Pretended
from tests.processes import PROJECT


@pytest.fixture(scope="module")
def joined(ray_cluster: dict[str, str]) -> Iterator[None]:
    """This process as a driver of the tests' cluster."""
    os.environ |= ray_cluster
    from ray._raylet import Config

    Config.initialize("")  # Ray reads its authentication mode when it is imported, which was before
    ray.init(
        address=ray_cluster["RAY_ADDRESS"], runtime_env={"working_dir": None, "env_vars": {"PYTHONPATH": str(PROJECT)}}, log_to_driver=False
    )
    yield
    ray.shutdown()


class Toy:
    """What an actor may do to a driver."""

    def ready(self) -> None:
        return None

    def square(self, number: int) -> int:
        return number * number

    def crash(self, marker: str, times: int) -> str:
        """End the process `times` times, then answer."""
        tried = Path(marker)
        count = len(tried.read_text()) if tried.exists() else 0
        tried.write_text("x" * (count + 1))
        if count < times:
            os._exit(1)
        return "survived"

    def third_time(self, attempt: int) -> int:
        """End the process but at the third attempt."""
        if attempt < ATTEMPTS:
            os._exit(1)
        return attempt

    def hang(self, seconds: float) -> None:
        time.sleep(seconds)

    def fail(self, kind: str) -> None:
        raise {
            "data": Unreadable, "input": Refused, "bug": KeyError, "disk": partial(OSError, errno.ENOSPC), "access": PermissionError,
            "bucket": NoBucket,
        }[kind]("as asked")  # fmt: skip


def toys(count: int, at_once: int = 1) -> Iterator[Actors]:
    """A crew of real actors."""
    handles: list[Any] = []

    def start() -> Any:
        handles.append(ray.remote(Toy).options(num_cpus=1, max_restarts=-1, max_task_retries=0, max_concurrency=at_once).remote())
        return handles[-1]

    yield Actors(start, "1 CPU", lambda: count)
    for handle in handles:
        ray.kill(handle)


@pytest.fixture
def actors(joined: None) -> Iterator[Actors]:
    yield from toys(2)


@pytest.fixture
def busy_actor(joined: None) -> Iterator[Actors]:
    """One that runs two tasks at once, as ours do."""
    yield from toys(1, at_once=2)


def outcomes(tasks: list[Task], crew: Any, deadline_s: float = 60.0) -> dict[Any, Outcome]:
    return {outcome.task.about: outcome for outcome in dispatch(deque(tasks), crew, deadline_s=lambda _: deadline_s)}


def test_every_task_is_done_once_and_work_may_be_added(actors: Actors):
    work = deque(Task("square", (number,), number) for number in range(100))
    seen = []
    for outcome in dispatch(work, actors, deadline_s=lambda _: 60.0):
        seen.append(outcome)
        if outcome.task.about == 50:
            work.append(Task("square", (1000,), "added"))
    assert sorted(str(outcome.task.about) for outcome in seen) == sorted([*map(str, range(100)), "added"])
    assert all(outcome.result == outcome.task.arguments[0] ** 2 and outcome.task.attempts == 1 for outcome in seen)


def test_poison_is_quarantined_and_takes_nothing_along(actors: Actors, tmp_path: Path):
    tasks = [Task("square", (number,), number) for number in range(20)]
    tasks.insert(3, Task("crash", (str(tmp_path / "poison"), 1000), "poison"))
    tasks.insert(9, Task("crash", (str(tmp_path / "once"), 1), "once"))
    found = outcomes(tasks, actors)
    assert found["poison"].failure and f"{ATTEMPTS} attempts" in found["poison"].failure
    assert len((tmp_path / "poison").read_text()) == ATTEMPTS
    assert found["once"].result == "survived"
    assert [found[number].result for number in range(20)] == [number**2 for number in range(20)]


def test_a_counted_task_is_told_which_attempt_it_is(actors: Actors):
    found = outcomes([Task("third_time", (), "counted", counted=True)], actors)
    assert found["counted"].result == ATTEMPTS == found["counted"].task.attempts


def test_a_task_past_its_deadline_is_killed_and_tried_again(actors: Actors):
    tasks = [Task("hang", (300.0,), "hang"), *(Task("square", (number,), number) for number in range(5))]
    began = time.monotonic()
    found = outcomes(tasks, actors, deadline_s=2.0)
    assert time.monotonic() - began < 60
    assert "took longer than 2 s (3 attempts)" in str(found["hang"].failure)
    assert [found[number].result for number in range(5)] == [0, 1, 4, 9, 16]


def test_failures_on_data_are_not_tried_again_and_bugs_are(actors: Actors):
    found = outcomes([Task("fail", ("data",), "data"), Task("fail", ("bug",), "bug")], actors)
    assert found["data"].failure == "Unreadable: as asked (1 attempt)"
    assert found["bug"].failure == "KeyError: 'as asked' (3 attempts)"


def test_a_refusal_ends_the_run(actors: Actors):
    with pytest.raises(Refused, match="as asked"):
        outcomes([Task("fail", ("input",), "input")], actors)


@pytest.mark.parametrize("what", ["disk", "access", "bucket"])
def test_an_out_that_cannot_be_written_ends_the_run(actors: Actors, what: str):
    with pytest.raises(OSError, match="as asked"):
        outcomes([Task("fail", (what,), what), *(Task("square", (number,), number) for number in range(5))], actors)


def test_a_task_that_hangs_is_noticed_while_others_pass_it(busy_actor: Actors):
    tasks = [Task("hang", (300.0,), "hang"), *(Task("hang", (0.4,), number) for number in range(12))]
    order = [outcome.task.about for outcome in dispatch(deque(tasks), busy_actor, deadline_s=lambda _: 2.0)]
    assert sorted(map(str, order)) == sorted(str(task.about) for task in tasks)
    assert order[-1] == "hang", "its last attempt came last"
    assert tasks[0].attempts == ATTEMPTS and sum(task.attempts for task in tasks[1:]) <= 12 + 1


def idle_loop(work: list[Task], actors: list[_Actor]) -> _Dispatch:
    """The loop's state, before it has begun."""
    loop = _Dispatch(deque(work), Crew(lambda *_: (NEVER, None), lambda: 0), lambda _: 60.0, lambda: None)
    loop.actors = actors
    return loop


def test_the_last_attempt_waits_until_nothing_else_is_left():
    twice, once = Task("segment", (), attempts=2), Task("segment", (), attempts=1)
    loop = idle_loop([Task("segment", ())], [])
    loop.suspects.extend([twice, once])
    assert loop._suspect() is once
    assert loop._suspect() is None
    loop.work.clear()
    assert loop._suspect() is twice and not loop.suspects


def loaded(sizes: list[int], up: list[bool]) -> list[list[int]]:
    """What actors have been given of tasks of these sizes, after two rounds."""
    crew = Crew(lambda *_: (NEVER, None), lambda: 0)
    actors = [_Actor(Pretended(number, crew), up=there) for number, there in enumerate(up)]
    loop = idle_loop([Task("segment", (size,), size=size) for size in sizes], actors)
    for actor in actors * 2:
        loop._load(actor, 0.0)
    return [[arguments[0] for _, arguments in actor.handle.asked] for actor in actors]


def test_the_last_tasks_wait_for_the_actor_with_the_least_to_do():
    assert loaded([40, 20, 20, 10], [True] * 2) == [[40, 10], [20, 20]]
    assert loaded([40, 10, 10, 10], [True] * 2) == [[40], [10, 10]]  # the last one waits: the second actor will be free sooner
    assert loaded([1] * 20, [True] * 3) == [[1, 1]] * 3


def test_an_actor_that_is_down_keeps_no_other_waiting():
    assert loaded([5, 3], [True, False]) == [[5, 3], []]


def slow_first(seconds: float) -> Any:
    """The first actor takes so long for each task, all others a hundredth of a second."""
    return lambda actor, method, arguments: (seconds if actor.number == 0 else 0.01, (actor.number, *arguments))


def test_the_last_tasks_do_not_wait_for_a_slow_actor(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dispatching, "SLOW_S", 0.3)
    crew = Crew(slow_first(60.0), lambda: 3)
    began = time.monotonic()
    found = outcomes([Task("segment", (number,), number, harmless=True) for number in range(30)], crew)
    assert time.monotonic() - began < 10
    assert sorted(found) == list(range(30)) and all(outcome.result == (outcome.result[0], about) for about, outcome in found.items())
    stolen = [outcome for outcome in found.values() if outcome.task.shared]
    assert 1 <= len(stolen) <= 2 and all(outcome.result[0] > 0 and outcome.task.attempts == 1 for outcome in stolen)
    assert [(actor.number, again) for actor, again in crew.ended] == [(0, False)], "who is behind is ended with the run"


def test_what_may_not_be_done_twice_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dispatching, "SLOW_S", 0.1)
    crew = Crew(slow_first(1.5), lambda: 2)
    found = outcomes([Task("publish", (number,), number) for number in range(8)], crew)
    assert not any(outcome.task.shared for outcome in found.values()) and not crew.ended


@pytest.mark.parametrize("slower_answers", [True, False])
def test_of_two_that_do_the_same_the_one_that_fails_is_not_heard(monkeypatch: pytest.MonkeyPatch, slower_answers: bool):
    monkeypatch.setattr(dispatching, "SLOW_S", 0.2)

    def behave(actor: Pretended, method: str, arguments: tuple[Any, ...]) -> tuple[float, Any]:
        if arguments[0] != "slow":
            return 0.01, "done"
        first = sum(asked == (method, arguments) for each in crew.hired for asked in each.asked) == 1
        return (2.5, "first") if first == slower_answers else (2.0 if first else 0.1, Lost("it ended"))

    crew = Crew(behave, lambda: 2)
    tasks = [Task("segment", ("slow",), "slow", harmless=True), *(Task("segment", (n,), n, harmless=True) for n in range(5))]
    found = outcomes(tasks, crew)
    assert found["slow"].result == "first" and found["slow"].failure is None and found["slow"].task.attempts == 1


def test_nodes_that_join_get_work_and_actors_without_any_are_let_go(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dispatching, "IDLE_S", 0.3)
    began = time.monotonic()
    crew = Crew(
        lambda actor, *_: (0.05 if actor.asked[-1][1] != (0,) else 3.0, actor.number), lambda: 1 + (time.monotonic() - began > 1.0) * 3
    )
    found = outcomes([Task("segment", (number,), number) for number in range(60)], crew)
    assert len(found) == 60 and len(crew.hired) == 4
    assert len({outcome.result for outcome in found.values()}) == 4, "all have worked"
    assert {again for _, again in crew.ended} == {False} and len(crew.ended) == 3, "and all but the one that had the last task are gone"


def test_actors_that_are_not_up_when_nothing_is_left_to_begin_are_let_go():
    """They wait for a node that an autoscaler would start for nothing."""
    crew = Crew(lambda *_: (1.0, "done"), lambda: 4, start_s=NEVER)
    ask = crew.ask
    crew.ask = lambda actor, method, arguments: ask(actor, method if actor.number else "no start", arguments)  # type: ignore[method-assign]
    found = outcomes([Task("segment", (number,), number) for number in range(4)], crew)
    assert len(found) == 4 and len(crew.hired) == 4
    assert sorted(actor.number for actor, again in crew.ended if not again) == [1, 2, 3]


def test_a_crew_hears_how_much_work_waits():
    told: list[tuple[int, float]] = []

    class Told(Crew):
        def hire(self, tasks: int, seconds: float) -> list[Pretended]:
            told.append((tasks, seconds))
            return super().hire(tasks, seconds)

    outcomes([Task("segment", (number,), number) for number in range(12)], Told(lambda *_: (0.2, "done"), lambda: 1))
    assert told[0] == (12, 0.0), "nothing is known yet"
    later = [seconds / tasks for tasks, seconds in told if seconds]
    assert later and all(0.1 < each < 0.3 for each in later), "one after another, two of them in the actor at any time"
    assert [tasks for tasks, _ in told] == sorted((tasks for tasks, _ in told), reverse=True)


@pytest.mark.parametrize(
    ("grows", "room", "tasks", "seconds", "expected"),
    [
        (False, 4, 1000, 1e6, 4),
        (True, 4, 1000, 0.0, 4),  # nothing is known yet
        (True, 4, 1000, 4 * 300.0, 4),  # 300 s for each of those there is room for
        (True, 4, 1000, 6 * 300.0, 6),
        (True, 4, 5, 6 * 300.0, 5),
        (True, 4, 1000, 1e6, 8),
        (True, 40, 1000, 1e6, 80),  # as many again at a time
        (True, 0, 1000, 1e6, 8),  # all nodes are gone
    ],
)
def test_nodes_are_asked_for_where_each_worker_would_have_enough_to_do(
    monkeypatch: pytest.MonkeyPatch, grows: bool, room: int, tasks: int, seconds: float, expected: int
):
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    monkeypatch.setattr("cluster.session.Head.answers", lambda _: True)
    crew = Actors(object, "a wish", lambda: room, grows)
    assert len(crew.hire(tasks, seconds)) == expected
    crew._look_at = 0.0
    assert not crew.hire(tasks - expected, seconds), "those that wait are counted"


def test_a_head_that_does_not_answer_is_asked_nothing(monkeypatch: pytest.MonkeyPatch):
    """Ray would block until it ends this process, before it could say why."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    crew = Actors(object, "a wish", lambda: pytest.fail("asked for its nodes"))
    assert not crew.hire(1, 0.0)
    crew.check()
    crew._head._answered -= 100
    with pytest.raises(RuntimeError, match=r"head at 127.0.0.1:1 has not answered for 10\d s \(Connection refused\)"):
        crew.check()  # whoever has asked it last


def test_a_run_without_workers_says_what_it_waits_for_and_gives_up(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(dispatching, "STALLED_S", 2.0)
    monkeypatch.setattr(dispatching, "TELL_EVERY_S", 0.7)
    with pytest.raises(RuntimeError, match="no worker came up within 2 s: each worker needs a wish"):
        outcomes([Task("segment", ())], Crew(lambda *_: (0.0, None), lambda: 1, start_s=NEVER))
    assert "waiting for workers, for up to 2 s: each worker needs a wish" in capsys.readouterr().err


def test_what_many_actors_lose_is_done_by_others():
    """Every seventh call ends its actor, and what that held; nothing is lost, and few tasks are begun a third time."""
    calls = iter(range(10**6))
    crew = Crew(lambda *_: (0.002, Lost("it ended") if next(calls) % 7 == 3 else "done"), lambda: 20)
    found = outcomes([Task("segment", (number,), number, harmless=True) for number in range(300)], crew)
    assert len(found) == 300
    assert sum(outcome.failure is not None for outcome in found.values()) <= 6, "one in 7 x 7 x 7"
