"""Which share of which pixel each parcel covers, exactly, computed once for a grid and kept on disk for all that is asked of it.

Parcels are worked on in groups: those whose bounding box begins in one cell of the grid, with the window that holds them all; a
parcel larger than a cell alone, window by window. So memory follows the cell, whatever the sizes of scene and parcels.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import shapely
from exactextract import exact_extract
from exactextract.feature import FeatureSource, JSONFeature
from exactextract.raster import RasterSource

from pipeline.geometry.windows import Span, Window, cells

CELL = 1024  # px a side
MOST_PIXELS = 4 * CELL * CELL  # of the bounding boxes in a group
CODEC = pa.Codec("lz4")


class Piece(NamedTuple):
    """The pixels of some parcels in one window of a grid; `whole` where no pixel of them lies in another piece.

    Entry n is pixel `pixel_N[n]` of the window, row after row, covered by parcel `parcels_G[parcel_N[n]]`.
    """

    window: Window
    parcels_G: np.ndarray  # places in the array of parcels, int64
    parcel_N: np.ndarray  # int32, rising
    pixel_N: np.ndarray  # int32
    coverage_N: np.ndarray  # float32, above 0 and at most 1
    whole: bool


class _Kept(NamedTuple):
    """Where a piece's arrays are in the file: begin, bytes, and bytes unpacked of each."""

    window: Window
    parcels_G: np.ndarray
    whole: bool
    arrays: list[tuple[int, int, int]]


class Coverage:
    """The pieces of parcels on a grid, in an order that keeps windows together. They are kept in a temporary file that has no name."""

    def __init__(self, pixels: np.ndarray, height: int, width: int):
        """`pixels` are polygons in (col, row), empty where there is none; what of them lies outside `height` x `width` is left out."""
        self._file = tempfile.TemporaryFile(prefix="tilewright-")  # noqa: SIM115 - it lives as long as this
        self._kept = [self._keep(piece) for piece in _pieces(pixels, height, width)]
        self._file.flush()

    def __iter__(self) -> Iterator[Piece]:
        for window, parcels_G, whole, places in self._kept:
            counts, steps, coverage_N = (self._read(*place) for place in places)
            parcel_N = np.repeat(np.arange(len(parcels_G), dtype=np.int32), counts.view(np.int32))
            yield Piece(window, parcels_G, parcel_N, np.cumsum(steps.view(np.int32), dtype=np.int32), coverage_N.view(np.float32), whole)

    def _keep(self, piece: Piece) -> _Kept:
        counts = np.bincount(piece.parcel_N, minlength=len(piece.parcels_G)).astype(np.int32)
        steps = np.diff(piece.pixel_N, prepend=np.int32(0))  # mostly 1, as are coverages: packed they are a sixth
        places = []
        for values in (counts, steps, piece.coverage_N):
            packed = CODEC.compress(values.tobytes(), asbytes=True)
            places.append((self._file.tell(), len(packed), values.nbytes))
            self._file.write(packed)
        return _Kept(piece.window, piece.parcels_G, piece.whole, places)

    def _read(self, begin: int, packed: int, size: int) -> np.ndarray:
        content = os.pread(self._file.fileno(), packed, begin)
        return np.frombuffer(CODEC.decompress(content, decompressed_size=size, asbytes=True), np.uint8)


def _pieces(pixels: np.ndarray, height: int, width: int) -> Iterator[Piece]:
    boxes = shapely.bounds(pixels).reshape(-1, 4)
    numbers = np.flatnonzero(np.isfinite(boxes).all(axis=1))
    left, top, right, bottom = boxes[numbers].T
    rows = np.clip(np.stack([np.floor(top), np.ceil(bottom)]), 0, height).astype(np.int64)
    cols = np.clip(np.stack([np.floor(left), np.ceil(right)]), 0, width).astype(np.int64)
    size = (rows[1] - rows[0]) * (cols[1] - cols[0])
    large = np.maximum(rows[1] - rows[0], cols[1] - cols[0]) > CELL
    for group in _groups(rows[0] // CELL, cols[0] // CELL, size, np.flatnonzero((size > 0) & ~large)):
        down, across = (Span(int(low[group].min()), int(high[group].max())) for low, high in (rows, cols))
        yield _piece(Window.of(down, across), numbers[group], pixels, whole=True)
    for each in np.flatnonzero((size > 0) & large):
        for down in cells(Span(*map(int, rows[:, each])), CELL):
            for across in cells(Span(*map(int, cols[:, each])), CELL):
                piece = _piece(Window.of(down, across), numbers[each : each + 1], pixels, whole=False)
                if len(piece.parcel_N):
                    yield piece


def _groups(row_cell: np.ndarray, col_cell: np.ndarray, size: np.ndarray, members: np.ndarray) -> Iterator[np.ndarray]:
    """The members of each cell; of one where parcels lie over each other several groups, so that none holds many more pixels."""
    order = members[np.lexsort((col_cell[members], row_cell[members]))]
    new = (np.diff(row_cell[order], prepend=-1) != 0) | (np.diff(col_cell[order], prepend=-1) != 0)
    for cell in np.split(order, np.flatnonzero(new)[1:]):
        if len(cell):
            full = np.cumsum(size[cell]) // MOST_PIXELS
            yield from np.split(cell, np.flatnonzero(np.diff(full)) + 1)


def _piece(window: Window, parcels_G: np.ndarray, pixels: np.ndarray, *, whole: bool) -> Piece:
    upright = shapely.transform(pixels[parcels_G], lambda xy: xy * (1, -1))
    found = exact_extract(_Blank(window), _Features(shapely.to_wkb(upright)), ["cell_id", "coverage"], output="pandas")
    counts = [len(each) for each in found["coverage"]]
    parcel_N = np.repeat(np.arange(len(parcels_G), dtype=np.int32), counts)
    pixel_N, coverage_N = (np.concatenate(found[name].to_list()) for name in ("cell_id", "coverage"))
    return Piece(window, parcels_G, parcel_N, pixel_N.astype(np.int32), np.minimum(coverage_N, 1).astype(np.float32), whole)


class _Blank(RasterSource):
    """The pixels of a window, for exactextract: y is minus the row, and the values do not matter."""

    def __init__(self, window: Window):
        super().__init__()
        self.set_name("blank")
        self._window = window

    def res(self) -> tuple[float, float]:
        return 1.0, 1.0

    def extent(self) -> tuple[float, float, float, float]:
        window = self._window
        return float(window.col), -float(window.rows.stop), float(window.cols.stop), -float(window.row)

    def read_window(self, x0: int, y0: int, nx: int, ny: int) -> np.ndarray:
        return np.zeros((ny, nx), np.uint8)

    def nodata_value(self) -> None:
        return None

    def srs_wkt(self) -> None:
        return None


class _Features(FeatureSource):
    """Polygons as WKB, which exactextract reads ten times as fast as the GeoJSON it makes of a GeoDataFrame."""

    def __init__(self, polygons: np.ndarray):
        super().__init__()
        self._polygons = polygons

    def count(self) -> int:
        return len(self._polygons)

    def __iter__(self) -> Iterator[_Feature]:
        return map(_Feature, self._polygons)

    def srs_wkt(self) -> None:
        return None


class _Feature(JSONFeature):
    def __init__(self, polygon: bytes):
        super().__init__()
        self._polygon = polygon

    def geometry(self) -> bytes:
        return self._polygon
