"""The strips that polygons are made of: read from published rasters, sieved into a scratch file where small regions are to go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterWindow

from pipeline.geometry.polygons import Measure
from pipeline.geometry.sieve import SieveRound
from pipeline.geometry.windows import BLOCK, ceil_to
from pipeline.imagery import storage

Strips = Callable[[], Iterator[np.ndarray]]  # of a byte a pixel, from top to bottom


def raster_strips(dataset: DatasetReader, rows: int) -> Strips:
    """A raster, at most `rows` rows at a time, in the order and the sizes that `cuts` says."""

    def strips() -> Iterator[np.ndarray]:
        height, width = dataset.shape
        at_once = ceil_to(rows, BLOCK)  # blocks are decoded once
        for top in range(0, height, at_once):
            slab_HW = dataset.read(1, window=RasterWindow(0, top, width, min(at_once, height - top)))
            for row in range(0, len(slab_HW), rows):
                yield slab_HW[row : row + rows]

    return strips


@contextmanager
def sieved(strips: Strips, width: int, measure: Measure, minimum: int, scratch: Path) -> Iterator[Strips]:
    """The same strips, in which regions smaller than `minimum`, in the unit of `measure`, have joined neighbours.

    They lie in the file `scratch`, and another beside it, while the block lasts: a byte a pixel.
    """
    with storage.discarded(scratch), storage.discarded(scratch.with_name(f"{scratch.name}.2.tmp")) as other:
        files, shapes = [scratch, other], list[tuple[int, int]]()
        while True:
            files.reverse()
            sieve = SieveRound(width, measure, minimum)
            with files[0].open("wb") as file:
                for strip_HW in _through(sieve, strips):
                    strip_HW.tofile(file)
                    shapes.append(strip_HW.shape)
            strips, shapes = _scratch_strips(files[0], shapes), []
            if not sieve.changed:
                yield strips
                return


def _through(sieve: SieveRound, strips: Strips) -> Iterator[np.ndarray]:
    for strip_HW in strips():
        yield from sieve.push(strip_HW)
    yield from sieve.finish()


def _scratch_strips(path: Path, shapes: list[tuple[int, int]]) -> Strips:
    def strips() -> Iterator[np.ndarray]:
        with path.open("rb") as file:
            for height, width in shapes:
                yield np.fromfile(file, np.uint8, height * width).reshape(height, width)

    return strips
