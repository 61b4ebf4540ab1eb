"""Ground areas: how many square metres of the ellipsoid each pixel covers, in any CRS.

A projected pixel's own size is not its area on the ground (EPSG:3857 at 60 degrees north is 4 times too large), so
cells of the grid are taken to longitude and latitude and measured in an equal-area plane of the WGS 84 ellipsoid:
the cylindrical one, or the polar azimuthal one near a pole (Snyder 1987, Map Projections: A Working Manual, eq. 3-12
for the authalic q, 10-15 and 24-23 for the two planes). A cell is at most about 1 km wide, within which the area of
a pixel is taken as constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points

from pipeline.geometry.windows import Window

SEMI_MAJOR_M = 6378137.0  # WGS 84
FLATTENING = 1 / 298.257223563
ECCENTRICITY = np.sqrt(FLATTENING * (2 - FLATTENING))
CELL_M = 1000.0
POLAR_DEGREES = 70.0
LONLAT = CRS.from_epsg(4326)


@dataclass(frozen=True)
class GroundAreas:
    """The area of a pixel in each cell of a window: `area_m2[i, j]` for rows and columns of cell (i, j)."""

    row_cells: np.ndarray  # H: the cell row of each pixel row
    col_cells: np.ndarray  # W: the cell column of each pixel column
    area_m2: np.ndarray  # cell rows x cell columns, float64

    def totals_m2(self, mask_HW: np.ndarray, values: int = 256) -> np.ndarray:
        """The ground area of each value of a uint8 mask over the window: float64 of `values` entries."""
        rows, cols = self.area_m2.shape
        cells_HW = (self.row_cells[:, None] * cols + self.col_cells) * values
        counts = np.bincount((cells_HW + mask_HW).ravel(), minlength=rows * cols * values)
        return (counts.reshape(rows * cols, values) * self.area_m2.reshape(-1, 1)).sum(axis=0)


def ground_areas(window: Window, transform: Affine, crs: CRS) -> GroundAreas:
    """The ground areas of a window's pixels, within 0.1 % of the geodesic area.

    `transform` takes (col, row) of the scene to `crs`. Pixels with a corner that has no place on the ground (beyond the
    disc of a geostationary view) cover 0 square metres. Raises rasterio's CRSError for a CRS that is tied to no globe.
    """
    row_step, col_step = _cell_size(window, transform, crs)
    row_edges = np.append(np.arange(0, window.height, row_step), window.height)
    col_edges = np.append(np.arange(0, window.width, col_step), window.width)
    lon, lat = _lonlat(row_edges + window.row, col_edges + window.col, transform, crs)
    cells_m2 = _quad_areas_m2(lon, lat, polar=not _along_parallels(transform, crs))
    pixels = np.diff(row_edges)[:, None] * np.diff(col_edges)
    area_m2 = np.nan_to_num(cells_m2 / pixels, nan=0.0)
    return GroundAreas(np.arange(window.height) // row_step, np.arange(window.width) // col_step, area_m2)


def _cell_size(window: Window, transform: Affine, crs: CRS) -> tuple[int, int]:
    """Rows and columns of a cell. Where only the latitude matters, a cell is a row as wide as the window allows."""
    unit_m = 111_320.0 if crs.is_geographic else crs.linear_units_factor[1]
    row_m = np.hypot(transform.b, transform.e) * unit_m
    col_m = np.hypot(transform.a, transform.d) * unit_m
    rows = int(np.clip(CELL_M / row_m, 1, window.height))
    if _along_parallels(transform, crs):
        quarter = int(90 * 111_320.0 / col_m) or 1  # an edge must stay shorter than half the globe
        return rows, min(window.width, quarter)
    return rows, int(np.clip(CELL_M / col_m, 1, window.width))


def _along_parallels(transform: Affine, crs: CRS) -> bool:
    """Whether a row of pixels keeps its latitude, so that the cylindrical plane is exact up to the poles."""
    return transform.b == 0 and transform.d == 0 and crs.to_dict().get("proj") in ("longlat", "merc")


def _lonlat(rows: np.ndarray, cols: np.ndarray, transform: Affine, crs: CRS) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude, in degrees, of the corners where grid lines `rows` and `cols` cross."""
    col_grid, row_grid = np.meshgrid(cols.astype(float), rows.astype(float))
    x, y = transform * (col_grid, row_grid)
    if crs.is_geographic:
        return x, np.clip(y, -90, 90)
    lon, lat = transform_points(crs, LONLAT, x.ravel(), y.ravel())
    lon_lat = np.reshape([lon, lat], (2, *x.shape))
    lon_lat[~np.isfinite(lon_lat)] = np.nan
    return lon_lat[0], lon_lat[1]


def _quad_areas_m2(lon: np.ndarray, lat: np.ndarray, *, polar: bool) -> np.ndarray:
    """Ellipsoidal areas of the quads between neighbouring corners; lon and lat in degrees, (M + 1) x (N + 1)."""
    radius2 = SEMI_MAJOR_M**2 * _authalic_q(90.0) / 2  # square of the authalic radius
    sine = _authalic_q(lat) / _authalic_q(90.0)  # of the authalic latitude
    turn = np.radians(lon)
    cylinder = _shoelace(turn, sine, wrap=True)
    if not polar:
        return cylinder * radius2
    radius = np.sqrt(np.maximum(0.0, 2 * (1 - np.abs(sine))))
    disc = _shoelace(radius * np.cos(turn), radius * np.sin(turn), wrap=False)
    near_pole = np.minimum.reduce(_corners(np.abs(lat))) > POLAR_DEGREES
    return np.where(near_pole, disc, cylinder) * radius2


def _authalic_q(latitude_degrees: np.ndarray | float) -> np.ndarray:
    sine = np.sin(np.radians(latitude_degrees))
    e = ECCENTRICITY
    inside = 1 - (e * sine) ** 2
    return (1 - e**2) * (sine / inside - np.log((1 - e * sine) / (1 + e * sine)) / (2 * e))


def _corners(grid: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]


def _shoelace(x: np.ndarray, y: np.ndarray, *, wrap: bool) -> np.ndarray:
    """Areas of the quads between corners (x, y); `wrap` takes differences in x the short way round the globe."""
    x0, *others = _corners(x)
    dx1, dx2, dx3 = ((other - x0 + np.pi) % (2 * np.pi) - np.pi if wrap else other - x0 for other in others)
    y0, *others = _corners(y)
    dy1, dy2, dy3 = (other - y0 for other in others)
    return np.abs(dx1 * dy2 - dx2 * dy1 + dx2 * dy3 - dx3 * dy2) / 2
