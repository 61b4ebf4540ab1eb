"""A part: one shard's layers in one file, as the blocks of a COG, with what was counted in them, as they wait to be joined."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import Unreadable
from pipeline.geometry.pyramid import Pyramid, levels_of_shards
from pipeline.geometry.windows import Window
from pipeline.inference.blocks import BlockFile, Index, damaged, decompress, read_blocks, read_index
from pipeline.inference.plan import Plan
from pipeline.inference.stages import Stages
from pipeline.inference.tally import Tallied, counter_of, read_tally
from pipeline.models.layers import LAYERS, bands_of

COUNTED_ROWS = 128  # at once: numpy counts in 8 to 24 bytes a pixel


class FailedWindow(NamedTuple):
    """Pixels of the scene that are nodata because they could not be read or inferred, and why."""

    row: int
    col: int
    height: int
    width: int
    reason: str


class PartWriter:
    """Writes the strips of a shard, from top to bottom, on a thread of its own, and counts them on the way.

    The part holds full resolution and the overviews that lie on the scene's blocks.
    """

    def __init__(self, path: Path, shard: Window, plan: Plan, stages: Stages | None = None):
        self.shard, self._stages, self._counter = shard, stages or Stages(), counter_of(plan)
        levels, bands = levels_of_shards(plan.region.window, plan.fine), bands_of(plan.layers, plan.classes)
        self._pyramids = [Pyramid(levels, LAYERS[layer].reduce) for layer in bands]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = BlockFile(path, levels, len(bands))
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

    def finish(self, failed: Sequence[FailedWindow]) -> Tallied:
        """Write what is left, the counts and the failed windows, and return the counts."""
        self._wait()
        for layer, pyramid in enumerate(self._pyramids):
            self._file.write(layer, pyramid.finish())
        tally = self._counter.tally()
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
            self._counter.add(rows, strip_LHW[:, row : row + rows.height])


class PartContent(NamedTuple):
    """What a part says of itself, and where its blocks are."""

    shard: Window
    tally: Tallied
    failed: list[FailedWindow]
    blocks: Index


def read_part(path: Path) -> PartContent:
    """The counts and the index of a part. Raises Unreadable where it is damaged, naming the fix."""
    content, blocks = read_index(path)
    try:
        failed = [FailedWindow(*window) for window in content["failed"]]
        return PartContent(Window(*content["shard"]), read_tally(content["tally"]), failed, blocks)
    except (KeyError, TypeError) as error:
        raise damaged(path, error) from None


def check_part(path: Path, tally: Tallied) -> None:
    """Read a finished part back and compare what was counted in it. Raises OSError where they differ."""
    found: Any = 0
    try:
        blocks = read_part(path).blocks
        for level, layers in enumerate(blocks):
            for layer, entries in enumerate(layers):
                for data in read_blocks(path, entries):
                    if level == layer == 0:
                        found += tally.fingerprint_of(decompress(data, tally.dtype))
    except Unreadable as error:
        raise OSError(f"{error}: is the disk full?") from None
    if list(found) != tally.fingerprint():
        raise OSError(f"{path}: reads back differently from what was written: is the disk full?")
