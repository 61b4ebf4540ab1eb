"""Class rasters that are hard to outline, and their polygons as GDAL makes them of the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
import rasterio.features
import shapely
from shapely.geometry import shape

NODATA = 255
NLCD = Path(__file__).parents[3] / "shared" / "data" / "zion-landsat8" / "nlcd.tif"
Key = tuple[int, bytes]


def random_mask(seed: int) -> np.ndarray:
    """A small mask of up to four classes and, in some, nodata: salt and pepper, or larger patches."""
    random = np.random.default_rng(seed)
    height, width = random.integers(1, 34, 2)
    zoom, classes = random.integers(1, 4), random.integers(1, 5)
    mask_HW = random.integers(0, classes + 1, (height, width)).astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1)[:height, :width]
    if seed % 3:
        mask_HW[mask_HW == classes] = NODATA
    return mask_HW


def checkerboard(height: int, width: int) -> np.ndarray:
    """No two pixels of a class touch by a side, and all by corners."""
    return (np.add.outer(np.arange(height), np.arange(width)) % 2).astype(np.uint8)


def spiral(size: int) -> np.ndarray:
    """Two classes wound round each other a pixel wide: two polygons through every row."""
    mask_HW = np.zeros((size, size), np.uint8)
    row, col, step = 0, 0, (0, 1)
    mask_HW[0, 0] = 1
    while True:
        for _ in range(2):
            ahead = [(row + step[0] * far, col + step[1] * far) for far in (1, 2)]
            inside = [0 <= r < size and 0 <= c < size for r, c in ahead]
            if inside[0] and not (inside[1] and mask_HW[ahead[1]]) and not mask_HW[ahead[0]]:
                break
            step = (step[1], -step[0])
        else:
            return mask_HW
        row, col = ahead[0]
        mask_HW[row, col] = 1


def nested(size: int) -> np.ndarray:
    """Squares in squares, each a hole of the one around it, and islands that touch their holes' borders by a corner."""
    row, col = np.indices((size, size))
    mask_HW = (np.minimum.reduce([row, col, size - 1 - row, size - 1 - col]) // 2 % 3).astype(np.uint8)
    mask_HW[size // 2, ::3] = 3
    return mask_HW


def land_cover(rows: slice, cols: slice) -> np.ndarray:
    """A part of the real class raster; skips where the shared data are not."""
    with rasterio.open(NLCD) as dataset:
        return dataset.read(1)[rows, cols]


def key_of(value: int, polygon: shapely.Geometry) -> Key:
    """What two polygons share that have one class and the same rings, wherever those begin and whichever way they run."""
    return int(value), shapely.normalize(polygon).wkb


def polygons_of_whole(mask_HW: np.ndarray, **place: object) -> list[Key]:
    """GDAL's polygons of a whole mask, in order."""
    found = rasterio.features.shapes(mask_HW, mask=mask_HW != NODATA, connectivity=4, **place)
    return sorted(key_of(value, shape(geometry)) for geometry, value in found)
