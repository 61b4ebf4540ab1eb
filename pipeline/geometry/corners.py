"""Where the outlines of regions turn: the corners of a strip, with the direction in which an outline comes and leaves.

An outline has its region on the left, so that of a polygon runs counterclockwise as one sees it, and that of a hole clockwise.
A lattice vertex (row, col) is the upper left corner of pixel (row, col); around it lie the pixels

    a b
    c d

A region's outline stays with its pixel where two regions meet diagonally. Where a region meets itself diagonally, the outlines
only touch: a polygon is then a simple ring with simple holes, as GDAL's polygonize makes it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.geometry.regions import Regions

EAST, NORTH, WEST, SOUTH, NOWHERE = range(5)
A, B, C, D = range(4)
# Kinds of corner: around the pixel a, b, c or d from its inside; around it from the outside; straight on, where others end.
COMING = np.array([EAST, SOUTH, NORTH, WEST, SOUTH, WEST, EAST, NORTH, EAST, SOUTH, NORTH, WEST], np.int8)
LEAVING = np.array([NORTH, EAST, WEST, SOUTH, WEST, NORTH, SOUTH, EAST, EAST, SOUTH, NORTH, WEST], np.int8)
INSIDE = np.array([A, B, C, D, B, A, A, B, A, B, A, C], np.int8)  # a pixel of the outline's region


class Corners(NamedTuple):
    """Corners in row-major order: the vertex, its row counted from the strip's first, and the kind."""

    row: np.ndarray  # int32
    col: np.ndarray  # int32
    kind: np.ndarray  # int8

    def regions(self, which: np.ndarray, regions: Regions) -> np.ndarray:
        """The region that the outline of some corners goes round."""
        inside = INSIDE[self.kind[which]]
        node = regions.node_HW[self.row[which] + (inside >= C), self.col[which] - (inside % 2 == 0)]
        return regions.region_of_node[node]


def find_corners(values_HW: np.ndarray, regions: Regions, outside: int, nodes_every: int | None = None, first_row: int = 0) -> Corners:
    """The corners of all regions but those of the value `outside`, at the upper edges of a strip's pixels.

    `values_HW` has the row above at its top. With `nodes_every` an outline also has a vertex where others end at it, and where
    it crosses a row that is a multiple of that number (the strip's first being `first_row`).
    """
    height, width = values_HW.shape
    padded_HW = np.full((height, width + 2), outside, values_HW.dtype)
    padded_HW[:, 1:-1] = values_HW
    across = padded_HW[:, 1:] == padded_HW[:, :-1]  # a == b, c == d
    down = padded_HW[1:] == padded_HW[:-1]  # a == c, b == d
    straight = across[:-1] & across[1:]
    upright = down[:, :-1] & down[:, 1:]
    if nodes_every:
        upright[-first_row % nodes_every :: nodes_every] = False
    vertices = np.flatnonzero(~(straight | upright))
    row, col = np.divmod(vertices, width + 1)
    pixels = [padded_HW[row + below, col + right] for below in (0, 1) for right in (0, 1)]
    kinds = _kinds(pixels, outside, bool(nodes_every))
    _touch(kinds, pixels, row, col, regions, outside)
    vertex, kind = np.nonzero(kinds)
    return Corners(row[vertex].astype(np.int32), col[vertex].astype(np.int32), kind.astype(np.int8))


def _kinds(pixels: list[np.ndarray], outside: int, nodes: bool) -> np.ndarray:
    """Which kinds of corner each vertex has: bool, vertices x kinds."""
    a, b, c, d = pixels
    ab, cd, ac, bd = a != b, c != d, a != c, b != d
    kinds = np.empty((len(a), 12 if nodes else 8), bool)
    kinds[:, 0], kinds[:, 1], kinds[:, 2], kinds[:, 3] = ab & ac, ab & bd, cd & ac, cd & bd
    kinds[:, 4], kinds[:, 5] = kinds[:, 0] & ~bd & ~cd, kinds[:, 1] & ~ac & ~cd
    kinds[:, 6], kinds[:, 7] = kinds[:, 2] & ~ab & ~bd, kinds[:, 3] & ~ab & ~ac
    if nodes:
        kinds[:, 8], kinds[:, 9] = ~ab & ac & bd & cd, ~bd & ab & cd
        kinds[:, 10], kinds[:, 11] = ~ac & ab & cd, ~cd & ac & bd & ab
    inside = [pixel != outside for pixel in pixels]
    for kind in range(kinds.shape[1]):
        kinds[:, kind] &= inside[INSIDE[kind]]
    return kinds


def _touch(kinds: np.ndarray, pixels: list[np.ndarray], row: np.ndarray, col: np.ndarray, regions: Regions, outside: int) -> None:
    """Where two diagonal pixels are of one region, its outlines go around the other two: changes `kinds`."""
    a, b, c, d = pixels
    four = (a != b) & (c != d) & (a != c) & (b != d)
    for upper, lower, shift, convex, around in ((a, d, -1, (A, D), (5, 6)), (b, c, 0, (B, C), (4, 7))):
        where = np.flatnonzero(four & (upper == lower) & (upper != outside))
        above = regions.region_of_node[regions.node_HW[row[where], col[where] + shift]]
        below = regions.region_of_node[regions.node_HW[row[where] + 1, col[where] - 1 - shift]]
        where = where[above == below]
        kinds[where[:, None], convex] = False
        kinds[where[:, None], around] = True
