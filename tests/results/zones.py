"""One piece of ground as masks in two UTM zones: classes follow from the place alone."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pyproj
import rasterio
import shapely
from rasterio.transform import Affine, from_origin

WEST, EAST = "EPSG:32632", "EPSG:32633"  # zones that meet at 12 degrees east
CENTRE = 12.0, 47.0
NODATA = 255


def corner(crs: str, east_m: float = 0.0, north_m: float = 0.0) -> tuple[float, float]:
    """A point of a zone, near the centre, on its 10 m grid."""
    x, y = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(*CENTRE)
    return round((x + east_m) / 10) * 10, round((y + north_m) / 10) * 10


def classes_at(x: np.ndarray, y: np.ndarray, crs: str) -> np.ndarray:
    """Classes 0 to 2 in patches of some hundred metres."""
    lon, lat = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)
    wave = np.sin((lon - 12) * 1500) + np.sin((lat - 47) * 2100)
    return np.digitize(wave, (-0.4, 0.7)).astype(np.uint8)


def write_mask(path: Path, crs: str, top_left: tuple[float, float], shape: tuple[int, int], hidden: np.ndarray | None = None) -> Path:
    """A mask of 10 m pixels; where `hidden` (H x W) it is nodata."""
    transform = from_origin(*top_left, 10, 10)
    cols, rows = np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5)
    mask_HW = classes_at(*(transform * (cols, rows)), crs)
    if hidden is not None:
        mask_HW[hidden] = NODATA
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", height=shape[0], width=shape[1], count=1, dtype="uint8", crs=crs, transform=transform, nodata=NODATA
    ) as dataset:
        dataset.write(mask_HW, 1)
    return path


def polygon(crs: str, transform: Affine, shape: tuple[int, int]) -> geopandas.GeoSeries:
    """The outline of a raster."""
    ring = [transform * corner for corner in ((0, 0), (shape[1], 0), (shape[1], shape[0]), (0, shape[0]))]
    return geopandas.GeoSeries([shapely.Polygon(ring)], crs=crs)
