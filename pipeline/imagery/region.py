"""The part of a scene that was asked for: a box in longitude and latitude, or the polygons of a vector file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj
import shapely
from pyproj.exceptions import ProjError
from rasterio.errors import CRSError
from rasterio.features import geometry_mask
from rasterio.transform import Affine

from pipeline.errors import Refused
from pipeline.geometry.windows import BLOCK, Span, Window, cells, snap_outward
from pipeline.imagery import storage
from pipeline.imagery.raster import Grid, Scene
from pipeline.imagery.storage import Place
from pipeline.imagery.vectors import read_vectors

if TYPE_CHECKING:
    import geopandas  # a second to import, which only those who ask for a region should wait

EDGE_POINTS = 512  # a straight edge in one CRS is a curve in another: edges across the scene are cut into as many pieces
HAIRLINE_PX = 1e-7  # polygons that meet in one CRS, as at the antimeridian, do not part by rounding in another
SAMPLES = 33  # a side: points of the scene that say where it lies in the area's CRS


@dataclass(frozen=True)
class Area:
    """The polygons that were asked for, and words and a hash that tell them from others."""

    polygons: geopandas.GeoSeries
    label: str

    @classmethod
    def from_bbox(cls, west: float, south: float, east: float, north: float) -> Area:
        """A box in EPSG:4326 degrees. Raises Refused where it is empty or not on the globe."""
        if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
            raise Refused(f"--bbox {west:g} {south:g} {east:g} {north:g}: need west < east and south < north, in degrees")
        import geopandas

        polygons = geopandas.GeoSeries([shapely.box(west, south, east, north)], crs="EPSG:4326")
        return cls(polygons, f"bbox {float(west)!r} {float(south)!r} {float(east)!r} {float(north)!r}")

    @classmethod
    def from_file(cls, path: Place) -> Area:
        """The polygons of a vector file that GDAL reads, or of a GeoParquet. Raises Refused where there are none."""
        import geopandas

        if not storage.is_file(path) and not storage.is_folder(path):
            raise Refused(f"{path}: no such file (--aoi)")
        try:
            polygons = read_vectors(path).geometry
        except AttributeError:
            raise Refused(f"{path}: cannot be read as a vector file (it is a table without polygons)") from None
        check_coordinates(path, polygons.to_numpy())
        polygons = polygons[~(polygons.isna() | polygons.is_empty)].make_valid()
        union = shapely.normalize(_polygons_of(polygons.to_numpy()))
        if union.is_empty:
            raise Refused(f"{path}: holds no polygons (--aoi)")
        if polygons.crs is None:
            raise Refused(f"{path}: declares no CRS: assign it (ogr2ogr -a_srs)")
        content = shapely.to_wkb(union) + polygons.crs.to_wkt().encode()
        return cls(geopandas.GeoSeries([union], crs=polygons.crs), f"aoi {hashlib.sha256(content).hexdigest()}")


@dataclass(frozen=True)
class Region:
    """What is segmented of a scene: `window`, and in it the pixels whose centre lies in `geometry`.

    `geometry` is GeoJSON in pixel coordinates (col, row) of the scene, or None for all of the window.
    """

    window: Window
    geometry: dict[str, Any] | None = None

    def inside(self, window: Window) -> np.ndarray | None:
        """Which pixels of a window belong, as bool H x W; None where all do."""
        if self.geometry is None:
            return None
        return geometry_mask(
            [self.geometry], out_shape=(window.height, window.width),
            transform=Affine.translation(window.col, window.row), invert=True,
        )  # fmt: skip

    @property
    def pixels(self) -> int:
        """How many pixels belong."""
        total = 0
        for rows in cells(self.window.rows, BLOCK):
            strip = Window.of(rows, self.window.cols)
            inside_HW = self.inside(strip)
            total += strip.pixels if inside_HW is None else int(inside_HW.sum())
        return total


def check_coordinates(path: Place, geometries: np.ndarray) -> None:
    """Raise Refused where a coordinate is no number: nothing can be said of such a polygon."""
    if not np.isfinite(shapely.get_coordinates(geometries)).all():
        raise Refused(f"{path}: holds coordinates that are no numbers: correct or remove those polygons")


def region_of(scene: Scene, area: Area | None) -> Region | None:
    """The region of a scene: all of it, or the part in `area` snapped outward to 512 px; None where they do not meet."""
    grid = scene.grid
    if area is None:
        return Region(grid.window)
    if grid.crs is None:
        raise Refused(f"{scene.uri}: has no CRS, so no --bbox or --aoi can be placed on it: assign it (gdal_edit.py -a_srs)")
    try:
        pixels = _in_pixels(_near_scene(area.polygons, grid), grid)
    except (ProjError, CRSError) as error:
        raise Refused(f"{scene.uri}: no --bbox or --aoi can be placed on its CRS ({storage.told(error)[:160]})") from None
    if pixels is None:
        raise Refused(f"{scene.uri}: the area reaches where the scene's CRS has no coordinates: choose a smaller one")
    left, top, right, bottom = shapely.intersection(pixels, shapely.box(0, 0, grid.width, grid.height)).bounds
    if np.isnan(left):
        return None
    rows = Span(int(np.floor(top)), int(np.ceil(bottom)))
    cols = Span(int(np.floor(left)), int(np.ceil(right)))
    if rows.length <= 0 or cols.length <= 0:
        return None
    window = snap_outward(Window.of(rows, cols), grid.height, grid.width)
    return Region(window, shapely.geometry.mapping(pixels))


def _near_scene(polygons: geopandas.GeoSeries, grid: Grid) -> geopandas.GeoSeries:
    """What of the polygons lies about the scene, in fine pieces: far from a scene its CRS may have no coordinates."""
    col_grid, row_grid = np.meshgrid(np.linspace(0, grid.width, SAMPLES), np.linspace(0, grid.height, SAMPLES))
    x, y = grid.affine * (col_grid.ravel(), row_grid.ravel())
    x, y = pyproj.Transformer.from_crs(grid.crs, polygons.crs, always_xy=True).transform(x, y)
    known = np.isfinite(x) & np.isfinite(y)
    if not known.any() or not (known.all() or polygons.crs.is_geographic):
        return _segmentized(polygons, max(np.ptp(polygons.total_bounds[::2]), np.ptp(polygons.total_bounds[1::2])))
    x, y, turn = x[known], y[known], _turn(polygons.crs)
    if turn and np.abs(y).max() > turn * 80 / 360:  # about a pole every meridian is near
        west, _, east, _ = polygons.total_bounds
    else:
        west, east = _longitudes(x, turn) if turn else (x.min(), x.max())
    margin = 0.1 * max(east - west, np.ptp(y))
    copies = (-turn, 0.0, turn) if turn else (0.0,)
    near = [shapely.box(west - margin + copy, y.min() - margin, east + margin + copy, y.max() + margin) for copy in copies]
    return _segmentized(polygons.intersection(shapely.union_all(near)), max(np.ptp(y), min(east - west, np.ptp(x))))


def _segmentized(polygons: geopandas.GeoSeries, across: float) -> geopandas.GeoSeries:
    return polygons[~polygons.is_empty].segmentize(across / EDGE_POINTS)


def _turn(crs: pyproj.CRS) -> float:
    """Once round the globe in the units of a geographic CRS; 0 for another."""
    return 2 * np.pi / crs.axis_info[0].unit_conversion_factor if crs.is_geographic else 0.0


def _longitudes(lon: np.ndarray, turn: float) -> tuple[float, float]:
    """West and east of the shortest arc that holds all of `lon`; all the way round where no gap is wider than an eighth."""
    around = np.sort(lon % turn)
    gaps = np.diff(around, append=around[0] + turn)
    widest = int(gaps.argmax())
    if gaps[widest] < turn / 8:
        return -turn / 2, turn / 2
    west = around[(widest + 1) % len(around)]
    return west, west + turn - gaps[widest]


def _in_pixels(polygons: geopandas.GeoSeries, grid: Grid) -> shapely.Geometry | None:
    """The polygons in (col, row) of the grid; None where a corner has no coordinates in its CRS."""
    placed = polygons.to_crs(grid.crs).to_numpy()
    if not np.isfinite(shapely.get_coordinates(placed)).all():
        return None
    turn = _turn(pyproj.CRS(grid.crs))  # a grid of longitudes may run past 180 degrees
    copies = [shapely.transform(placed, lambda xy, shift=shift: np.add(xy, (shift, 0))) for shift in ((-turn, 0, turn) if turn else (0,))]
    a, b, c, d, e, f = tuple(~grid.affine)[:6]
    pixels = shapely.transform(np.concatenate(copies), lambda xy: np.column_stack([xy @ (a, b) + c, xy @ (d, e) + f]))
    joined = _polygons_of(shapely.make_valid(pixels))
    for hair in (HAIRLINE_PX, -HAIRLINE_PX):
        joined = shapely.buffer(joined, hair, join_style="mitre")
    return joined


def _polygons_of(geometries: np.ndarray) -> shapely.MultiPolygon:
    """The polygons among valid geometries, as one."""
    parts = shapely.get_parts(shapely.get_parts(geometries))
    union = shapely.union_all(parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON])
    return shapely.MultiPolygon(list(shapely.get_parts(union)))
