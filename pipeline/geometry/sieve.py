"""Let regions that are too small join a neighbour, in rounds over a raster that is read strip by strip.

In a round every region smaller than the minimum that has a stronger neighbour takes the class that the longest part of its border
with such neighbours has (in pixel sides; of equal ones the lowest class). A neighbour is stronger if it reaches the minimum, or is
the larger of two that do not, or as large and earlier, by its first pixel, row by row. All regions of a round decide by what was there
before it, so neither their order nor the strips matter. Rounds follow until nothing changes: the last change of a round always
joins a region to one that stays as it is, so there are fewer regions after each. What stays below the minimum has no neighbour.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pipeline.geometry.polygons import Measure
from pipeline.geometry.regions import Regions, Seam, find_regions


class _Strip(NamedTuple):
    """A strip whose regions are not all decided: its runs, and the region of each."""

    row: int
    shape: tuple[int, int]
    run_first: np.ndarray  # int64
    region_of_run: np.ndarray  # int64, counted through the strips
    first_region: int


class _Borders(NamedTuple):
    """How many pixel sides small regions share with others."""

    small: np.ndarray
    other: np.ndarray
    sides: np.ndarray

    def take(self, which: np.ndarray) -> _Borders:
        return _Borders(self.small[which], self.other[which], self.sides[which])


class SieveRound:
    """One round: takes strips from top to bottom and gives them back as they are decided.

    `measure` tells the size of runs, in the unit of `minimum`, in its first row; pixels of the value `outside` neither join nor are
    joined. Regions are numbered through the strips; one that goes on below has a new number there, which is its `parent`.
    """

    def __init__(self, width: int, measure: Measure, minimum: int, outside: int = 255):
        self._measure, self._minimum, self._outside = measure, minimum, outside
        self._seam = Seam.above_all(width, outside)
        self._row = 0
        self._waiting: deque[_Strip] = deque()
        self._reaching = np.zeros(1, np.int64)  # the regions at the seam
        empty = np.empty(0, np.int64)
        self._borders = _Borders(empty, empty, empty)
        self._base = 0  # the first number that is still of use; the row above all is region 0
        self._parent, self._size, self._first = np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64)
        self._value = np.full(1, outside, np.uint8)
        self._class = self._value  # as it is decided
        self.changed = 0  # runs that are of another class now

    def push(self, values_HW: np.ndarray) -> Iterator[np.ndarray]:
        """Take a strip; gives those that are decided, each as it was cut, with the new classes."""
        regions = find_regions(values_HW, self._seam)
        above = np.concatenate([self._seam.values_W[None], values_HW])
        base = self._base + len(self._parent)
        self._add(regions, values_HW.shape[1], base)
        self._waiting.append(_Strip(self._row, values_HW.shape, regions.run_first, regions.of_run + base, base))
        self._seam, reaching = regions.seam()
        self._reaching = reaching + base
        self._row += len(values_HW)
        self._note(_borders(above, regions, self._is_small(np.arange(base, base + regions.size))), base)
        yield from self._decide(reaching=self._reaching)

    def finish(self) -> Iterator[np.ndarray]:
        """The strips that wait for what lies below: nothing."""
        yield from self._decide(reaching=np.empty(0, np.int64))

    def _add(self, regions: Regions, width: int, base: int) -> None:
        """Number the strip's regions from `base` on, and add what they have above it."""
        first_pixel, last_pixel = regions.run_first[:-1], regions.run_first[1:]
        size = np.zeros(regions.size, np.int64)
        np.add.at(size, regions.of_run, self._measure(self._row, first_pixel, last_pixel)[0])
        first = np.full(regions.size, np.iinfo(np.int64).max)
        first[regions.of_run[::-1]] = first_pixel[::-1] + self._row * width
        old = self._reaching - self._base
        np.add.at(size, regions.carried, self._size[old])
        np.minimum.at(first, regions.carried, self._first[old])
        self._parent[old] = regions.carried + base
        self._parent = np.append(self._parent, np.arange(base, base + regions.size))
        self._size, self._first = np.append(self._size, size), np.append(self._first, first)
        self._value, self._class = np.append(self._value, regions.values), np.append(self._class, regions.values)

    def _note(self, borders: _Borders, base: int) -> None:
        """Keep the borders of regions that may be small."""
        small = np.append(self._roots(self._borders.small), borders.small + base)
        other = np.append(self._roots(self._borders.other), borders.other + base)
        joins = self._is_small(small) & (self._value[other - self._base] != self._outside)
        self._borders = _Borders(small, other, np.append(self._borders.sides, borders.sides)).take(joins)

    def _roots(self, regions: np.ndarray) -> np.ndarray:
        """The numbers by which regions go now."""
        while True:
            parents = self._parent[regions - self._base]
            if np.array_equal(parents, regions):
                return regions
            regions = parents

    def _is_small(self, regions: np.ndarray) -> np.ndarray:
        place = regions - self._base
        return (self._size[place] < self._minimum) & (self._value[place] != self._outside)

    def _decide(self, reaching: np.ndarray) -> Iterator[np.ndarray]:
        """Decide on the small regions of which all is known, their neighbours included; gives the strips that hold no others."""
        unknown = np.zeros(len(self._parent), bool)
        unknown[reaching[self._is_small(reaching)] - self._base] = True
        undecided = unknown.copy()
        undecided[self._borders.small[unknown[self._borders.other - self._base]] - self._base] = True
        waits = undecided[self._borders.small - self._base]
        self._choose(self._borders.take(~waits))
        self._borders = self._borders.take(waits)
        first = self._first[undecided].min(initial=np.iinfo(np.int64).max)
        while self._waiting and (self._waiting[0].row + self._waiting[0].shape[0]) * self._waiting[0].shape[1] <= first:
            strip = self._waiting.popleft()
            region = self._roots(strip.region_of_run) - self._base
            self.changed += int((self._class[region] != self._value[region]).sum())
            yield np.repeat(self._class[region], np.diff(strip.run_first)).reshape(strip.shape)
        self._forget(self._waiting[0].first_region if self._waiting else int(reaching.min(initial=self._base + len(self._parent))))

    def _choose(self, borders: _Borders) -> None:
        """Give the small regions with these borders their class."""
        small, other = borders.small - self._base, borders.other - self._base
        size, rival = self._size[small], np.minimum(self._size[other], self._minimum)
        stronger = (rival > size) | ((rival == size) & (self._first[other] < self._first[small]))
        key, of = np.unique(small[stronger] * 256 + self._value[other[stronger]], return_inverse=True)
        sides = np.bincount(of, weights=borders.sides[stronger], minlength=len(key))
        region, value = np.divmod(key, 256)
        order = np.lexsort((-value, sides, region))  # the last of each region is its choice
        self._class[region[order]] = value[order]

    def _forget(self, before: int) -> None:
        """Drop the regions with lower numbers, which nothing refers to any more."""
        gone = before - self._base
        self._parent, self._size, self._first = self._parent[gone:], self._size[gone:], self._first[gone:]
        self._value, self._class, self._base = self._value[gone:], self._class[gone:], before


def _borders(values_HW: np.ndarray, regions: Regions, is_small: np.ndarray) -> _Borders:
    """The borders of a strip's small regions with others; the row above is at the top of `values_HW`."""
    own, region = regions.node_HW[1:], regions.region_of_node
    beside = own[:, 1:][values_HW[1:, 1:] != values_HW[1:, :-1]]
    below = np.flatnonzero(values_HW[1:] != values_HW[:-1])
    flat, width = regions.node_HW.reshape(-1), values_HW.shape[1]
    one = np.concatenate([region[beside - 1], region[flat[below]]]).astype(np.int64)
    other = np.concatenate([region[beside], region[flat[below + width]]]).astype(np.int64)
    small = np.append(one[is_small[one]], other[is_small[other]])
    pair, sides = np.unique(small * regions.size + np.append(other[is_small[one]], one[is_small[other]]), return_counts=True)
    return _Borders(*np.divmod(pair, regions.size), sides)
