"""Segment a little in this process: a day's scenes of a small region are done before Ray would have started."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cluster.deadlines import ATTEMPTS
from cluster.record import RunRecord
from cluster.scenes import OpenedScene, Request, SceneWork, begin_scenes
from pipeline.errors import Unreadable
from pipeline.imagery import storage
from pipeline.inference.plan import QUANTISED, Resources, memory_allotted
from pipeline.inference.segment import Segmenter
from pipeline.inference.trial import prepare_trial
from pipeline.models.allocator import keep_freed_memory
from pipeline.models.bundle import Bundle
from pipeline.models.engine import choose_device, describe_device
from pipeline.results.publish import publish_scene

LITTLE_PX = 4 * 2**20  # a few seconds of one core


def is_little(todo: Sequence[OpenedScene]) -> bool:
    """Whether work is done sooner without Ray: there is no cluster and no GPU, and little of it."""
    alone = not os.environ.get("RAY_ADDRESS") and choose_device() == "cpu"
    return alone and sum(opened.region.window.pixels for opened in todo) <= LITTLE_PX


def run_here(
    todo: Sequence[OpenedScene], bundle: Bundle, request: Request, dataset: Mapping[str, Any], record: RunRecord,
    started: Callable[[list[SceneWork], int], None],
) -> list[SceneWork]:  # fmt: skip
    """What `cluster.run.run_scenes` does, one shard after another, with the same bytes as result."""
    keep_freed_memory()
    kind = choose_device()
    pixels = sum(opened.region.window.pixels for opened in todo)
    resources = Resources(describe_device(kind), request.memory_bytes or memory_allotted(), 1, pixels)

    def choose(new: Any) -> Any:
        return prepare_trial(bundle, kind, request.settings.precision, new, workers=1, kept=request.out / QUANTISED).choose()

    works = begin_scenes(todo, bundle, request, dataset, resources, choose, workers=1)
    with record:
        started(works, 1)
        segmenter = Segmenter(bundle.path, kind)
        for work in works:
            _segment(work, segmenter, record, request)
    return works


def _segment(work: SceneWork, segmenter: Segmenter, record: RunRecord, request: Request) -> None:
    """Do what is missing of a scene and publish it, in up to three attempts; what came of it is written into `work`, in place.

    Another driver that finishes the scene sweeps our temporary files away with its own: then the next attempt finds it done.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _attempt(work, segmenter, record, request, attempt)
            break
        except Unreadable as error:
            work.failure = str(error)
            break
        except FileNotFoundError as error:
            if attempt == ATTEMPTS or isinstance(error, storage.OUT_OF_REACH):
                raise
    work.ended = time.time()
    record.log("scene failed" if work.failed else "scene published", work, reason=work.failure)


def _attempt(work: SceneWork, segmenter: Segmenter, record: RunRecord, request: Request, attempt: int) -> None:
    for shard in work.ledger.missing(work.plan):
        work.attempts[work.plan.shard_name(shard)] = attempt
        result = segmenter.segment(work.plan, shard, work.ledger, request.accept_partial, attempt)
        work.add(result)
        record.done(work, result, attempt)
    work.published = publish_scene(
        work.ledger, work.plan, segmenter.bundle, record.run_id, accept_partial=request.accept_partial, polygons=request.polygons
    )
