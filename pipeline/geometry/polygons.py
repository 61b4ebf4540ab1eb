"""Polygons of the 4-connected regions of a raster that is given strip by strip: those of the whole raster, whatever the strips.

What is kept from strip to strip are the regions that reach the last row: their sums, their holes, and the parts of their outlines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.geometry.corners import find_corners
from pipeline.geometry.outlines import Chains, trace
from pipeline.geometry.regions import Regions, Seam, find_regions
from pipeline.geometry.rings import Rings, joined

Measure = Callable[[int, np.ndarray, np.ndarray], np.ndarray]


class Polygons(NamedTuple):
    """Polygons in the order of their last row, then of their first pixel. `rings.regions` is the number of each ring's polygon, in
    order; its outline comes first, counterclockwise as one sees it, then its holes, clockwise, in the order of their first vertices."""

    values: np.ndarray
    sums: np.ndarray  # int64: measures x polygons
    rings: Rings

    @property
    def ring_counts(self) -> np.ndarray:
        return np.bincount(self.rings.regions, minlength=len(self.values))

    def take(self, start: int, stop: int) -> Polygons:
        """The polygons from `start` to before `stop`."""
        first, last = np.searchsorted(self.rings.regions, [start, stop])
        vertices = slice(*np.append(0, np.cumsum(self.rings.lengths))[[first, last]])
        rings = Rings(self.rings.regions[first:last] - start, self.rings.lengths[first:last], self.rings.vertices_N2[vertices])
        return Polygons(self.values[start:stop], self.sums[:, start:stop], rings)


class _Open(NamedTuple):
    """What is known of regions: where they start (in pixels of the raster, row by row), their last row, and their sums."""

    first: np.ndarray  # int64
    last_row: np.ndarray  # int64
    sums: np.ndarray  # int64: measures x regions

    def take(self, which: np.ndarray) -> _Open:
        return _Open(self.first[which], self.last_row[which], self.sums[:, which])


class Polygoniser:
    """Takes the strips of a raster from top to bottom, and gives its polygons as they end.

    `measure` gives int64 sums for runs of pixels, measures x runs, by the first row of the strip, and by where in the strip each
    run starts and ends, row by row. Pixels of the value `outside` are in no polygon. With `nodes_every` outlines have vertices
    where others meet them, and on rows that are multiples of it.
    """

    def __init__(self, width: int, measure: Measure, *, outside: int = 255, nodes_every: int | None = None, dtype: type = np.uint8):
        self._measure, self._outside, self._nodes_every = measure, outside, nodes_every
        self._seam = Seam.above_all(width, outside, dtype)
        self._row = 0
        self._chains = Chains.none()
        self._holes: list[Rings] = []  # of regions that are open
        self._open: _Open | None = None

    def push(self, values_HW: np.ndarray, kept_HW: np.ndarray | None = None) -> Polygons:
        """The polygons that end above the last row of the next strip. Of their vertices only those stay that are `kept`."""
        regions = find_regions(values_HW, self._seam)
        extended_HW = np.concatenate([self._seam.values_W[None], values_HW])
        corners = find_corners(extended_HW, regions, self._outside, self._nodes_every, self._row)
        keep = kept_HW[corners.row, corners.col] if kept_HW is not None else None
        traced = trace(corners, keep, values_HW[-1], regions, self._chains, self._row, self._outside)
        known = self._known(regions, values_HW.shape[1])
        seam, reaching = regions.seam()
        number = np.full(regions.size, -1, np.int64)
        number[reaching] = np.arange(seam.size)
        whole = traced.rings.turned() if self._nodes_every else traced.rings
        polygons, held = self._assemble([whole, traced.closed], regions, known, number)
        self._holes = held
        self._chains = traced.chains._replace(regions=number[traced.chains.regions])
        self._open, self._seam, self._row = known.take(reaching), seam, self._row + len(values_HW)
        return polygons

    def finish(self) -> Polygons:
        """The polygons that reach the last row."""
        width = len(self._seam.values_W)
        return self.push(np.full((1, width), self._outside, self._seam.values_W.dtype))

    def _known(self, regions: Regions, width: int) -> _Open:
        """What is known of the strip's regions, those parts of them above it included."""
        first_pixel, last_pixel = regions.run_first[:-1], regions.run_first[1:]
        of_run, carried = regions.of_run, regions.carried
        measured = self._measure(self._row, first_pixel, last_pixel)
        first = np.full(regions.size, np.iinfo(np.int64).max)
        first[of_run[::-1]] = first_pixel[::-1] + self._row * width
        last_row = np.full(regions.size, -1)
        sums = np.zeros((len(measured), regions.size), np.int64)
        if self._open:
            np.minimum.at(first, carried, self._open.first)
            np.maximum.at(last_row, carried, self._open.last_row)
            for total, part in zip(sums, self._open.sums, strict=True):
                np.add.at(total, carried, part)
        last_row[of_run] = first_pixel // width + self._row
        for total, part in zip(sums, measured, strict=True):
            np.add.at(total, of_run, part)
        return _Open(first, last_row, sums)

    def _assemble(self, found: Sequence[Rings], regions: Regions, known: _Open, number: np.ndarray) -> tuple[Polygons, list[Rings]]:
        """The polygons of regions that have ended, and the rings of those that have not."""
        ended, held = [], []
        carried = [rings._replace(regions=regions.carried[rings.regions]) for rings in self._holes]
        for rings in (*carried, *found):
            done = number[rings.regions] < 0
            if done.all():
                ended.append(rings)
            else:
                if done.any():
                    ended.append(rings.take(done))
                    rings = rings.take(~done)
                held.append(rings._replace(regions=number[rings.regions]))
        if not ended:
            ended = [Rings.of([], [])]
        return _in_order(joined(ended), regions.values, known), held


def _in_order(rings: Rings, values: np.ndarray, known: _Open) -> Polygons:
    corner = rings.first_vertices()
    hole = rings.doubled_areas() < 0
    of = rings.regions
    order = np.lexsort((corner[:, 1], corner[:, 0], hole, known.first[of], known.last_row[of]))
    rings = rings.take(order)
    outlines = ~hole[order]
    which = rings.regions[outlines]
    polygons = Polygons(values[which], known.sums[:, which], rings._replace(regions=np.cumsum(outlines) - 1))
    assert len(which) == len(np.unique(rings.regions)), "each region has one outline"
    return polygons
