"""Polygons made strip by strip are GDAL's of the whole raster, whatever the strips; valid, with sums over their own pixels."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
import shapely

from pipeline.geometry.polygons import Polygoniser, Polygons
from tests.geometry.rasters import NLCD, NODATA, Key, checkerboard, key_of, land_cover, nested, polygons_of_whole, random_mask, spiral

needs_data = pytest.mark.skipif(not NLCD.exists(), reason="needs ../shared/data")


def pixels(first_row: int, first_pixel: np.ndarray, last_pixel: np.ndarray) -> np.ndarray:
    return (last_pixel - first_pixel)[None]


def polygonise(mask_HW: np.ndarray, rows: int | Sequence[int]) -> list[Polygons]:
    """Of strips of so many rows, or of rows cut at these places."""
    cuts = range(0, len(mask_HW), rows) if isinstance(rows, int) else [0, *rows]
    polygoniser = Polygoniser(mask_HW.shape[1], pixels)
    strips = np.split(mask_HW, list(cuts)[1:])
    return [*(polygoniser.push(strip_HW) for strip_HW in strips), polygoniser.finish()]


def shapes(found: Sequence[Polygons]) -> list[tuple[int, int, shapely.Polygon]]:
    """Class, pixels and shape of each polygon, in order."""
    made = []
    for polygons in found:
        rings = iter(np.split(polygons.rings.vertices_N2[:, ::-1], np.cumsum(polygons.rings.lengths)[:-1]))
        for value, size, count in zip(polygons.values, polygons.sums[0], polygons.ring_counts, strict=True):
            shell, *holes = (next(rings) for _ in range(count))
            made.append((int(value), int(size), shapely.Polygon(shell, holes)))
    return made


def keys(found: Sequence[Polygons]) -> list[Key]:
    return sorted(key_of(value, polygon) for value, _, polygon in shapes(found))


@pytest.mark.parametrize("seed", range(24))
def test_the_polygons_are_those_of_the_whole(seed: int):
    mask_HW = random_mask(seed)
    expected = polygons_of_whole(mask_HW)
    for rows in (1, 2, 5, 64):
        assert keys(polygonise(mask_HW, rows)) == expected


@pytest.mark.parametrize(
    "mask_HW",
    [
        checkerboard(17, 23), spiral(41), nested(40), np.zeros((1, 1), np.uint8), np.full((3, 2), NODATA, np.uint8),
        np.zeros((1, 9), np.uint8), np.arange(9, dtype=np.uint8)[:, None], np.zeros((33, 7), np.uint8),
    ],
    ids=["checkerboard", "spiral", "nested", "a pixel", "nodata", "a row", "a column", "one class"],
)  # fmt: skip
@pytest.mark.parametrize("rows", [1, 3, 8, 100])
def test_hard_rasters(mask_HW: np.ndarray, rows: int):
    assert keys(polygonise(mask_HW, rows)) == polygons_of_whole(mask_HW)


@needs_data
def test_a_real_mask():
    mask_HW = land_cover(slice(0, 500), slice(100, 700))
    assert keys(polygonise(mask_HW, 128)) == polygons_of_whole(mask_HW)


@pytest.mark.parametrize("seed", range(10))
def test_order_and_vertices_do_not_depend_on_the_strips(seed: int):
    """To the vertex: what is written is the same bytes."""
    mask_HW = random_mask(seed)
    whole = shapes(polygonise(mask_HW, len(mask_HW)))
    random = np.random.default_rng(seed)
    for rows in (1, 3, np.unique(random.integers(1, len(mask_HW) + 1, 4)).clip(max=max(1, len(mask_HW) - 1)).tolist()):
        if isinstance(rows, list) and len(mask_HW) == 1:
            continue
        found = shapes(polygonise(mask_HW, sorted(set(rows)) if isinstance(rows, list) else rows))
        assert [(value, size, polygon.wkb) for value, size, polygon in found] == [(v, s, p.wkb) for v, s, p in whole]


@pytest.mark.parametrize("seed", range(10))
def test_polygons_are_valid_and_hold_their_pixels(seed: int):
    mask_HW = random_mask(seed)
    found = shapes(polygonise(mask_HW, 4))
    for _, size, polygon in found:
        assert polygon.is_valid and polygon.area == size
        assert not polygon.exterior.is_ccw, "rows run down here, so what one sees as counterclockwise is clockwise in numbers"
        assert all(hole.is_ccw for hole in polygon.interiors)
    assert sum(size for _, size, _ in found) == (mask_HW != NODATA).sum()


def test_polygons_come_by_last_row_then_by_first_pixel():
    mask_HW = nested(24)
    expected = []
    for value, polygon in polygons_of_whole(mask_HW):
        inside = shapely.from_wkb(polygon)
        first = min((row, col) for row in range(24) for col in range(24) if inside.covers(shapely.Point(col + 0.5, row + 0.5)))
        expected.append((inside.bounds[3], first, value))
    found = []
    for value, _, polygon in shapes(polygonise(mask_HW, 5)):
        first = min((row, col) for row in range(24) for col in range(24) if polygon.covers(shapely.Point(col + 0.5, row + 0.5)))
        found.append((polygon.bounds[3], first, value))
    assert found == sorted(expected)


def test_memory_does_not_grow_with_the_rows():
    """Polygons that end are given away: ten times the rows take no more."""

    def peak(rows: int) -> int:
        polygoniser = Polygoniser(200, pixels)
        random = np.random.default_rng(0)
        tracemalloc.start()
        for _ in range(0, rows, 50):
            polygoniser.push(random.integers(0, 4, (50, 200)).astype(np.uint8))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(100)
    assert peak(2000) < 1.15 * peak(200)
