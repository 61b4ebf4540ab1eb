"""How far one driver goes: the real loop, ledger, record and trace, with 1 to 1,000 pretended actors.

    python tests/benchmarks/bench_dispatch.py [--actors 1,8,64,512,1000] [--shards 20] [--seconds 2]

An actor answers after about `--seconds` (log-normal, sigma 0.3), having put a part of the size that a real shard has into the real ledger
on this disk. Of a hundred actors one is ten times slower, of 400 answers one is an error, and of 1,000 one ends its actor with all
that it held. The driver's own CPU is what this process takes without the actors' part of it. The tail is the time from when the
last shard was begun for the first time, in units of a usual shard. `--real N` has N actors of Ray's in their place, which sleep.
"""

# ruff: noqa: E402  Ray reads its settings when it is imported
from __future__ import annotations

import argparse
import math
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from cluster.environment import secure_embedded_ray

secure_embedded_ray()  # before Ray is imported

from cluster.dispatch import Lost
from cluster.metrics import Metrics
from cluster.record import RunRecord
from cluster.run import segment_scenes
from cluster.scenes import SceneWork
from pipeline.geometry.windows import Window
from pipeline.imagery.region import Region
from pipeline.inference.ledger import SceneLedger
from pipeline.inference.plan import GIB, Plan, Resources, Settings, make_plan
from pipeline.inference.segment import ShardResult
from pipeline.inference.stages import Span
from pipeline.models.bundle import Bundle, load_bundle
from pipeline.models.choice import REFERENCE
from pipeline.models.random_bundle import save_random_bundle
from pipeline.results.publish import Published
from tests.cluster.crews import Crew, Pretended
from tests.inference.test_plan import CPU, scene_of

SHARD = 2048
PART_BYTES = 64 * 1024
SPANS = 60  # of a shard of 2048 px
SLOW_ACTOR, SLOW_TIMES = 100, 10.0
ERROR, LOSS = 1 / 400, 1 / 1000


def pretended(seconds: float, spent: list[float], seed: int) -> Callable[[Pretended, str, tuple[Any, ...]], tuple[float, Any]]:
    """What actors do; the time that it takes in this process is added to `spent`."""
    chance = random.Random(seed)
    content = os.urandom(PART_BYTES)

    def behave(actor: Pretended, method: str, arguments: tuple[Any, ...]) -> tuple[float, Any]:
        began = time.process_time()
        try:
            takes = seconds * chance.lognormvariate(0, 0.3) * (SLOW_TIMES if actor.number % SLOW_ACTOR == SLOW_ACTOR - 1 else 1)
            if method == "publish":
                return 0.0, Published(Path("mask.tif"), [], [], complete=True, committed=True)
            if (lot := chance.random()) < LOSS:
                return takes, Lost("it ended")
            if lot < LOSS + ERROR:
                return takes, ValueError("as it happens")
            return takes, finished_shard(*arguments[:3], takes, content)
        finally:
            spent[0] += time.process_time() - began

    return behave


