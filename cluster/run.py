"""Segment scenes on Ray: plans and offsets out, counts back. Shards of all scenes share the actors; a scene is published
as soon as its last shard is done."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import ray

from cluster.actors import worker_crew
from cluster.deadlines import Deadlines
from cluster.dispatch import Crew, Task, dispatch
from cluster.environment import Device, ray_address
from cluster.metrics import Metrics
from cluster.progress import Progress
from cluster.record import RunRecord
from cluster.scenes import (
    OpenedScene,
    Request,
    SceneWork,
    begin_scenes,
    count_workers,
    expected_workers,
    room_for,
    worker_budget,
)
from cluster.session import alive_nodes, check_paths, find_device, ray_session
from pipeline.errors import Refused
from pipeline.geometry.windows import largest_first
from pipeline.imagery.raster import Scene
from pipeline.imagery.region import Region
from pipeline.inference.plan import QUANTISED, Resources
from pipeline.inference.trial import prepare_trial
from pipeline.models import allocator
from pipeline.models.bundle import Bundle
from pipeline.models.choice import Choice, Trial
from pipeline.models.engine import choose_device, describe_device
from pipeline.results.polygons import POLYGON_BYTES, PolygonOptions


def run_scenes(
    todo: Sequence[OpenedScene], bundle: Bundle, request: Request, dataset: Mapping[str, Any], record: RunRecord,
    started: Callable[[list[SceneWork], int], None],
) -> list[SceneWork]:  # fmt: skip
    """Segment and publish scenes, with an embedded Ray or on the cluster that RAY_ADDRESS names.

    All is checked before anything is written; then `started` is told of the work and of the number of actors.
    """
    with ray_session() as nodes:
        device = find_device(nodes, request.gpus)
        nodes = alive_nodes()  # one with a GPU may have come
        check_paths(nodes, [bundle.path, *sorted({path for opened in todo for path in opened.scene.read_from})], str(request.out))
        workers = expected_workers(request, device, nodes)
        resources = Resources(
            device.description, worker_budget(request, device, nodes), workers, sum(opened.region.window.pixels for opened in todo)
        )
        works = begin_scenes(
            todo, bundle, request, dataset, resources, lambda new: _choose(bundle, device, request, new, workers), workers=workers
        )
        memory_bytes = max(work.plan.memory_bytes for work in works) + (POLYGON_BYTES if request.polygons else 0)
        count = count_workers(request, works, device, nodes, memory_bytes)
        with record:  # inside the session: `ray job stop` kills 3 s after it asked, and leaving Ray takes one or two of them
            started(works, count)
            crew = worker_crew(
                bundle.path, device, cpus=device.cpus(nodes), memory_bytes=memory_bytes,
                cache_bytes=max(work.plan.cache_bytes for work in works), access=request.access,
                room=lambda: room_for(request, device, alive_nodes(), memory_bytes),
                grows=request.workers == "auto" and ray_address() != "local",
            )  # fmt: skip
            segment_scenes(works, crew, record, Metrics(bundle), accept_partial=request.accept_partial, polygons=request.polygons)
    return works


def _choose(bundle: Bundle, device: Device, request: Request, scenes: Sequence[tuple[Scene, Region]], workers: int) -> Choice:
    """Choose the engine and precision on a worker's own device, in the environment that actors have."""
    network = request.out / QUANTISED
    prepare = partial(prepare_trial, bundle, device.kind, request.settings.precision, scenes, workers=workers, kept=network)
    if device.description == describe_device(choose_device()) and (found := prepare().choose_at_once()):
        return found  # without the start of another process
    print("measuring engines, once for this model and machine ...", file=sys.stderr)
    options: Any = {"num_cpus": 1, "num_gpus": device.gpus, "runtime_env": {"env_vars": allocator.ENVIRONMENT}}
    choice: Any = ray.remote(**options)(_try_all).remote(prepare, request.access)
    try:
        return ray.get(choice)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, Refused):
            raise error.cause from None
        raise


def _try_all(prepare: Callable[[], Trial], access: Mapping[str, str]) -> Choice:
    os.environ.update(access)
    return prepare().choose()


def segment_scenes(
    works: Sequence[SceneWork], crew: Crew, record: RunRecord, metrics: Metrics, *, accept_partial: bool,
    polygons: PolygonOptions | None = None,
) -> None:  # fmt: skip
    """Do what is missing of each scene and publish it; what came of it is written into `works`, in place."""
    plans = [crew.share(work.plan) for work in works]
    left = [len(work.missing) for work in works]
    queue: deque[Task] = deque()

    def publication(number: int) -> Task:
        work = works[number]
        return Task("publish", (plans[number], work.ledger, record.run_id, accept_partial, polygons), (number, None))

    for number, work in enumerate(works):
        for shard in largest_first(work.missing):
            arguments = (plans[number], shard, work.ledger, accept_partial)
            queue.append(Task("segment", arguments, (number, shard), shard.pixels, counted=True, harmless=True))
        if not work.missing:
            queue.append(publication(number))
    progress = Progress(sum(left), sum(shard.pixels for work in works for shard in work.missing))
    deadlines = Deadlines()

    def deadline_s(task: Task) -> float:
        number, shard = task.about
        return deadlines.of_shard(shard.pixels) if shard else deadlines.of_publication(works[number].plan.region.window.pixels)

    shared: set[int] = set()
    for outcome in dispatch(queue, crew, deadline_s=deadline_s, tick=progress.tick):
        number, shard = outcome.task.about
        work = works[number]
        if shard is None:
            work.published, work.failure, work.ended = outcome.result, outcome.failure, time.time()
            record.log("scene failed" if work.failed else "scene published", work, reason=outcome.failure)
            continue
        shared |= {number} if outcome.task.shared else set()
        name = work.plan.shard_name(shard)
        work.attempts[name] = outcome.task.attempts
        left[number] -= 1
        metrics.add(outcome.result, outcome.task.attempts, sum(left))
        if outcome.failure:
            work.quarantined[shard] = outcome.failure
            record.log("shard failed", work, name, attempts=outcome.task.attempts, reason=outcome.failure)
        else:
            work.add(outcome.result)
            deadlines.add(shard.pixels, outcome.result.seconds)
            record.done(work, outcome.result, outcome.task.attempts)
        progress.add(shard.pixels)
        if left[number] == 0:
            queue.appendleft(publication(number))
    progress.close()
    for number in shared:
        works[number].ledger.sweep()  # who was slower may have left something
