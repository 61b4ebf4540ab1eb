"""Closed rings of lattice vertices, many in one array: put in order, turned to their first vertex, cut where they touch themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Rings(NamedTuple):
    """Rings one after another: each has `lengths` vertices, (row, col) in `vertices_N2`, the first not repeated at its end."""

    regions: np.ndarray  # the region that each one goes round
    lengths: np.ndarray  # int64
    vertices_N2: np.ndarray  # int32

    @classmethod
    def of(cls, regions: Sequence[int], rings: Sequence[np.ndarray]) -> Rings:
        vertices_N2 = np.concatenate(rings) if len(rings) else np.empty((0, 2), np.int32)
        return cls(np.asarray(regions, np.int64), np.array([len(ring) for ring in rings], np.int64), vertices_N2)

    @property
    def starts(self) -> np.ndarray:
        return np.cumsum(self.lengths) - self.lengths

    def take(self, which: np.ndarray) -> Rings:
        """Some of the rings, by number and in that order, or those where `which` is true."""
        which = np.flatnonzero(which) if which.dtype == bool else which
        lengths = self.lengths[which]
        return Rings(self.regions[which], lengths, self.vertices_N2[_ranges(self.starts[which], lengths)])

    def first_vertices(self) -> np.ndarray:
        """The first vertex of each ring, N x 2."""
        return self.vertices_N2[self.starts]

    def turned(self) -> Rings:
        """Each ring begun at its uppermost vertex, of several the leftmost."""
        if not len(self.lengths):
            return self
        key = (self.vertices_N2[:, 0].astype(np.int64) << 32) + self.vertices_N2[:, 1]
        of_ring = np.repeat(np.arange(len(self.lengths)), self.lengths)
        lowest = np.minimum.reduceat(key, self.starts)
        at = np.flatnonzero(key == lowest[of_ring])
        first = at[np.searchsorted(of_ring[at], np.arange(len(self.lengths)))] - self.starts
        place = np.arange(len(key)) - self.starts[of_ring] + first[of_ring]
        return self._replace(vertices_N2=self.vertices_N2[self.starts[of_ring] + place % self.lengths[of_ring]])

    def doubled_areas(self) -> np.ndarray:
        """Twice the area in px that each ring encloses: positive for outlines, negative for holes."""
        if not len(self.lengths):
            return np.empty(0, np.int64)
        row, col = self.vertices_N2[:, 0].astype(np.int64), self.vertices_N2[:, 1].astype(np.int64)
        following = self.following()
        return np.add.reduceat(row * col[following] - row[following] * col, self.starts)

    def closed(self, *, backward: bool) -> np.ndarray:
        """The vertices with each ring's first one again at its end, M x 2; each ring may run backward from it."""
        of_ring = np.repeat(np.arange(len(self.lengths)), self.lengths + 1)
        step = np.arange(len(of_ring)) - (self.starts + np.arange(len(self.lengths)))[of_ring]
        return self.vertices_N2[self.starts[of_ring] + (-step if backward else step) % self.lengths[of_ring]]

    def following(self) -> np.ndarray:
        """The place of the vertex after each one, in its ring."""
        following = np.arange(1, len(self.vertices_N2) + 1)
        following[self.starts + self.lengths - 1] = self.starts
        return following


def joined(parts: Sequence[Rings]) -> Rings:
    """The rings of all parts."""
    return Rings(*(np.concatenate([part[field] for part in parts]) for field in range(3)))


def cut_where_touching(ring_N2: np.ndarray) -> Iterator[np.ndarray]:
    """The simple rings of a ring that comes through some vertices again."""
    key = (ring_N2[:, 0].astype(np.int64) << 32) + ring_N2[:, 1]
    if len(np.unique(key)) == len(key):
        yield ring_N2
        return
    path: list[int] = []
    place: dict[int, int] = {}
    for number, vertex in enumerate(key.tolist()):
        if vertex in place:
            start = place[vertex]
            yield ring_N2[path[start:]]
            for gone in path[start + 1 :]:
                place.pop(int(key[gone]))
            del path[start:]
        place[vertex] = len(path)
        path.append(number)
    yield ring_N2[path]


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers from each start on, as many as its length.

    >>> _ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
