"""Areas of runs are those of their pixels, whatever the strips they come in."""

from __future__ import annotations

import numpy as np
import pytest
from rasterio.crs import CRS
from rasterio.transform import Affine, from_origin

from pipeline.geometry.areas import ground_areas
from pipeline.geometry.ground_runs import GroundRuns
from pipeline.geometry.windows import Window

PLACES = {
    "EPSG:32633": from_origin(480_000, 5_100_000, 30, 30),
    "EPSG:4326": from_origin(-10, 61, 0.01, 0.01),
    "EPSG:3857": from_origin(1_000_000, 8_000_000, 500, 500),
    "EPSG:3413": Affine(400, 90, -600_000, 90, -400, 500_000),
}
REGION = Window(64, 96, 200, 150)
WINDOWS = [Window(64, 96, 64, 64), Window(64, 160, 64, 86), Window(128, 96, 136, 150)]


def runs_of(crs: str, total_m2: float = 1e13) -> GroundRuns:
    return GroundRuns(REGION, WINDOWS, 32, PLACES[crs], CRS.from_user_input(crs), total_m2)


@pytest.mark.parametrize("crs", PLACES)
def test_runs_have_the_areas_of_their_pixels(crs: str):
    random = np.random.default_rng(0)
    cuts = np.unique(np.append(np.sort(random.integers(0, REGION.pixels, 4000)), np.arange(0, REGION.pixels + 1, REGION.width)))
    expected_HW = np.zeros((REGION.height, REGION.width))
    for window in WINDOWS:
        for row in range(window.row, window.rows.stop, 32):
            piece = window.intersection(Window(row, window.col, 32, window.width))
            assert piece
            areas = ground_areas(piece, PLACES[crs], CRS.from_user_input(crs))
            expected_HW[piece.relative_to(REGION).slices()] = areas.area_m2[areas.row_cells[:, None], areas.col_cells]
    runs = runs_of(crs, expected_HW.sum())
    found = runs.areas(0, cuts[:-1], cuts[1:])
    assert found * runs.quantum_m2 == pytest.approx(np.add.reduceat(expected_HW.ravel(), cuts[:-1]), rel=1e-11)
    assert found.sum() < 2**61


@pytest.mark.parametrize("rows", [1, 7, 64, 200])
def test_strips_do_not_matter(rows: int):
    runs, whole = runs_of("EPSG:4326"), runs_of("EPSG:4326")
    starts = np.arange(0, REGION.pixels, 50)
    expected = whole.areas(0, starts, starts + 50)
    per_row = REGION.width // 50
    found = []
    for row in range(0, REGION.height, rows):
        some = np.arange(0, min(rows, REGION.height - row) * REGION.width, 50)
        found.append(runs.areas(row, some, some + 50))
    assert per_row * REGION.height == len(expected) and np.array_equal(np.concatenate(found), expected)


def test_below_the_raster_is_nothing():
    assert runs_of("EPSG:32633").areas(200, np.array([0]), np.array([150])).tolist() == [0]
