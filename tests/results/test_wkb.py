"""WKB laid out by numpy is GEOS's."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from pipeline.results import wkb
from pipeline.results.wkb import bounds_of, polygons_as_wkb

POLYGONS = [
    shapely.box(0, 0, 3, 2),
    shapely.Polygon([(0, 0), (9, 0), (9, 9), (0, 9)], [[(1, 1), (1, 2), (2, 1)], [(5.25, 5), (5, 6), (6, 6), (6, 5)]]),
    shapely.Polygon([(-1e-9, 1e9), (3, 4), (5, -7.5)]),
]


def parts(polygons: list[shapely.Polygon]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    _, xy_N2, (points, rings) = shapely.to_ragged_array(polygons)
    return xy_N2, np.diff(points), np.diff(rings)


@pytest.mark.parametrize("polygons", [POLYGONS, POLYGONS[:1], POLYGONS[1:2], POLYGONS[::-1] * 40], ids=len)
def test_the_bytes_are_those_of_geos(polygons: list[shapely.Polygon]):
    made = polygons_as_wkb(*parts(polygons))
    made.validate(full=True)
    assert made.to_pylist() == shapely.to_wkb(polygons, byte_order=1, flavor="iso").tolist()


def test_the_bounds_are_those_of_geos():
    xy_N2, points, rings = parts(POLYGONS)
    of = np.repeat(np.arange(3), rings)
    assert np.array_equal(bounds_of(xy_N2, np.bincount(of, weights=points).astype(int)), shapely.bounds(POLYGONS))


def test_what_is_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wkb, "LONGEST", 100)
    with pytest.raises(OverflowError, match="8 points"):
        polygons_as_wkb(*parts([shapely.Polygon([(0, 0), (1, 0), (2, 0), (3, 1), (2, 2), (1, 2), (0, 2)])]))
