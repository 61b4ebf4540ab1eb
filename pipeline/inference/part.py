"""A part: one shard's layers in one file, as the blocks of a COG, with its class counts, as they wait to be joined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.errors import Unreadable
from pipeline.geometry.areas import ground_areas
from pipeline.geometry.pyramid import Pyramid, average, levels_of_shards, mode
from pipeline.geometry.windows import Window
from pipeline.inference.blocks import BlockFile, Index, damaged, decompress, read_blocks, read_index
from pipeline.inference.plan import Plan
from pipeline.inference.stages import Stages
from pipeline.models.engine import layer_count

COUNTED_ROWS = 128  # at once: numpy counts in 8 to 24 bytes a pixel


class FailedWindow(NamedTuple):
    """Pixels of the scene that are nodata because they could not be read or inferred, and why."""

    row: int
    col: int
    height: int
    width: int
    reason: str


@dataclass
class Tally:
    """What was counted in a shard, an entry a class; `area_m2` is None without a place on the ground,
    `confidence` (the sum, 0..100 a pixel) is None where it was not saved."""

    pixels: list[int]
    area_m2: list[float] | None
    confidence: list[int] | None


def add_up(tallies: Sequence[Tally], classes: int) -> Tally:
    """The totals of a scene. They do not depend on the order of its parts: areas are summed exactly, then rounded."""
    pixels = np.zeros(classes, np.int64)
    for tally in tallies:
        pixels += tally.pixels
    areas = [tally.area_m2 for tally in tallies if tally.area_m2 is not None]
    confidence = [tally.confidence for tally in tallies if tally.confidence is not None]
    return Tally(
        pixels=pixels.tolist(),
        area_m2=[round(math.fsum(parts), 6) for parts in zip(*areas, strict=True)] if areas else None,
        confidence=np.sum(confidence, axis=0).tolist() if confidence else None,
    )


class PartWriter:
    """Writes the strips of a shard, from top to bottom, on a thread of its own, and counts classes on the way.

    The part holds full resolution and the overviews that lie on the scene's blocks: the mask's by mode, others by average.
    """

    def __init__(self, path: Path, shard: Window, plan: Plan, stages: Stages | None = None):
        self.shard, self.plan, self._stages, grid = shard, plan, stages or Stages(), plan.scene.grid
        self._crs = grid.rasterio_crs if plan.scene.on_ground else None
        self._confidence_layer = plan.layers.index("confidence") if "confidence" in plan.layers else None
        self._pixels = np.zeros(256, np.int64)
        self._area_m2 = np.zeros(256)
        self._confidence = np.zeros(256, np.int64)
        levels, layers = levels_of_shards(plan.region.window, plan.fine), layer_count(plan.layers, plan.classes)
        self._pyramids = [Pyramid(levels, average if layer else mode) for layer in range(layers)]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = BlockFile(path, levels, layers)
        self._writing = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._writing.shutdown()
        self._file.close()

    def write(self, window: Window, strip_LHW: np.ndarray) -> None:
        """Hand over a strip; returns while it is written, so one strip at most waits. Errors come with the next call."""
        self._wait()
        self._pending = self._writing.submit(self._timed_write, window, strip_LHW)

    def finish(self, failed: Sequence[FailedWindow]) -> Tally:
        """Write what is left, the counts and the failed windows, and return the counts."""
        self._wait()
        for layer, pyramid in enumerate(self._pyramids):
            self._file.write(layer, pyramid.finish())
        count = self.plan.classes
        tally = Tally(
            pixels=self._pixels[:count].tolist(),
            area_m2=self._area_m2[:count].tolist() if self._crs else None,
            confidence=self._confidence[:count].tolist() if self._confidence_layer is not None else None,
        )
        self._file.finish({"shard": self.shard, "tally": asdict(tally), "failed": failed})
        return tally

    def _wait(self) -> None:
        if self._pending:
            self._pending.result()

    def _timed_write(self, window: Window, strip_LHW: np.ndarray) -> None:
        with self._stages("write"):
            self._write(window, strip_LHW)

    def _write(self, window: Window, strip_LHW: np.ndarray) -> None:
        for layer, (pyramid, strip_HW) in enumerate(zip(self._pyramids, strip_LHW, strict=True)):
            self._file.write(layer, pyramid.add(strip_HW))
        for row in range(0, window.height, COUNTED_ROWS):
            rows = window._replace(row=window.row + row, height=min(COUNTED_ROWS, window.height - row))
            self._count(rows, strip_LHW[:, row : row + rows.height])

    def _count(self, window: Window, rows_LHW: np.ndarray) -> None:
        mask_HW = rows_LHW[0]
        self._pixels += np.bincount(mask_HW.ravel(), minlength=256)
        if self._crs:
            self._area_m2 += ground_areas(window, self.plan.scene.grid.affine, self._crs).totals_m2(mask_HW)
        if self._confidence_layer is not None:
            weights = rows_LHW[self._confidence_layer].ravel()
            self._confidence += np.bincount(mask_HW.ravel(), weights=weights, minlength=256).astype(np.int64)


class PartContent(NamedTuple):
    """What a part says of itself, and where its blocks are."""

    shard: Window
    tally: Tally
    failed: list[FailedWindow]
    blocks: Index


def read_part(path: Path) -> PartContent:
    """The counts and the index of a part. Raises Unreadable where it is damaged, naming the fix."""
    content, blocks = read_index(path)
    try:
        failed = [FailedWindow(*window) for window in content["failed"]]
        return PartContent(Window(*content["shard"]), Tally(**content["tally"]), failed, blocks)
    except (KeyError, TypeError) as error:
        raise damaged(path, error) from None


def check_part(path: Path, tally: Tally) -> None:
    """Read a finished part back and compare the counts of its mask. Raises OSError where they differ."""
    counts = np.zeros(256, np.int64)
    try:
        blocks = read_part(path).blocks
        for level, layers in enumerate(blocks):
            for layer, entries in enumerate(layers):
                for data in read_blocks(path, entries):
                    if level == layer == 0:
                        counts += np.bincount(decompress(data).ravel(), minlength=256)
    except Unreadable as error:
        raise OSError(f"{error}: is the disk full?") from None
    if counts[: len(tally.pixels)].tolist() != tally.pixels:
        raise OSError(f"{path}: reads back differently from what was written: is the disk full?")