def finished_shard(plan: Plan, shard: Window, ledger: SceneLedger, takes: float, content: bytes) -> ShardResult:
    """Put a part into the ledger, as an actor would."""
    name, now = plan.shard_name(shard), time.time()
    part = ledger.temporary(name)
    part.write_bytes(content)
    ledger.publish_part(name, part, partial=False)
    spans = [
        Span(stage, now + takes * n / SPANS, takes / SPANS, n % 3) for n, stage in enumerate(("read", "wait", "device") * (SPANS // 3))
    ]
    return ShardResult(name, shard.pixels, None, [], spans, 4, "host 1 1", 12 * shard.pixels, PART_BYTES)  # type: ignore[arg-type]


@contextmanager
def run_of(shards: int, bundle: Bundle) -> Iterator[tuple[SceneWork, RunRecord, dict[str, float]]]:
    """A scene of so many shards with a ledger on this disk, and what its ledger's steps took."""
    side = math.ceil(math.sqrt(shards))
    scene, took = scene_of(math.ceil(shards / side) * SHARD, side * SHARD), {}
    plan = make_plan(
        scene, Region(scene.grid.window), bundle, Settings(precision="fp32", shard=SHARD), batch=4, choice=REFERENCE,
        resources=Resources(CPU, 8 * GIB),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        ledger = SceneLedger.open(Path(folder), "scene", scene.input_id)
        ledger.adopt_plan(plan)
        work = SceneWork(plan, ledger, ledger.missing(plan)[:shards], committed_before=False)
        with RunRecord(Path(folder), ["bench_dispatch"], bundle, [], {}) as record:
            record.start([work], 0)
            yield work, record, took
            record.end(0)
        began = time.perf_counter()
        left = ledger.missing(plan)
        took["missing"] = time.perf_counter() - began
        assert not set(left) & set(work.missing) - work.quarantined.keys()


class Uncounted(Metrics):
    """No metrics: to count, Ray would start."""

    def __init__(self, bundle: Bundle):
        pass

    def add(self, result: ShardResult | None, attempts: int, left: int) -> None:
        pass


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def simulate(actors: int, shards: int, seconds: float, bundle: Bundle) -> None:
    """One line of the table."""
    spent = [0.0]
    crew = Crew(pretended(seconds, spent, actors), lambda: actors)
    begun: dict[str, float] = {}
    ask = crew.ask

    def timed(actor: Pretended, method: str, arguments: tuple[Any, ...]) -> Any:
        if method == "segment":
            begun.setdefault(str(arguments[1]), time.monotonic())
        return ask(actor, method, arguments)

    crew.ask = timed  # type: ignore[method-assign]
    with run_of(shards, bundle) as (work, record, took):
        before, began, cpu = peak_mib(), time.monotonic(), time.process_time()
        segment_scenes([work], crew, record, Uncounted(bundle), accept_partial=False)
        ended, cpu = time.monotonic(), time.process_time() - cpu - spent[0]
    ideal = seconds * math.exp(0.3**2 / 2) * shards / sum(1 / SLOW_TIMES if n % SLOW_ACTOR == SLOW_ACTOR - 1 else 1 for n in range(actors))
    again = sum(count > 1 for count in work.attempts.values())
    print(
        f"{actors:>6} {shards:>7} {shards / (ended - began):>9.1f} {ideal / (ended - began):>7.2f} {cpu / shards * 1e3:>9.2f}"
        f" {cpu / (ended - began):>6.0%} {(ended - max(begun.values())) / seconds:>6.1f} {again:>6} {len(work.quarantined):>5}"
        f" {took['missing'] * 1e3:>9.0f} {peak_mib() - before:>7.0f}",
        flush=True,
    )


class Sleeper:
    """An actor of Ray's that puts a part into the ledger and sleeps."""

    def __init__(self, seconds: float):
        self.seconds, self.content = seconds, os.urandom(PART_BYTES)

    def ready(self) -> None:
        return None

    def segment(self, plan: Plan, shard: Window, ledger: SceneLedger, *_: Any) -> ShardResult:
        time.sleep(self.seconds)
        return finished_shard(plan, shard, ledger, self.seconds, self.content)

    def publish(self, *_: Any) -> Published:
        return Published(Path("mask.tif"), [], [], complete=True, committed=True)


def with_ray(actors: int, shards: int, seconds: float, bundle: Bundle) -> None:
    """The same with Ray's actors, which share this machine's cores."""
    import ray

    from cluster.actors import Actors
    from cluster.session import ray_session

    with ray_session(), run_of(shards, bundle) as (work, record, _):
        crew = Actors(ray.remote(Sleeper).options(num_cpus=0.01, max_concurrency=2).remote, "nothing", lambda: actors)
        crew._start = lambda start=crew._start: start(seconds)  # type: ignore[misc]
        began, cpu = time.monotonic(), time.process_time()
        segment_scenes([work], crew, record, Metrics(bundle), accept_partial=False)
        ended, cpu = time.monotonic(), time.process_time() - cpu
    print(
        f"{actors} of Ray's actors: {shards / (ended - began):.1f} shards/s, {cpu / shards * 1e3:.2f} ms of the driver a shard", flush=True
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", default="1,8,64,512,1000")
    parser.add_argument("--shards", type=int, default=20, help="for each actor")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a shard")
    parser.add_argument("--real", type=int, default=0, metavar="N", help="Ray's actors in their place")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        save_random_bundle(Path(folder, "model"), architecture="unet", bands=3, classes=3, seed=0, arguments={"width": 4, "depth": 1})
        bundle = load_bundle(Path(folder, "model"))
        if options.real:
            with_ray(options.real, options.shards * options.real, options.seconds, bundle)
            return
        print("actors  shards  shards/s  of all  ms/shard  busy   tail  again  lost  missing/ms  +MiB")
        for actors in map(int, options.actors.split(",")):
            simulate(actors, options.shards * actors, options.seconds, bundle)


if __name__ == "__main__":
    main()
