"""A part: one shard's layers in one file, with its class counts, as they wait to be joined into one COG."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.transform import Affine
from rasterio.windows import Window as RasterioWindow

from pipeline.errors import Unreadable
from pipeline.geometry.areas import ground_areas
from pipeline.geometry.windows import BLOCK, Window
from pipeline.inference.plan import Plan
from pipeline.models.bundle import NODATA
from pipeline.models.engine import layer_count

TAG = "TILEWRIGHT_PART"
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


class PartWriter:
    """Writes the strips of a shard, from top to bottom, on a thread of its own, and counts classes on the way."""

    def __init__(self, path: Path, shard: Window, plan: Plan):
        self.shard, self.plan, grid = shard, plan, plan.scene.grid
        self._crs = grid.rasterio_crs if plan.scene.on_ground else None
        self._confidence_layer = plan.layers.index("confidence") if "confidence" in plan.layers else None
        self._pixels = np.zeros(256, np.int64)
        self._area_m2 = np.zeros(256)
        self._confidence = np.zeros(256, np.int64)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._dataset = rasterio.open(
            path, "w", driver="GTiff", dtype="uint8", nodata=NODATA, count=layer_count(plan.layers, plan.classes),
            height=shard.height, width=shard.width, transform=grid.affine * Affine.translation(shard.col, shard.row),
            crs=grid.rasterio_crs, tiled=True, blockxsize=BLOCK, blockysize=BLOCK, interleave="band",
            compress="zstd", zstd_level=1,
        )  # fmt: skip
        self._writing = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._writing.shutdown()
        self._dataset.close()

    def write(self, window: Window, strip_LHW: np.ndarray) -> None:
        """Hand over a strip; returns while it is written, so one strip at most waits. Errors come with the next call."""
        self._wait()
        self._pending = self._writing.submit(self._write, window, strip_LHW)

    def finish(self, failed: Sequence[FailedWindow]) -> Tally:
        """Write the counts and the failed windows into the part's tag, and return the counts."""
        self._wait()
        count = self.plan.classes
        tally = Tally(
            pixels=self._pixels[:count].tolist(),
            area_m2=self._area_m2[:count].tolist() if self._crs else None,
            confidence=self._confidence[:count].tolist() if self._confidence_layer is not None else None,
        )
        content = {"shard": list(self.shard), "tally": asdict(tally), "failed": [list(window) for window in failed]}
        self._dataset.update_tags(**{TAG: json.dumps(content)})
        return tally

    def _wait(self) -> None:
        if self._pending:
            self._pending.result()

    def _write(self, window: Window, strip_LHW: np.ndarray) -> None:
        inside = window.relative_to(self.shard)
        self._dataset.write(strip_LHW, window=RasterioWindow(inside.col, inside.row, inside.width, inside.height))
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


def count_values(dataset: DatasetReader) -> np.ndarray:
    """How often each value, 0..255, is in the first band of a uint8 raster, read block by block."""
    counts = np.zeros(256, np.int64)
    for _, window in dataset.block_windows(1):
        counts += np.bincount(dataset.read(1, window=window).ravel(), minlength=256)
    return counts


def check_part(path: Path, tally: Tally) -> None:
    """Read the mask of a finished part back and compare its counts. Raises OSError where they differ.

    On a full disk GDAL leaves a file that opens, and fails only when it is read.
    """
    try:
        with rasterio.open(path) as dataset:
            counts = count_values(dataset)
    except RasterioError as error:
        raise OSError(f"{path}: cannot be read back ({error}): is the disk full?") from None
    if counts[: len(tally.pixels)].tolist() != tally.pixels:
        raise OSError(f"{path}: reads back differently from what was written: is the disk full?")


class PartContent(NamedTuple):
    """What a part says of itself."""

    shard: Window
    tally: Tally
    failed: list[FailedWindow]


def read_part(path: Path) -> PartContent:
    """The counts of a part, from its tag. Raises Unreadable where it is damaged, naming the fix."""
    try:
        with rasterio.open(path) as dataset:
            content = json.loads(dataset.tags()[TAG])
    except (RasterioError, KeyError, ValueError) as error:
        raise Unreadable(f"{path}: is damaged ({error}); remove it and start again") from None
    failed = [FailedWindow(*window) for window in content["failed"]]
    return PartContent(Window(*content["shard"]), Tally(**content["tally"]), failed)
