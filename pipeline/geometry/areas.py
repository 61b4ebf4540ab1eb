"""Ground areas: how many square metres of the ellipsoid each pixel covers, in any CRS.

A projected pixel's own size is not its area on the ground (EPSG:3857 at 60 degrees north is 4 times too large), so
cells of the grid are taken to longitude and latitude and measured in an equal-area plane of the WGS 84 ellipsoid:
the cylindrical one, or the polar azimuthal one near a pole (Snyder 1987, Map Projections: A Working Manual, eq. 3-12
for the authalic q, 10-15 and 24-23 for the two planes). A cell is at most about 1 km wide, within which the area of
a pixel is taken as constant; where rows follow parallels a cell is one row high, and exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyproj
import shapely
from pyproj.exceptions import ProjError
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.transform import Affine

from pipeline.geometry.windows import Window

SEMI_MAJOR_M = 6378137.0  # WGS 84
FLATTENING = 1 / 298.257223563
ECCENTRICITY = np.sqrt(FLATTENING * (2 - FLATTENING))
CELL_M = 1000.0
EDGE_M = 100.0  # with edges of a kilometre, which bend 2 cm from CRS to CRS, the area of a real parcel 5 m wide was 0.2 % off
MOST_EDGES = 50_000  # of a polygon: whatever its size, it fits into memory
POLAR_DEGREES = 70.0
FLAT_DEGREES = 85.0  # up to here the cylindrical plane keeps edges of EDGE_M straight enough


@dataclass(frozen=True)
class GroundAreas:
    """The area of a pixel in each cell of a window: `area_m2[i, j]` for rows and columns of cell (i, j)."""

    row_cells: np.ndarray  # H: the cell row of each pixel row
    col_cells: np.ndarray  # W: the cell column of each pixel column
    area_m2: np.ndarray  # cell rows x cell columns, float64

    def totals_m2(self, mask_HW: np.ndarray, values: int = 256) -> np.ndarray:
        """The ground area of each value of a uint8 mask over the window: float64 of `values` entries."""
        area_HW = self.area_m2[self.row_cells[:, None], self.col_cells]
        return np.bincount(mask_HW.ravel(), weights=area_HW.ravel(), minlength=values)


def ground_areas(window: Window, transform: Affine, crs: CRS) -> GroundAreas:
    """The ground areas of a window's pixels, within 0.1 % of the geodesic area.

    `transform` takes (col, row) of the scene to `crs`. Pixels with a corner that has no place on the ground (beyond the
    disc of a geostationary view) cover 0 square metres. Raises rasterio's CRSError for a CRS that is tied to no globe,
    or to another than the Earth.
    """
    row_step, col_step = _cell_size(window, transform, crs)
    row_edges = np.append(np.arange(0, window.height, row_step), window.height)
    col_edges = np.append(np.arange(0, window.width, col_step), window.width)
    col_grid, row_grid = np.meshgrid(col_edges + float(window.col), row_edges + float(window.row))
    x, y = transform * (col_grid, row_grid)
    lon, lat = to_lonlat(x, y, crs)
    cells_m2 = _quad_areas_m2(lon, lat, polar=not _along_parallels(transform, crs))
    pixels = np.diff(row_edges)[:, None] * np.diff(col_edges)
    area_m2 = np.nan_to_num(cells_m2 / pixels, nan=0.0)
    return GroundAreas(np.arange(window.height) // row_step, np.arange(window.width) // col_step, area_m2)


def polygon_areas_m2(polygons: np.ndarray, crs: CRS) -> np.ndarray:
    """The ground areas of polygons, float64, within 0.1 % of the geodesic area; edges are straight in `crs`.

    NaN where a corner has no place on the ground. Raises rasterio's CRSError as `ground_areas` does.
    """
    fine = with_short_edges(polygons, crs)
    coordinates, owner = shapely.get_coordinates(fine, return_index=True)
    lon, lat = to_lonlat(coordinates[:, 0], coordinates[:, 1], crs)
    west, east = _extremes(lon, owner, len(fine))
    lon = np.where((east - west > 180)[owner] & (lon < 0), lon + 360, lon)  # across the antimeridian
    west, east = _extremes(lon, owner, len(fine))
    plane = np.column_stack([np.radians(lon), _authalic_q(lat) / 2]) * SEMI_MAJOR_M
    areas_m2 = shapely.area(shapely.set_coordinates(fine.copy(), np.nan_to_num(plane)))
    lowest, highest = _extremes(lat, owner, len(fine))
    areas_m2[np.isnan(lowest)] = np.nan
    for number in np.flatnonzero((east - west > 180) | (np.maximum(-lowest, highest) > FLAT_DEGREES)):
        on_globe = shapely.transform(fine[number : number + 1], lambda xy: np.column_stack(to_lonlat(xy[:, 0], xy[:, 1], crs)))
        areas_m2[number] = abs(pyproj.Geod(ellps="WGS84").geometry_area_perimeter(shapely.orient_polygons(on_globe[0]))[0])
    return areas_m2


def with_short_edges(polygons: np.ndarray, crs: CRS) -> np.ndarray:
    """The same polygons with more corners: no edge is longer than EDGE_M, so that edges are straight in any CRS."""
    unit_m = crs.units_factor[1] * (SEMI_MAJOR_M if crs.is_geographic else 1.0)
    longest = np.maximum(EDGE_M / unit_m, shapely.length(polygons) / MOST_EDGES)
    corners, owner = shapely.get_coordinates(polygons, return_index=True)
    edges = np.hypot(*np.diff(corners, axis=0, append=corners[-1:]).T)  # and steps from ring to ring, or to another owner
    cut = _extremes(edges, owner, len(polygons))[1] > longest
    fine = polygons.copy()
    fine[cut] = shapely.segmentize(fine[cut], longest[cut])
    return fine


def _extremes(values: np.ndarray, owner: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest value of each owner; NaN where it has none."""
    lowest, highest = np.full(count, np.nan), np.full(count, np.nan)
    if len(values):
        owners, starts = np.unique(owner, return_index=True)
        lowest[owners], highest[owners] = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    return lowest, highest


