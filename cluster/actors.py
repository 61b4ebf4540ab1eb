"""The actors: each keeps a model on its device and scenes open; offsets go in, counts come out, never pixels."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.deadlines import GROW_S
from cluster.dispatch import Lost, reason_of
from cluster.environment import Device
from cluster.session import Head
from pipeline.geometry.windows import Window
from pipeline.inference.ledger import SceneLedger
from pipeline.inference.plan import GIB, Plan
from pipeline.inference.segment import Segmenter, ShardResult
from pipeline.models import allocator
from pipeline.results.polygons import PolygonOptions
from pipeline.results.publish import Published, publish_scene

HIRE_EVERY_S = 5.0  # as nodes come and go
GROW_AT_ONCE = 8  # actors that nodes are started for, while there are fewer
AT_ONCE = 2  # tasks in one actor: while a shard has the device, the next one reads and the one before is written


class Worker:
    """A Segmenter behind Ray, which also publishes scenes, so that the driver never handles a raster."""

    def __init__(self, bundle: str, device: str, access: Mapping[str, str]):
        os.environ.update(access)
        self.bundle, self.device = bundle, device

    def ready(self) -> None:
        """Load the model. It comes before all else, also after a restart, and raises Refused where the bundle is wrong."""
        warnings.filterwarnings("ignore", "Dataset has no geotransform")  # as rasterio says; said once, in the plan's notes
        self.segmenter = Segmenter(self.bundle, self.device)

    def segment(self, plan: Plan, shard: Window, ledger: SceneLedger, accept_partial: bool, attempt: int) -> ShardResult:
        return self.segmenter.segment(plan, shard, ledger, accept_partial, attempt)

    def publish(
        self, plan: Plan, ledger: SceneLedger, run_id: str, accept_partial: bool, polygons: PolygonOptions | None
    ) -> Published:  # fmt: skip
        return publish_scene(ledger, plan, self.segmenter.bundle, run_id, accept_partial=accept_partial, polygons=polygons)


class Actors:
    """The crew of `dispatch`, of Ray's actors: `start` starts one, which `needs` that much, and there is `room` for so many now.

    Where the cluster `grows`, there are more of them if that pays: those for which there is no room wait, and that they do tells an
    autoscaler to start nodes. A cluster without one leaves them waiting.
    """

    def __init__(self, start: Callable[[], Any], needs: str, room: Callable[[], int], grows: bool = False):
        self._start, self._needs, self._room, self._grows = start, needs, room, grows
        self._hired, self._look_at, self._head = 0, 0.0, Head()

    def share(self, value: Any) -> Any:
        """Put a value into Ray's object store."""
        return ray.put(value)

    def hire(self, tasks: int, seconds: float) -> list[Any]:
        """Start as many actors as there is work and room for; and, of those for which nodes would have to come, as many as have
        GROW_S of work each, but at most twice as many as there is room for, or a few."""
        if (now := time.monotonic()) < self._look_at:
            return []
        self._look_at = now + HIRE_EVERY_S
        if not self._head.answers():
            return []
        most = room = self._room()
        if self._grows:
            most = max(room, min(int(seconds / GROW_S), max(2 * room, GROW_AT_ONCE)))
        new = [self._start() for _ in range(min(tasks, most - self._hired))]
        self._hired += len(new)
        return new

    def wait(self, calls: Sequence[Any], seconds: float) -> list[Any]:
        """All that is answered, once something is."""
        first, others = ray.wait(list(calls), num_returns=1, timeout=seconds, fetch_local=False)
        if not first or not others:
            return first
        return first + ray.wait(others, num_returns=len(others), timeout=0, fetch_local=False)[0]

    def answer(self, call: Any) -> Any:
        """What the method returned, or raised."""
        try:
            return ray.get(call)
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except RayError as error:  # the actor died, or its node, with an answer that was still there
            raise Lost(reason_of(error)) from None

    def end(self, handle: Any, *, again: bool) -> None:
        """Kill an actor, for good or to be started anew."""
        self._hired -= not again
        ray.kill(handle, no_restart=not again)

    def check(self) -> None:
        """Raise RuntimeError where Ray's head has not answered for too long."""
        self._head.check()

    def missing(self) -> str:
        """What actors that are not up wait for."""
        return f"each worker needs {self._needs}: does a node have that free?"


def worker_crew(
    bundle: str, device: Device, *, cpus: int, memory_bytes: int, cache_bytes: int, access: Mapping[str, str], room: Callable[[], int],
    grows: bool,
) -> Actors:  # fmt: skip
    """The crew of a run, each with cores, or a GPU or a part of one, and its computed memory reserved.

    `access` says where s3:// is; it travels as an argument, since Ray writes a runtime environment to its logs. A killed actor
    is started again by Ray; what it was doing is retried by `dispatch`, which counts attempts.
    """
    options = {
        "num_cpus": cpus, "num_gpus": device.gpus, "memory": memory_bytes,
        "max_restarts": -1, "max_task_retries": 0, "max_concurrency": AT_ONCE,
        "runtime_env": {"env_vars": allocator.ENVIRONMENT | {"GDAL_CACHEMAX": str(cache_bytes // 2**20 + 1)}},
    }  # fmt: skip
    start = partial(ray.remote(Worker).options(**options).remote, bundle, device.kind, access)
    gpus = f"{device.gpus:g} GPU, " if device.gpus else ""
    return Actors(start, f"{gpus}{cpus} CPU and {memory_bytes / GIB:.1f} GiB", room, grows)
