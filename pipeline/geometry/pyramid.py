"""Cut the rows of a layer into 512 px blocks, level by level, each half the size of the one before: what a COG holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.geometry.windows import BLOCK, Window, ceil_to

NODATA = 255  # of bytes
Reduce = Callable[[np.ndarray], np.ndarray]


class Level(NamedTuple):
    """The size of one level of a raster, in px."""

    height: int
    width: int

    @property
    def block_rows(self) -> int:
        return -(-self.height // BLOCK)

    @property
    def block_cols(self) -> int:
        return -(-self.width // BLOCK)


class Block(NamedTuple):
    """512 x 512 px of a level, at block row `row` and block column `col`; beyond the level's edge they are nodata."""

    level: int
    row: int
    col: int
    pixels_HW: np.ndarray


def nodata_of(dtype: npt.DTypeLike) -> float:
    """What stands for a pixel without data: 255 among bytes (class ids, percentages), NaN among floats."""
    return NODATA if np.dtype(dtype) == np.uint8 else np.nan


def level_sizes(height: int, width: int) -> list[Level]:
    """Full resolution and its overviews: as many as GDAL's COG driver makes, halved until both sides are at most 512 px.

    GDAL rounds odd sizes down and stretches the cells of that level; here they are rounded up, so that a cell is
    always 2 x 2 and the last one covers what is there. Sizes, like pixels, differ from GDAL's only below an odd one.

    >>> level_sizes(1025, 700)
    [Level(height=1025, width=700), Level(height=513, width=350)]
    """
    count = 1
    while max(height, width) >> count - 1 > BLOCK:
        count += 1
    return [Level(-(-height // 2**level), -(-width // 2**level)) for level in range(count)]


def levels_of_shards(region: Window, shard: int) -> int:
    """How many levels of `region` its shards can make by themselves: those where every border of a shard is one of a block.

    >>> levels_of_shards(Window(0, 0, 9000, 9000), 2048), levels_of_shards(Window(512, 0, 9000, 9000), 2048)
    (3, 1)
    """
    borders = [start - span.start for span in (region.rows, region.cols) for start in range(_next(span.start, shard), span.stop, shard)]
    aligned = (level for level in range(len(level_sizes(region.height, region.width)), 0, -1))
    return next(count for count in aligned if not any(border % (BLOCK << count - 1) for border in borders))


def _next(start: int, shard: int) -> int:
    return start // shard * shard + shard


def mode(rows_HW: np.ndarray) -> np.ndarray:
    """Half the rows and columns of uint8 classes: the most frequent of each 2 x 2 pixels, nodata only where all four are.

    Of a tie the class that is complete first, row by row, wins: (0, 1; 1, 0) is 1. That is GDAL's MODE.
    """
    a, b, c, d = _quarters(rows_HW)
    chosen = _choose(a != NODATA, a, _choose(b != NODATA, b, _choose(c != NODATA, c, d)))
    chosen = _choose((d != NODATA) & ((d == a) | (d == b) | (d == c)), d, chosen)
    chosen = _choose((c != NODATA) & ((c == a) | (c == b)), c, chosen)
    return _choose((a != NODATA) & (a == b), a, chosen)


def average(rows_HW: np.ndarray) -> np.ndarray:
    """Half the rows and columns of uint8 values: the mean of the valid ones of each 2 x 2 pixels, halves rounded up (GDAL's AVERAGE)."""
    quarters = [quarter.astype(np.uint16) for quarter in _quarters(rows_HW)]
    counted = sum((quarter + 1024) * (quarter != NODATA) for quarter in quarters)  # 1024 x how many are valid, plus their sum
    return _MEANS[counted]


def mean(rows_HW: np.ndarray) -> np.ndarray:
    """Half the rows and columns of float32 values: the mean of the valid ones of each 2 x 2 pixels, summed in fp64 (GDAL's AVERAGE)."""
    quarters = [rows_HW[row::2, col::2] for row in (0, 1) for col in (0, 1)]
    counted = np.zeros(quarters[0].shape, np.uint8)
    total = np.zeros(quarters[0].shape)
    for quarter in quarters:
        valid = ~np.isnan(quarter)
        counted += valid
        np.add(total, quarter, out=total, where=valid)
    return np.divide(total, counted, out=np.full_like(total, np.nan), where=counted > 0).astype(np.float32)


_VALID, _SUM = np.divmod(np.arange(5 * 1024), 1024)
_MEANS = np.where(_VALID > 0, (_SUM + _VALID // 2) // np.maximum(_VALID, 1), NODATA).astype(np.uint8)


def _choose(condition: np.ndarray, yes: np.ndarray, no: np.ndarray) -> np.ndarray:
    """np.where for uint8, in bits: 16 times as fast (numpy 2.4), so that overviews keep up with a GPU."""
    return no ^ ((yes ^ no) & -condition.view(np.uint8))


def _quarters(rows_HW: np.ndarray) -> list[np.ndarray]:
    """The four pixels of each 2 x 2, row by row, an array each."""
    pairs = np.ascontiguousarray(rows_HW).view("<u2")  # a pair of columns is one number: slicing every other byte is slow
    return [part.astype(np.uint8) for row in (pairs[0::2], pairs[1::2]) for part in (row, row >> 8)]


class Pyramid:
    """Cuts the rows of one layer, from top to bottom, into the blocks of `levels` levels.

    It keeps at most half a block row of each level. The blocks of a level come in row-major order.
    """

    def __init__(self, levels: int, reduce: Reduce):
        self._reduce = reduce
        self._rows = [0] * levels  # block rows that each level has had
        self._halves: list[np.ndarray | None] = [None] * levels  # 256 rows of a level that wait for the next 256

    def add(self, rows_HW: np.ndarray) -> Iterator[Block]:
        """The blocks that the next rows complete. Their number is a multiple of 512, except at the lower edge."""
        for top in range(0, len(rows_HW), BLOCK):
            yield from self._block_row(0, _padded(rows_HW[top : top + BLOCK]))

    def finish(self) -> Iterator[Block]:
        """The blocks that are left at the lower edge."""
        for level in range(len(self._halves) - 1):
            half_HW = self._halves[level]
            if half_HW is not None:
                yield from self._block_row(level + 1, _padded(half_HW))

    def _block_row(self, level: int, row_HW: np.ndarray) -> Iterator[Block]:
        row = self._rows[level]
        self._rows[level] += 1
        for col in range(0, row_HW.shape[1], BLOCK):
            yield Block(level, row, col // BLOCK, row_HW[:, col : col + BLOCK])
        if level + 1 < len(self._rows):
            upper_HW, half_HW = self._halves[level], self._reduce(row_HW)
            self._halves[level] = half_HW if upper_HW is None else None
            if upper_HW is not None:
                yield from self._block_row(level + 1, _padded(np.concatenate([upper_HW, half_HW])))


def _padded(rows_HW: np.ndarray) -> np.ndarray:
    """The rows with nodata on the right and below, to whole blocks."""
    height, width = rows_HW.shape
    missing = ((0, ceil_to(height, BLOCK) - height), (0, ceil_to(width, BLOCK) - width))
    return np.pad(rows_HW, missing, constant_values=nodata_of(rows_HW.dtype)) if any(after for _, after in missing) else rows_HW