def to_lonlat(x: np.ndarray, y: np.ndarray, crs: CRS) -> tuple[np.ndarray, np.ndarray]:
    """WGS 84 longitude and latitude, in degrees, of points of `crs`; NaN where a point has no place on the ground.

    Raises rasterio's CRSError for a CRS that is tied to no globe, or to another than the Earth.
    """
    if crs.is_geographic:  # the outer pixels of a grid whose centres lie on the poles reach beyond them
        pole = np.pi / 2 / crs.units_factor[1]
        y = np.clip(y, -pole, pole)
    lon, lat = (np.asarray(degrees) for degrees in _to_lonlat(crs.to_wkt()).transform(x, y))
    known = np.isfinite(lon) & np.isfinite(lat)
    return np.where(known, lon, np.nan), np.where(known, lat, np.nan)


@lru_cache(maxsize=64)
def _to_lonlat(wkt: str) -> pyproj.Transformer:
    # not rasterio.warp.transform: that raises for all points where one has no place
    try:
        return pyproj.Transformer.from_crs(pyproj.CRS.from_wkt(wkt), "EPSG:4326", always_xy=True)
    except ProjError as error:
        raise CRSError(f"no way from this CRS to longitude and latitude: {' '.join(str(error).split())[:160]}") from None


def _cell_size(window: Window, transform: Affine, crs: CRS) -> tuple[int, int]:
    """Rows and columns of a cell. Where only the latitude matters, a cell is a row as wide as the window allows."""
    unit_m = crs.units_factor[1] * (SEMI_MAJOR_M if crs.is_geographic else 1.0)
    row_m = np.hypot(transform.b, transform.e) * unit_m
    col_m = np.hypot(transform.a, transform.d) * unit_m
    if _along_parallels(transform, crs):
        eighth = int(np.pi / 4 * SEMI_MAJOR_M / col_m) or 1  # an edge must stay shorter than half the globe
        return 1, min(window.width, eighth)
    return int(np.clip(CELL_M / row_m, 1, window.height)), int(np.clip(CELL_M / col_m, 1, window.width))


def _along_parallels(transform: Affine, crs: CRS) -> bool:
    """Whether a row of pixels keeps its latitude, so that the cylindrical plane is exact up to the poles."""
    if transform.b != 0 or transform.d != 0:
        return False
    try:
        return crs.to_dict().get("proj") in ("longlat", "merc")
    except CRSError:  # no PROJ string says what it is
        return False


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
