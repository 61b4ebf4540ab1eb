"""Ground areas of runs of pixels in whole quanta, so that a region's sum is exact however the raster is cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rasterio.crs import CRS
from rasterio.transform import Affine

from pipeline.geometry.areas import ground_areas
from pipeline.geometry.windows import Window

BITS = 60  # of the total area, which leaves 2^3 in an int64; what is wound past that beside the regions is wound back in differences
EARTH_M2 = 5.2e14


@dataclass
class GroundRuns:
    """Areas of runs in the raster over `region`, whose classes cover `total_m2`, taken cell by cell in `windows` in bands of `rows`.

    The windows are those in which the areas of its classes were counted: so both agree, to the quantum a pixel.
    """

    region: Window
    windows: Sequence[Window]
    rows: int
    transform: Affine
    crs: CRS
    total_m2: float

    def __post_init__(self) -> None:
        self.quantum_m2 = math.ldexp(1.0, math.frexp(self.total_m2 or EARTH_M2)[1] - BITS)
        self._band, self._table = -1, _Table.empty()

    def areas(self, first_row: int, first_pixel: np.ndarray, last_pixel: np.ndarray) -> np.ndarray:
        """The quanta in each run of a strip that begins in the raster's row `first_row`: int64. Runs are told by where in the
        strip they start and end, row by row, and are in order; below the raster they cover nothing."""
        width = self.region.width
        if first_row >= self.region.height:
            return np.zeros(len(first_pixel), np.int64)
        row, start = np.divmod(first_pixel, width)
        stop, row = start + (last_pixel - first_pixel), row + first_row
        areas = np.empty(len(row), np.int64)
        bands = row // self.rows
        for band in range(int(bands[0]), int(bands[-1]) + 1):
            some = slice(*np.searchsorted(bands, [band, band + 1]))
            areas[some] = self._table_of(band).areas(row[some] - band * self.rows, start[some], stop[some])
        return areas

    def _table_of(self, band: int) -> _Table:
        if band != self._band:
            self._band, self._table = band, self._make_table(band)
        return self._table

    def _make_table(self, band: int) -> _Table:
        strip = Window(self.region.row + band * self.rows, self.region.col, self.rows, self.region.width)
        pieces = sorted((piece for window in self.windows if (piece := window.intersection(strip))), key=lambda piece: piece.col)
        found = [ground_areas(piece, self.transform, self.crs) for piece in pieces]
        quanta = np.rint(np.concatenate([areas.area_m2 for areas in found], axis=1) / self.quantum_m2).astype(np.int64)
        starts = np.concatenate(
            [piece.col - self.region.col + _changes(areas.col_cells) for piece, areas in zip(pieces, found, strict=True)]
        )
        widths = np.diff(starts, append=self.region.width)
        cell_of_col = np.repeat(np.arange(len(starts), dtype=np.int32), widths)
        sums = np.cumsum(quanta * widths, axis=1)
        return _Table(found[0].row_cells, np.append(cell_of_col, len(starts) - 1), starts, quanta, np.pad(sums, ((0, 0), (1, 0))))


def _changes(cells: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.diff(cells, prepend=-1))


@dataclass(frozen=True)
class _Table:
    """Of the rows of a band: the cell of each row, the cell of each column (and of the end), where cells start, the quanta of a
    pixel, and of all cells before one."""

    cell_of_row: np.ndarray
    cell_of_col: np.ndarray
    starts: np.ndarray
    quanta: np.ndarray
    before: np.ndarray

    @classmethod
    def empty(cls) -> _Table:
        return cls(*[np.empty(0, np.int64)] * 5)

    def areas(self, row: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        cell_row = self.cell_of_row[row]
        return self._up_to(cell_row, stop) - self._up_to(cell_row, start)

    def _up_to(self, cell_row: np.ndarray, col: np.ndarray) -> np.ndarray:
        cell = self.cell_of_col[col]
        return self.before[cell_row, cell] + (col - self.starts[cell]) * self.quanta[cell_row, cell]
