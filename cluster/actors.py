"""The actors: each keeps a model on its device and scenes open; offsets go in, counts come out, never pixels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import ray
from rasterio.errors import NotGeoreferencedWarning

from cluster.environment import Device
from pipeline.geometry.windows import Window
from pipeline.inference.ledger import SceneLedger
from pipeline.inference.plan import Plan
from pipeline.inference.segment import Segmenter, ShardResult
from pipeline.models import allocator
from pipeline.results.polygons import PolygonOptions
from pipeline.results.publish import Published, publish_scene

AT_ONCE = 2  # tasks in one actor: while a shard has the device, the next one reads and the one before is written


class Worker:
    """A Segmenter behind Ray, which also publishes scenes, so that the driver never handles a raster."""

    def __init__(self, bundle: str, device: str, access: Mapping[str, str]):
        os.environ.update(access)
        self.bundle, self.device = bundle, device

    def ready(self) -> None:
        """Load the model. It comes before all else, also after a restart, and raises Refused where the bundle is wrong."""
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # said once, in the plan's notes
        self.segmenter = Segmenter(self.bundle, self.device)

    def segment(self, plan: Plan, shard: Window, ledger: SceneLedger, accept_partial: bool, attempt: int) -> ShardResult:
        return self.segmenter.segment(plan, shard, ledger, accept_partial, attempt)

    def publish(
        self, plan: Plan, ledger: SceneLedger, run_id: str, accept_partial: bool, polygons: PolygonOptions | None
    ) -> Published:  # fmt: skip
        return publish_scene(ledger, plan, self.segmenter.bundle, run_id, accept_partial=accept_partial, polygons=polygons)


def start_actors(
    count: int, bundle: str, device: Device, *, memory_bytes: int, cache_bytes: int, access: Mapping[str, str]
) -> list[Any]:  # fmt: skip
    """Start `count` actors, each with a core or a GPU of its own and its computed memory reserved.

    `access` says where s3:// is; it travels as an argument, since Ray writes a runtime environment to its logs. A killed actor
    is started again by Ray; what it was doing is retried by `dispatch`, which counts attempts.
    """
    options = {
        "num_cpus": 1, "num_gpus": int(device.kind == "cuda"), "memory": memory_bytes,
        "max_restarts": -1, "max_task_retries": 0, "max_concurrency": AT_ONCE,
        "runtime_env": {"env_vars": allocator.ENVIRONMENT | {"GDAL_CACHEMAX": str(cache_bytes // 2**20 + 1)}},
    }  # fmt: skip
    start = ray.remote(Worker).options(**options)
    return [start.remote(bundle, device.kind, access) for _ in range(count)]
