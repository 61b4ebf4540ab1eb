"""The part of a scene that was asked for: a box in longitude and latitude, or the polygons of a vector file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import shapely
from rasterio.features import geometry_mask
from rasterio.transform import Affine

from pipeline.errors import Refused
from pipeline.geometry.windows import Span, Window, snap_outward
from pipeline.imagery.raster import Scene

EDGE_POINTS = 512  # a straight edge in one CRS is a curve in another: edges are cut into about as many pieces


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
        polygons = geopandas.GeoSeries([shapely.box(west, south, east, north)], crs="EPSG:4326")
        return cls(polygons, f"bbox {west!r} {south!r} {east!r} {north!r}")

    @classmethod
    def from_file(cls, path: Path) -> Area:
        """The polygons of a vector file that GDAL reads, or of a GeoParquet. Raises Refused where there are none."""
        if not path.exists():
            raise Refused(f"{path}: no such file (--aoi)")
        try:
            read = geopandas.read_parquet if path.suffix.lower() in (".parquet", ".geoparquet") else geopandas.read_file
            polygons = read(path).geometry
        except Exception as error:
            raise Refused(f"{path}: cannot be read as a vector file ({' '.join(str(error).split())[:160]})") from None
        polygons = polygons[~(polygons.isna() | polygons.is_empty)].make_valid()
        polygons = polygons[polygons.geom_type.isin(["Polygon", "MultiPolygon", "GeometryCollection"])]
        if polygons.empty:
            raise Refused(f"{path}: holds no polygons (--aoi)")
        if polygons.crs is None:
            raise Refused(f"{path}: declares no CRS: assign it (ogr2ogr -a_srs)")
        union = shapely.normalize(polygons.union_all())
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


def region_of(scene: Scene, area: Area | None) -> Region | None:
    """The region of a scene: all of it, or the part in `area` snapped outward to 512 px; None where they do not meet."""
    grid = scene.grid
    if area is None:
        return Region(grid.window)
    if grid.crs is None:
        raise Refused(f"{scene.uri}: has no CRS, so no --bbox or --aoi can be placed on it: assign it (gdal_edit.py -a_srs)")
    west, south, east, north = area.polygons.total_bounds
    dense = area.polygons.segmentize(max(east - west, north - south) / EDGE_POINTS)
    placed = shapely.union_all(dense.to_crs(grid.crs).to_numpy())
    a, b, c, d, e, f = tuple(~grid.affine)[:6]
    pixels = shapely.transform(placed, lambda xy: np.column_stack([xy @ (a, b) + c, xy @ (d, e) + f]))
    pixels = shapely.make_valid(pixels) if np.isfinite(shapely.get_coordinates(pixels)).all() else shapely.Polygon()
    bounds = shapely.intersection(pixels, shapely.box(0, 0, grid.width, grid.height)).bounds
    if len(bounds) != 4 or np.isnan(bounds).any():
        return None
    left, top, right, bottom = bounds
    rows = Span(int(np.floor(top)), int(np.ceil(bottom)))
    cols = Span(int(np.floor(left)), int(np.ceil(right)))
    if rows.length <= 0 or cols.length <= 0:
        return None
    window = snap_outward(Window.of(rows, cols), grid.height, grid.width)
    return Region(window, shapely.geometry.mapping(pixels))
