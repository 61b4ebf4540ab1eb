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

from cluster.deadlines import ATTEMPTS
from cluster.dispatch import Outcome, Task, _Actor, _load, _suspect, dispatch
from pipeline.errors import Refused, Unreadable
from pipeline.imagery.s3 import NoBucket
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


@pytest.fixture
def actors(joined: None) -> Iterator[list[Any]]:
    handles = [ray.remote(Toy).options(num_cpus=1, max_restarts=-1, max_task_retries=0).remote() for _ in range(2)]
    yield handles
    for handle in handles:
        ray.kill(handle)


def outcomes(tasks: list[Task], actors: list[Any], deadline_s: float = 60.0) -> dict[Any, Outcome]:
    return {outcome.task.about: outcome for outcome in dispatch(deque(tasks), actors, deadline_s=lambda _: deadline_s)}


def test_every_task_is_done_once_and_work_may_be_added(actors: list[Any]):
    work = deque(Task("square", (number,), number) for number in range(100))
    seen = []
    for outcome in dispatch(work, actors, deadline_s=lambda _: 60.0):
        seen.append(outcome)
        if outcome.task.about == 50:
            work.append(Task("square", (1000,), "added"))
    assert sorted(str(outcome.task.about) for outcome in seen) == sorted([*map(str, range(100)), "added"])
    assert all(outcome.result == outcome.task.arguments[0] ** 2 and outcome.task.attempts == 1 for outcome in seen)


def test_poison_is_quarantined_and_takes_nothing_along(actors: list[Any], tmp_path: Path):
    tasks = [Task("square", (number,), number) for number in range(20)]
    tasks.insert(3, Task("crash", (str(tmp_path / "poison"), 1000), "poison"))
    tasks.insert(9, Task("crash", (str(tmp_path / "once"), 1), "once"))
    found = outcomes(tasks, actors)
    assert found["poison"].failure and f"{ATTEMPTS} attempts" in found["poison"].failure
    assert len((tmp_path / "poison").read_text()) == ATTEMPTS
    assert found["once"].result == "survived"
    assert [found[number].result for number in range(20)] == [number**2 for number in range(20)]


def test_a_counted_task_is_told_which_attempt_it_is(actors: list[Any]):
    found = outcomes([Task("third_time", (), "counted", counted=True)], actors)
    assert found["counted"].result == ATTEMPTS == found["counted"].task.attempts


def test_a_task_past_its_deadline_is_killed_and_tried_again(actors: list[Any]):
    tasks = [Task("hang", (300.0,), "hang"), *(Task("square", (number,), number) for number in range(5))]
    began = time.monotonic()
    found = outcomes(tasks, actors, deadline_s=2.0)
    assert time.monotonic() - began < 60
    assert "took longer than 2 s (3 attempts)" in str(found["hang"].failure)
    assert [found[number].result for number in range(5)] == [0, 1, 4, 9, 16]


def test_failures_on_data_are_not_tried_again_and_bugs_are(actors: list[Any]):
    found = outcomes([Task("fail", ("data",), "data"), Task("fail", ("bug",), "bug")], actors)
    assert found["data"].failure == "Unreadable: as asked (1 attempt)"
    assert found["bug"].failure == "KeyError: 'as asked' (3 attempts)"


def test_a_refusal_ends_the_run(actors: list[Any]):
    with pytest.raises(Refused, match="as asked"):
        outcomes([Task("fail", ("input",), "input")], actors)


@pytest.mark.parametrize("what", ["disk", "access", "bucket"])
def test_an_out_that_cannot_be_written_ends_the_run(actors: list[Any], what: str):
    with pytest.raises(OSError, match="as asked"):
        outcomes([Task("fail", (what,), what), *(Task("square", (number,), number) for number in range(5))], actors)


def test_a_task_that_hangs_is_noticed_while_others_pass_it(joined: None):
    """In an actor that runs two at once, as ours do."""
    (handle,) = handles = [ray.remote(Toy).options(num_cpus=1, max_restarts=-1, max_task_retries=0, max_concurrency=2).remote()]
    tasks = [Task("hang", (300.0,), "hang"), *(Task("hang", (0.4,), number) for number in range(12))]
    order = [outcome.task.about for outcome in dispatch(deque(tasks), handles, deadline_s=lambda _: 2.0)]
    ray.kill(handle)
    assert sorted(map(str, order)) == sorted(str(task.about) for task in tasks)
    assert order[-1] == "hang", "its last attempt came last"
    assert tasks[0].attempts == ATTEMPTS and sum(task.attempts for task in tasks[1:]) <= 12 + 1


def test_the_last_attempt_waits_until_nothing_else_is_left():
    twice, once = Task("segment", (), attempts=2), Task("segment", (), attempts=1)
    suspects, work = deque([twice, once]), deque([Task("segment", ())])
    assert _suspect(suspects, work) is once
    assert _suspect(suspects, work) is None
    assert _suspect(suspects, deque()) is twice and not suspects


class Slow:
    """An actor's handle that takes tasks and never answers."""

    def __init__(self) -> None:
        self.took: list[int] = []

    @property
    def segment(self) -> Slow:
        return self

    def remote(self, size: int) -> object:
        self.took.append(size)
        return object()


def loaded(sizes: list[int], count: int) -> list[list[int]]:
    """What each of `count` actors has been given of tasks of these sizes, after two rounds."""
    actors = [_Actor(Slow(), up=True) for _ in range(count)]
    work = deque(Task("segment", (size,), size=size) for size in sizes)
    for actor in actors * 2:
        _load(actor, actors, work, deque(), 0.0)
    return [actor.handle.took for actor in actors]


def test_the_last_tasks_wait_for_the_actor_with_the_least_to_do():
    assert loaded([40, 20, 20, 10], 2) == [[40, 10], [20, 20]]
    assert loaded([40, 10, 10, 10], 2) == [[40], [10, 10]]  # the last one waits: the second actor will be free sooner
    assert loaded([1] * 20, 3) == [[1, 1]] * 3


def test_an_actor_that_is_down_keeps_no_other_waiting():
    up, down = _Actor(Slow(), up=True), _Actor(Slow())
    work = deque(Task("segment", (size,), size=size) for size in (5, 3))
    _load(up, [up, down], work, deque(), 0.0)
    assert up.handle.took == [5, 3]
