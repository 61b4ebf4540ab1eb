"""Polygons in the pixels of a grid, (col, row), and back: where they are shares of pixels, whatever the grid's CRS or rotation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyproj
import shapely
from rasterio.crs import CRS

from pipeline.geometry.areas import with_short_edges
from pipeline.imagery.raster import Grid

SAMPLES = 33  # a side: points of a grid that say where it lies in another CRS
MARGIN = 0.1  # of what they span: the grid between them
EDGE_PX = 8.0
CHUNK = 10_000  # polygons
SURFACES = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)


def to_pixels(polygons: np.ndarray, crs: str, grid: Grid) -> np.ndarray:
    """Polygons of `crs` in (col, row) of a grid; empty where one is clear of it, or has a corner without coordinates in its CRS."""
    placed = np.full(len(polygons), shapely.Polygon(), object)
    near = np.flatnonzero(_near(polygons, crs, grid))
    for some_N in in_chunks(len(near)):
        _place(polygons, near[some_N], crs, grid, placed)
    return placed


def _place(polygons: np.ndarray, near: np.ndarray, crs: str, grid: Grid, placed: np.ndarray) -> None:
    """Put those of the polygons `near` that touch a grid, in its pixels, into `placed`, in place."""
    theirs, ours = pyproj.CRS.from_wkt(crs), pyproj.CRS.from_wkt(grid.crs or "")
    moved = polygons[near]
    if theirs != ours:
        way = pyproj.Transformer.from_crs(theirs, ours, always_xy=True)
        moved = shapely.transform(with_short_edges(moved, CRS.from_wkt(crs)), way.transform, interleaved=False)
    corners, owner = shapely.get_coordinates(moved, return_index=True)
    known = np.ones(len(moved), bool)
    known[owner[~np.isfinite(corners).all(axis=1)]] = False
    near, moved = near[known], moved[known]
    if ours.is_geographic:
        turn = 2 * np.pi / ours.axis_info[0].unit_conversion_factor
        moved = _turned(moved, turn, (grid.affine * (grid.width / 2, grid.height / 2))[0])
    a, b, c, d, e, f = tuple(~grid.affine)[:6]
    pixels = shapely.transform(moved, lambda xy: np.column_stack([xy @ (a, b) + c, xy @ (d, e) + f]))
    low_col, low_row, high_col, high_row = shapely.bounds(pixels).reshape(-1, 4).T
    touching = (low_col < grid.width) & (high_col > 0) & (low_row < grid.height) & (high_row > 0)
    placed[near[touching]] = _valid(pixels[touching])


def _turned(polygons: np.ndarray, turn: float, middle: float) -> np.ndarray:
    """Each polygon as many times round the globe as brings it nearest to a longitude: grids may run past 180 degrees."""
    parts, owner = shapely.get_parts(polygons, return_index=True)
    low, _, high, _ = shapely.bounds(parts).reshape(-1, 4).T
    shift = np.round((middle - (low + high) / 2) / turn) * turn
    if not shift.any():
        return polygons
    corners, of_part = shapely.get_coordinates(parts, return_index=True)
    corners[:, 0] += shift[of_part]
    return shapely.multipolygons(shapely.set_coordinates(parts, corners), indices=owner)


def in_chunks(count: int) -> Iterator[slice]:
    """Slices of so many polygons that what is made of them on the way takes little memory: a kilobyte or more each."""
    return (slice(start, start + CHUNK) for start in range(0, count, CHUNK))


def from_pixels(polygons: np.ndarray, crs: str, grid: Grid) -> np.ndarray:
    """Polygons in (col, row) of a grid in `crs`, with so many corners that their edges are straight there too."""
    x_y = shapely.transform(shapely.segmentize(polygons, EDGE_PX), lambda xy: np.column_stack(grid.affine * (xy[:, 0], xy[:, 1])))
    theirs, ours = pyproj.CRS.from_wkt(crs), pyproj.CRS.from_wkt(grid.crs or "")
    if theirs != ours:
        way = pyproj.Transformer.from_crs(ours, theirs, always_xy=True)
        x_y = shapely.transform(x_y, way.transform, interleaved=False)
    return _valid(x_y)


def _near(polygons: np.ndarray, crs: str, grid: Grid) -> np.ndarray:
    """Which polygons may touch a grid: all, where that cannot be told by boxes in their CRS."""
    col, row = (edge.ravel() for edge in np.meshgrid(np.linspace(0, grid.width, SAMPLES), np.linspace(0, grid.height, SAMPLES)))
    way = pyproj.Transformer.from_crs(grid.crs, crs, always_xy=True)
    x, y = way.transform(*(grid.affine * (col, row)))
    if not (np.isfinite(x) & np.isfinite(y)).all() or (way.target_crs and way.target_crs.is_geographic and np.ptp(x) > 90):
        return np.ones(len(polygons), bool)
    left, top, right, bottom = shapely.bounds(polygons).reshape(-1, 4).T
    across, down = MARGIN * np.ptp(x), MARGIN * np.ptp(y)
    return (left < x.max() + across) & (right > x.min() - across) & (top < y.max() + down) & (bottom > y.min() - down)


def _valid(polygons: np.ndarray) -> np.ndarray:
    """Polygons whose rings came to cross each other in another CRS, repaired."""
    polygons, invalid = polygons.copy(), ~shapely.is_valid(polygons)
    polygons[invalid] = shapely.make_valid(polygons[invalid])
    return only_polygons(polygons)


def only_polygons(geometries: np.ndarray) -> np.ndarray:
    """Polygons and multipolygons as they are; of other valid geometries the polygons in them, as one, or an empty one."""
    kept = np.array(geometries, object)
    for number in np.flatnonzero(~np.isin(shapely.get_type_id(kept), SURFACES)):
        parts = shapely.get_parts(shapely.get_parts(kept[number]))
        polygons = parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON]
        kept[number] = shapely.union_all(polygons) if len(polygons) else shapely.Polygon()
    return kept
