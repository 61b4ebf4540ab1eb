"""Two models on the same scenes: where they agree, and how the areas of classes move from one to the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from rasterio.windows import Window as RasterioWindow

from pipeline.geometry.areas import ground_areas
from pipeline.geometry.windows import BLOCK, Window, cells
from pipeline.imagery.raster import grid_of, opened_dataset
from pipeline.imagery.storage import Place
from pipeline.models.bundle import Bundle

STRIP_PX = 2**24


class Crossed(NamedTuple):
    """Ground area of pixels by the class that each of two models gives them, m2: rows are the first's classes, columns the second's."""

    area_m2: np.ndarray
    one: tuple[str, ...]
    other: tuple[str, ...]

    @property
    def agreement(self) -> float | None:
        """The share of the area that has the same class, by name; None where there is none."""
        same = sum(self.area_m2[a, b] for a, name in enumerate(self.one) for b, its in enumerate(self.other) if name == its)
        return float(same / self.area_m2.sum()) if self.area_m2.sum() else None

    def to_json(self) -> dict[str, Any]:
        """Areas of each class by both, what moved between which, and the agreement."""
        names = list(dict.fromkeys([*self.one, *self.other]))
        by_one = dict(zip(self.one, self.area_m2.sum(axis=1), strict=True))
        by_other = dict(zip(self.other, self.area_m2.sum(axis=0), strict=True))
        moved = [
            {"from": name, "to": its, "area_m2": round(float(self.area_m2[a, b]), 1)}
            for a, name in enumerate(self.one) for b, its in enumerate(self.other) if name != its and self.area_m2[a, b] > 0
        ]  # fmt: skip
        return {
            "agreement": self.agreement,
            "compared_m2": float(self.area_m2.sum()),
            "classes": [
                {"class_name": name, "before_m2": float(by_one.get(name, 0.0)), "after_m2": float(by_other.get(name, 0.0))}
                for name in names
            ],
            "moved": sorted(moved, key=lambda row: -float(row["area_m2"])),
        }


def cross(pairs: Sequence[tuple[Place, Place]], one: Bundle, other: Bundle) -> Crossed:
    """Count pairs of masks, which share their grid, where both have a class. Memory is that of a strip."""
    shape = (len(one.classes), len(other.classes))
    total = np.zeros(shape[0] * shape[1] + 1)
    for first, second in pairs:
        with opened_dataset(first) as mine, opened_dataset(second) as theirs:
            grid = grid_of(mine)
            if grid != grid_of(theirs):
                raise ValueError(f"{first} and {second} lie on different grids")
            for span in cells(grid.window.rows, max(BLOCK, STRIP_PX // grid.width // BLOCK * BLOCK)):
                window = Window.of(span, grid.window.cols)
                area = RasterioWindow(window.col, window.row, window.width, window.height)
                one_HW, other_HW = mine.read(1, window=area).astype(np.int32), theirs.read(1, window=area).astype(np.int32)
                known = (one_HW < shape[0]) & (other_HW < shape[1])
                label_HW = np.where(known, one_HW * shape[1] + other_HW, len(total) - 1)
                total += ground_areas(window, grid.affine, grid.rasterio_crs).totals_m2(label_HW, len(total))
    names = [tuple(entry.name for entry in bundle.classes) for bundle in (one, other)]
    return Crossed(total[:-1].reshape(shape), *names)
