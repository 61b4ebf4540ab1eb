"""Lengths on the grid are geodesic ones, in any CRS."""

from __future__ import annotations

import numpy as np
import pyproj
import pytest
from rasterio.crs import CRS
from rasterio.transform import Affine, from_origin

from pipeline.geometry.areas import to_lonlat
from pipeline.geometry.ground_lengths import GroundLengths
from pipeline.geometry.windows import Window

GEOD = pyproj.Geod(ellps="WGS84")
GEOSTATIONARY = "+proj=geos +h=35785831 +lon_0=0 +sweep=y +a=6378137 +b=6356752.31424518 +units=m"
PLACES = [
    ("EPSG:32633", from_origin(300_000, 7_100_000, 10, 10), Window(0, 0, 900, 700)),
    ("EPSG:32633", from_origin(480_000, 5_100_000, 0.05, 0.05), Window(10, 20, 40, 30)),
    ("EPSG:4326", from_origin(-180, 90, 0.05, 0.05), Window(0, 0, 3600, 7200)),
    ("EPSG:4326", from_origin(10, 61, 0.0001, 0.0001), Window(5000, 300, 700, 800)),
    ("EPSG:3857", from_origin(1_000_000, 9_000_000, 500, 500), Window(0, 0, 4000, 3000)),
    ("EPSG:3413", Affine(400, 90, -600_000, 90, -400, 500_000), Window(0, 0, 500, 900)),
    ("EPSG:3035", from_origin(2_500_000, 5_400_000, 1000, 1000), Window(0, 0, 4000, 4000)),
]


def geodesic_m(crs: str, transform: Affine, window: Window, points_N2: np.ndarray) -> float:
    """Along a line through these points (row, col)."""
    x, y = transform * (points_N2[:, 1] + window.col, points_N2[:, 0] + window.row)
    lon, lat = to_lonlat(x, y, CRS.from_user_input(crs))
    return float(GEOD.line_length(lon, lat))


@pytest.mark.parametrize(("crs", "transform", "window"), PLACES, ids=lambda value: str(value)[:20])
def test_lengths_are_geodesic(crs: str, transform: Affine, window: Window):
    """Within 0.1 %, of sides of pixels as of lines across the raster (which are straight in its CRS, not on the ground)."""
    lengths = GroundLengths.over(window, transform, CRS.from_user_input(crs))
    random = np.random.default_rng(0)
    margin = window.height // 20  # from the poles
    from_N2 = random.integers([margin, 0], [window.height - margin, window.width], (60, 2))
    to_N2 = random.integers([margin, 0], [window.height - margin, window.width], (60, 2))
    to_N2[:20] = from_N2[:20] + np.array([0, 1])
    to_N2[20:40] = from_N2[20:40] + np.array([1, 0])
    expected = [
        geodesic_m(crs, transform, window, np.linspace(start, stop, 2 if place < 40 else 4000))
        for place, (start, stop) in enumerate(zip(from_N2, to_N2, strict=True))
    ]
    found = lengths.lengths_m(from_N2, to_N2)
    assert found == pytest.approx(expected, rel=1e-3)
    assert found.sum() == pytest.approx(sum(expected), rel=2e-4)
    assert np.array_equal(lengths.lengths_m(to_N2[:40], from_N2[:40]), found[:40]), "there and back"


def test_the_sky_has_no_length():
    place = from_origin(-5_500_000, 5_500_000, 110_000, 110_000)
    lengths = GroundLengths.over(Window(0, 0, 100, 100), place, CRS.from_proj4(GEOSTATIONARY))
    corner, middle = lengths.lengths_m(np.array([[0, 0], [50, 50]]), np.array([[0, 1], [50, 51]]))
    assert corner == 0 and middle == pytest.approx(110_000, rel=1e-2)
