"""Ground lengths of lines on a raster's grid, in any CRS: how long a step along a row or a column is on the ellipsoid.

Steps are measured at the nodes of a coarse grid, as chords of half a pixel between points of the ellipsoid, and interpolated
between them. At 256 cells an axis that is within 1 in 10,000 of the geodesic for a raster of the whole globe in degrees, but for
the last rows at a pole; within 1 in 10 million for a UTM zone's scene.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rasterio.crs import CRS
from rasterio.transform import Affine
from scipy.ndimage import map_coordinates

from pipeline.geometry.areas import ECCENTRICITY, SEMI_MAJOR_M, to_lonlat
from pipeline.geometry.windows import Window

CELLS = 256
NUDGE = 0.25  # px on either side of a node


@dataclass(frozen=True)
class GroundLengths:
    """Ground metres of a step east and of a step south at the nodes of a grid over a raster, and the cosine between the two."""

    cell: tuple[float, float]  # height and width in px
    east_m: np.ndarray
    south_m: np.ndarray
    cosine: np.ndarray

    @classmethod
    def over(cls, region: Window, transform: Affine, crs: CRS) -> GroundLengths:
        """Of the raster over `region`. Where a pixel has no place on the ground, steps are 0 m long."""
        rows, cols = (np.linspace(0, length, min(length, CELLS) + 1) for length in (region.height, region.width))
        row, col = np.meshgrid(
            region.row + rows.clip(NUDGE, region.height - NUDGE), region.col + cols.clip(NUDGE, region.width - NUDGE), indexing="ij"
        )
        east = _chord(transform, crs, (row, col - NUDGE), (row, col + NUDGE))
        south = _chord(transform, crs, (row - NUDGE, col), (row + NUDGE, col))
        east_m, south_m = np.linalg.norm(east, axis=0), np.linalg.norm(south, axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            cosine = np.nan_to_num((east * south).sum(axis=0) / (east_m * south_m))
        return cls((rows[1], cols[1]), np.nan_to_num(east_m), np.nan_to_num(south_m), cosine)

    def lengths_m(self, from_N2: np.ndarray, to_N2: np.ndarray) -> np.ndarray:
        """The length of each straight line between two points (row, col) of the raster: float64."""
        step_N2 = to_N2.astype(np.float64) - from_N2
        longest = np.abs(step_N2).max(axis=0, initial=0)
        if (longest <= self.cell).all():
            return self._short(from_N2 + step_N2 / 2, step_N2)
        pieces = np.maximum(1, np.ceil(np.abs(step_N2 / self.cell).max(axis=1))).astype(np.int64)
        of = np.repeat(np.arange(len(pieces)), pieces)
        number = np.arange(len(of)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        part_N2 = (step_N2 / pieces[:, None])[of]
        middle_N2 = from_N2[of] + part_N2 * (number + 0.5)[:, None]
        return np.add.reduceat(self._short(middle_N2, part_N2), np.cumsum(pieces) - pieces)

    def _short(self, middle_N2: np.ndarray, step_N2: np.ndarray) -> np.ndarray:
        place = middle_N2.T / np.array(self.cell)[:, None]
        south, east = (
            step * map_coordinates(metres, place, order=1, mode="nearest")
            for step, metres in ((step_N2[:, 0], self.south_m), (step_N2[:, 1], self.east_m))
        )
        square = south**2 + east**2
        slanting = np.flatnonzero((south != 0) & (east != 0))
        if len(slanting):
            cosine = map_coordinates(self.cosine, place[:, slanting], order=1, mode="nearest")
            square[slanting] += 2 * cosine * south[slanting] * east[slanting]
        return np.sqrt(np.maximum(square, 0))


def _chord(transform: Affine, crs: CRS, start: tuple[np.ndarray, np.ndarray], stop: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The vector from one point (row, col) to the other on the ellipsoid, in m a pixel: 3 x points."""
    points = []
    for row, col in (start, stop):
        x, y = transform * (col, row)
        lon, lat = (np.radians(angle) for angle in to_lonlat(x, y, crs))
        normal = SEMI_MAJOR_M / np.sqrt(1 - (ECCENTRICITY * np.sin(lat)) ** 2)
        points.append(np.stack([
            normal * np.cos(lat) * np.cos(lon), normal * np.cos(lat) * np.sin(lon), normal * (1 - ECCENTRICITY**2) * np.sin(lat),
        ]))  # fmt: skip
    return (points[1] - points[0]) / (2 * NUDGE)
