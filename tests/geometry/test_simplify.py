"""Simplified borders stay shared: no gaps, no overlaps, nothing that depends on the strips."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from pipeline.geometry import simplify
from pipeline.geometry.polygons import Polygoniser
from pipeline.geometry.simplify import kept_vertices
from tests.geometry.rasters import NODATA, random_mask
from tests.geometry.test_polygons import pixels, shapes


@pytest.fixture(autouse=True)
def low_bands(monkeypatch: pytest.MonkeyPatch) -> int:
    """Bands of 8 rows, so that small rasters have many."""
    monkeypatch.setattr(simplify, "BLOCK", 8)
    return 8


def simplified(mask_HW: np.ndarray, tolerance_px: float, rows: int) -> list[tuple[int, int, shapely.Polygon]]:
    polygoniser = Polygoniser(mask_HW.shape[1], pixels, nodes_every=8)
    strips = np.split(mask_HW, range(rows, len(mask_HW), rows))
    return shapes([*(polygoniser.push(strip_HW, kept_vertices(strip_HW, tolerance_px)) for strip_HW in strips), polygoniser.finish()])


@pytest.mark.parametrize("tolerance_px", [0.5, 1.5, 4.0])
@pytest.mark.parametrize("seed", range(8))
def test_simplified_polygons_are_a_coverage(seed: int, tolerance_px: float):
    mask_HW = np.where(random_mask(seed) == NODATA, 0, random_mask(seed)).astype(np.uint8)
    polygons = np.array([polygon for *_, polygon in simplified(mask_HW, tolerance_px, 8)])
    assert shapely.is_valid(polygons).all()
    assert shapely.coverage_is_valid(polygons)
    assert shapely.area(polygons).sum() == pytest.approx(mask_HW.size) == shapely.union_all(polygons).area


@pytest.mark.parametrize("seed", range(8))
def test_with_nodata_there_are_no_overlaps(seed: int):
    polygons = np.array([polygon for *_, polygon in simplified(random_mask(seed), 2.0, 8)])
    assert shapely.is_valid(polygons).all() and shapely.coverage_is_valid(polygons)
    assert shapely.area(polygons).sum() == pytest.approx(shapely.union_all(polygons).area if len(polygons) else 0)


def test_the_strips_do_not_matter():
    mask_HW = np.add.outer(np.arange(64) ** 2 // 40, np.arange(50)).astype(np.uint8) // 9 % 3
    found = [[(value, size, polygon.wkb) for value, size, polygon in simplified(mask_HW, 1.5, rows)] for rows in (8, 24, 64)]
    assert found[0] == found[1] == found[2]


def test_stairs_become_lines():
    """A slanting border between two classes keeps its ends, what lies on the bands' edges, and little else."""
    mask_HW = (np.add.outer(np.arange(48) * 2, np.arange(120)) > 110).astype(np.uint8)
    plain = shapely.get_num_coordinates([polygon for *_, polygon in simplified(mask_HW, 0.0, 48)]).sum()
    simple = shapely.get_num_coordinates([polygon for *_, polygon in simplified(mask_HW, 2.0, 48)]).sum()
    assert simple < plain / 4


def test_classes_and_pixels_stay():
    mask_HW = random_mask(4)
    assert [found[:2] for found in simplified(mask_HW, 3.0, 8)] == [found[:2] for found in simplified(mask_HW, 0.0, 8)]
