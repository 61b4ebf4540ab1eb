"""Coverage is exact: against shapely's intersections with pixel boxes, whatever the size of cell, parcel and grid."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from pipeline.results import coverage as covering
from pipeline.results.coverage import Coverage


def exact(polygon: shapely.Geometry, height: int, width: int) -> np.ndarray:
    """The share of each pixel that lies in a polygon, H x W."""
    col, row = np.meshgrid(np.arange(width), np.arange(height))
    return shapely.area(shapely.intersection(shapely.box(col, row, col + 1, row + 1), polygon))


def added_up(found: Coverage, parcels: int, height: int, width: int) -> np.ndarray:
    """The coverage of each pixel by each parcel, P x H x W; each pixel of a parcel is in one piece."""
    total = np.zeros((parcels, height, width))
    for piece in found:
        row, col = np.divmod(piece.pixel_N, piece.window.width)
        places = (piece.parcels_G[piece.parcel_N], row + piece.window.row, col + piece.window.col)
        assert not total[places].any() and (piece.coverage_N > 0).all()
        total[places] = piece.coverage_N
    return total


SHAPES = [
    shapely.Polygon([(1.5, 1.2), (37.7, 2.3), (30.3, 28.8), (3, 20.5)]),  # a large one
    shapely.box(100, 100, 101, 101),  # outside
    shapely.box(2, 2, 4, 3.5),
    shapely.box(-5, -5, 1.25, 1.5),  # over the edge
    shapely.Polygon(),
    shapely.Point(20, 15).buffer(9) - shapely.Point(21, 16).buffer(4),  # with a hole
    shapely.box(10.2, 10.2, 10.4, 10.4),  # within a pixel
    shapely.box(0, 0, 45, 33),  # all of it
    shapely.MultiPolygon([shapely.box(5.5, 5.5, 7, 7), shapely.box(30, 29.5, 31.25, 30)]),
    shapely.box(2.5, 30.9, 44.5, 31.1),  # a strip
    shapely.box(45, 3, 46, 4),  # beside it
]


@pytest.mark.parametrize("cell", [4, 16, 1024])
@pytest.mark.parametrize("most", [40, 10**6])
def test_coverage_is_that_of_shapely(monkeypatch: pytest.MonkeyPatch, cell: int, most: int):
    monkeypatch.setattr(covering, "CELL", cell)
    monkeypatch.setattr(covering, "MOST_PIXELS", most)
    found = Coverage(np.array(SHAPES, object), 33, 45)
    total = added_up(found, len(SHAPES), 33, 45)
    for polygon, covered_HW in zip(SHAPES, total, strict=True):
        assert covered_HW == pytest.approx(exact(polygon, 33, 45), abs=1e-6)
    assert np.array_equal(added_up(found, len(SHAPES), 33, 45), total), "it can be read again"
    whole = {number for piece in found if piece.whole for number in piece.parcels_G.tolist()}
    pieces = {number for piece in found if not piece.whole for number in piece.parcels_G.tolist()}
    assert not whole & pieces and bool(pieces) == (cell < 40)


def test_windows_hold_a_few_cells_whatever_the_grid(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(covering, "CELL", 64)
    random = np.random.default_rng(2)
    corner, size = random.uniform(0, 3900, (500, 2)), random.uniform(0.1, 90, (500, 2))
    boxes = shapely.box(*corner.T, *(corner + size).T)
    found = list(Coverage(boxes, 4000, 4000))
    assert max(max(piece.window.height, piece.window.width) for piece in found) <= 2 * 64 + 1
    assert sum(float(piece.coverage_N.sum()) for piece in found) == pytest.approx(shapely.area(boxes).sum(), rel=1e-6)


def test_nothing_covers_nothing():
    assert list(Coverage(np.array([], object), 5, 5)) == [] and list(Coverage(np.array([shapely.Polygon()], object), 5, 5)) == []
