"""Segment one shard in one process: read, infer, stitch, write; and a whole scene without Ray.

A reader thread keeps the next tiles ready and a writer thread puts finished strips into the part while the network runs.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from pipeline.errors import Refused, Unreadable
from pipeline.geometry.stitch import Strips
from pipeline.geometry.windows import Tile, Window
from pipeline.imagery import storage
from pipeline.imagery.catalogue import find_sources
from pipeline.imagery.raster import Scene, open_scene
from pipeline.imagery.reader import Pixels, SceneReader, check_scaling
from pipeline.imagery.region import Region
from pipeline.inference.cog import write_mask
from pipeline.inference.ledger import SceneLedger
from pipeline.inference.part import FailedWindow, PartWriter, Tally, check_part
from pipeline.inference.plan import Auto, Plan, Settings, make_plan, memory_allotted
from pipeline.models.bundle import NODATA, Bundle, load_bundle
from pipeline.models.engine import Engine, Scaling, choose_device, describe_device, layer_count

Item = TypeVar("Item")
Done = TypeVar("Done")


@dataclass(frozen=True)
class ShardResult:
    """What became of a shard: its class counts, the windows that failed, and how long it took."""

    shard: str
    pixels: int
    tally: Tally
    failed: list[FailedWindow]
    seconds: float


def segment_shard(shard: Window, plan: Plan, reader: SceneReader, engine: Engine, scaling: Scaling, part: Path) -> ShardResult:
    """Segment a shard and write its part to the path `part`.

    Windows that cannot be read or inferred are nodata there, and named in the result.
    """
    began = time.monotonic()
    layers = layer_count(plan.layers, plan.classes)
    strips = Strips(shard, layers, NODATA)
    failed: list[FailedWindow] = []
    rows = plan.tile_rows(shard)
    with ThreadPoolExecutor(1) as reading, PartWriter(part, shard, plan) as writer:
        ahead = prefetched(reading, lambda tile: _read(tile, plan, reader), chain.from_iterable(rows), 2 * plan.batch)
        for row in rows:
            for group in (row[start : start + plan.batch] for start in range(0, len(row), plan.batch)):
                failed += _infer(group, ahead, plan, engine, scaling, strips)
            for window, strip_LHW in strips.finished(row[0].core.rows.stop):
                writer.write(window, strip_LHW)
        tally = writer.finish(failed)
    check_part(part, tally)
    return ShardResult(plan.shard_name(shard), shard.pixels, tally, failed, time.monotonic() - began)


@dataclass(frozen=True)
class _TileInput:
    """A tile as it was read: `wanted_HW` says which pixels of its core are valid and inside the region."""

    pixels: Pixels | None
    wanted_HW: np.ndarray | None
    reason: str | None = None


def _read(tile: Tile, plan: Plan, reader: SceneReader) -> _TileInput:
    inside_HW = plan.region.inside(tile.core)
    if inside_HW is not None and not inside_HW.any():
        return _TileInput(None, None)
    try:
        pixels = reader.read(tile.read)
    except Unreadable as error:
        return _TileInput(None, inside_HW, str(error))
    wanted_HW = np.ones((tile.core.height, tile.core.width), bool) if inside_HW is None else inside_HW
    if pixels.valid_CHW is not None:
        wanted_HW &= pixels.valid_CHW[:, *tile.core.relative_to(tile.read).slices()].all(axis=0)
    return _TileInput(pixels if wanted_HW.any() else None, wanted_HW)


def _infer(
    group: Sequence[Tile], ahead: Iterator[_TileInput], plan: Plan, engine: Engine, scaling: Scaling, strips: Strips
) -> list[FailedWindow]:
    """Infer a batch of tiles and paste their cores, in place. Tiles with nothing to infer stay nodata."""
    inputs = [next(ahead) for _ in group]
    failed = [FailedWindow(*tile.core, read.reason) for tile, read in zip(group, inputs, strict=True) if read.reason]
    work = [(tile, read) for tile, read in zip(group, inputs, strict=True) if read.pixels is not None]
    if not work:
        return failed
    cores = [tile.core.relative_to(tile.read) for tile, _ in work]
    try:
        results = engine([read.pixels for _, read in work if read.pixels], cores, scaling, plan.batch)
    except Unreadable as error:
        return failed + [FailedWindow(*tile.core, str(error)) for tile, _ in work]
    for (tile, read), layers_LHW in zip(work, results, strict=True):
        if layers_LHW is None:
            failed.append(FailedWindow(*tile.core, "the network's output is not finite"))
            continue
        layers_LHW[:, ~read.wanted_HW] = NODATA  # type: ignore[operator]
        strips.paste_core(layers_LHW, tile.core)
    return failed


def prefetched(pool: ThreadPoolExecutor, work: Callable[[Item], Done], items: Iterable[Item], ahead: int) -> Iterator[Done]:
    """`work` of each item, in order, with up to `ahead` items under way in the pool; its exceptions reach the caller."""
    waiting: deque[Future[Done]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class Segmenter:
    """A model resident on a device, and the scenes that it has open: what an actor is, without Ray."""

    OPEN_SCENES = 8

    def __init__(self, bundle: str, device: str):
        self.bundle, self.device = load_bundle(bundle), device
        self._engines: dict[tuple[str, tuple[str, ...]], Engine] = {}
        self._readers: OrderedDict[Scene, SceneReader] = OrderedDict()

    def segment(self, plan: Plan, shard: Window, ledger: SceneLedger, accept_partial: bool) -> ShardResult:
        """Segment a shard and publish its part in the ledger.

        Raises Unreadable where the scene cannot be opened any more, Refused where the bundle is not the plan's.
        """
        if plan.model_id != self.bundle.model_id:
            raise Refused(f"{self.bundle.path}: is not the model that this was planned with: put the same bundle on every node")
        torch.set_num_threads(plan.threads)
        key = (plan.precision, plan.layers)
        if key not in self._engines:
            self._engines[key] = Engine(self.bundle, self.device, *key)
        with storage.discarded(ledger.temporary(plan.shard_name(shard))) as part:
            result = segment_shard(shard, plan, self._reader(plan.scene), self._engines[key], plan.scaling(self.bundle), part)
            ledger.publish_part(result.shard, part, partial=bool(result.failed) and not accept_partial)
        return result

    def _reader(self, scene: Scene) -> SceneReader:
        if scene not in self._readers:
            if len(self._readers) >= self.OPEN_SCENES:
                self._readers.popitem(last=False)[1].close()
            try:
                self._readers[scene] = SceneReader(scene)
            except Refused as error:
                raise Unreadable(f"cannot be opened any more: {error}") from None
        self._readers.move_to_end(scene)
        return self._readers[scene]


def segment_scene(
    scene: str | Path, model: str | Path, output: str | Path, *, settings: Settings = Settings(), batch: int | Auto = "auto",
    workers: int | None = None,
) -> dict[str, int]:  # fmt: skip
    """Segment one scene to the COG `output` in this process, without Ray, and return the pixel count of each class.

    `scene` is a raster or a STAC item, `model` a bundle. On a CPU `workers` threads (by default one a core) run a stream
    of shards each. Raises Refused for input that does not fit, and Unreadable where windows failed: then `output` is not
    written, and what could be segmented lies beside it as `<stem>.partial.tif`.
    """
    target, bundle = storage.local_path(output), load_bundle(model)
    sources = find_sources([str(scene)])
    if len(sources) != 1:
        raise Refused(f"{scene}: holds {len(sources)} scenes; segment_scene takes one")
    storage.check_writable(target.parent)
    opened = open_scene(sources[0], bundle.bands)
    check_scaling(opened, bundle.bands)
    device = choose_device()
    streams = 1 if device == "cuda" else workers or len(os.sched_getaffinity(0))
    plan = make_plan(
        opened, Region(opened.grid.window), bundle, settings, batch=batch, device=describe_device(device),
        budget_bytes=memory_allotted() // streams,
    )  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tilewright-", dir=target.parent) as folder:
        results = _segment_all(plan, bundle, device, Path(folder), streams)
        parts = [(shard, Path(folder, f"{plan.shard_name(shard)}.part")) for shard in plan.shards()]
        failed = [window for result in results for window in result.failed]
        mask = target.with_name(f"{target.stem}.partial.tif") if failed else target
        write_mask(parts, Path(folder, "mask.tmp"), plan, bundle, input_id=opened.input_id)
        storage.publish(Path(folder, "mask.tmp"), mask)
    if failed:
        raise Unreadable(f"{len(failed)} windows failed, {mask} holds the rest; the first: {failed[0].reason}")
    totals = np.sum([result.tally.pixels for result in results], axis=0)
    return {entry.name: int(count) for entry, count in zip(bundle.classes, totals, strict=True)}


def seconds_a_tile(plan: Plan, bundle: Bundle, device: str) -> float:
    """How long one tile of a plan takes on this machine: the second of two, on zeros."""
    before = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        engine = Engine(bundle, device, plan.precision, plan.layers)
        height, width = min(plan.tile, plan.padded_height), min(plan.tile, plan.padded_width)
        blank = Pixels(np.zeros((len(bundle.bands), height, width), plan.scene.dtype), None)
        for _ in range(2):
            began = time.monotonic()
            engine([blank], [Window(0, 0, height, width)], plan.scaling(bundle), 1)
        return time.monotonic() - began
    finally:
        torch.set_num_threads(before)


def _segment_all(plan: Plan, bundle: Bundle, device: str, folder: Path, streams: int) -> list[ShardResult]:
    """All shards of a plan, by `streams` threads that share the network and keep a reader each."""
    before = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        engine = Engine(bundle, device, plan.precision, plan.layers)
        with ExitStack() as readers, ThreadPoolExecutor(streams) as pool:
            mine = threading.local()

            def segment(shard: Window) -> ShardResult:
                if not hasattr(mine, "reader"):
                    mine.reader = readers.enter_context(SceneReader(plan.scene))
                part = folder / f"{plan.shard_name(shard)}.part"
                return segment_shard(shard, plan, mine.reader, engine, plan.scaling(bundle), part)

            return list(pool.map(segment, plan.shards()))
    finally:
        torch.set_num_threads(before)
