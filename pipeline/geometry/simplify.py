"""Simplify borders so that they stay shared, band by band of 512 rows: which vertices of the outlines stay.

GEOS's coverage simplifier (Visvalingam and Whyatt 1993, with a check that nothing crosses) needs a whole coverage in memory, so
it is given one band of the raster at a time, every region cut at the band's edges. What lies on those edges stays as it is, so bands
do not depend on each other, and what crosses an edge keeps its vertex there: one in 512 rows of a border. Only vertices are
dropped, so the outlines of the uncut regions are those without the dropped ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import shapely

from pipeline.geometry.polygons import Polygoniser, Polygons
from pipeline.geometry.windows import BLOCK

BESIDE_ALL = 256  # no class, and not nodata: what is nodata has a border that is simplified too


def kept_vertices(values_HW: np.ndarray, tolerance_px: float) -> np.ndarray:
    """Which lattice vertices may stay, of a strip that begins with a band: bool, a column wider than its pixels.

    Corners go that stand out from the simplified border by a triangle of less than `tolerance_px` squared.
    """
    height, width = values_HW.shape
    kept_HW = np.zeros((height, width + 1), bool)
    for top in range(0, height, BLOCK):
        coverage = np.concatenate(list(_cut_regions(values_HW[top : top + BLOCK])))
        simple = shapely.coverage_simplify(coverage, tolerance_px, simplify_boundary=False)
        col, row = shapely.get_coordinates(simple).astype(np.int32).T + np.array([[0], [top]])
        inside = row < height
        kept_HW[row[inside], col[inside]] = True
        kept_HW[top] = True
    return kept_HW


def _cut_regions(values_HW: np.ndarray) -> Iterator[np.ndarray]:
    """The regions of a band as a coverage of shapely polygons, in (col, row), nodata's among them."""
    polygoniser = Polygoniser(values_HW.shape[1], _nothing, outside=BESIDE_ALL, nodes_every=BLOCK, dtype=np.int16)
    yield _as_shapes(polygoniser.push(values_HW.astype(np.int16)))
    yield _as_shapes(polygoniser.finish())


def _as_shapes(polygons: Polygons) -> np.ndarray:
    """Shapely polygons of (col, row)."""
    rings = polygons.rings
    ends = np.append(0, np.cumsum(rings.lengths + 1)), np.append(0, np.cumsum(polygons.ring_counts))
    return shapely.from_ragged_array(shapely.GeometryType.POLYGON, rings.closed(backward=False)[:, ::-1].astype(np.float64), ends)


def _nothing(first_row: int, first_pixel: np.ndarray, last_pixel: np.ndarray) -> np.ndarray:
    return np.empty((0, len(first_pixel)), np.int64)
