"""What is counted of a shard while it is written, and added up for its scene: classes, or the values of a target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from rasterio.crs import CRS

from pipeline.geometry.areas import ground_areas
from pipeline.geometry.pyramid import NODATA
from pipeline.geometry.windows import Window
from pipeline.inference.plan import Plan


@dataclass
class Tally:
    """What was counted in a shard, an entry a class; `area_m2` is None without a place on the ground,
    `confidence` (the sum, 0..100 a pixel) is None where it was not saved."""

    pixels: list[int]
    area_m2: list[float] | None
    confidence: list[int] | None

    dtype: ClassVar[type[np.generic]] = np.uint8

    def fingerprint(self) -> list[int]:
        """What `fingerprint_of` the mask's blocks must add up to."""
        return self.pixels

    def fingerprint_of(self, mask_HW: np.ndarray) -> np.ndarray:
        return np.bincount(mask_HW.ravel(), minlength=256)[: len(self.pixels)]


@dataclass
class ValueTally:
    """What was counted of a target's values in a shard: the valid pixels and their area, None without a place on the ground.

    `mean`, `minimum` and `maximum` are None where there is no valid pixel; `squares` is the sum of the squared differences
    from the mean; `bits` the sum of the values' bits, taken as whole numbers, by which a part is checked.
    """

    pixels: list[int]
    area_m2: list[float] | None
    mean: float | None
    squares: float
    minimum: float | None
    maximum: float | None
    bits: int

    dtype: ClassVar[type[np.generic]] = np.float32

    @classmethod
    def of(cls, values: np.ndarray, area_m2: float | None) -> ValueTally:
        """Of valid values, float32."""
        area = None if area_m2 is None else [area_m2]
        if not values.size:
            return cls([0], area, None, 0.0, None, None, 0)
        exact = values.astype(np.float64)
        mean = float(exact.mean())
        squares = float(np.square(exact - mean).sum())
        return cls([values.size], area, mean, squares, float(values.min()), float(values.max()), _bits(values))

    @property
    def std(self) -> float | None:
        """The standard deviation of the values, None where there are none."""
        return math.sqrt(self.squares / self.pixels[0]) if self.pixels[0] else None

    def fingerprint(self) -> list[int]:
        """What `fingerprint_of` the blocks must add up to."""
        return [*self.pixels, self.bits]

    def fingerprint_of(self, values_HW: np.ndarray) -> np.ndarray:
        valid = values_HW[~np.isnan(values_HW)]
        return np.array([valid.size, _bits(valid)])


Tallied = Tally | ValueTally


def _bits(values: np.ndarray) -> int:
    return int(values.view(np.uint32).sum(dtype=np.uint64))


def read_tally(content: Mapping[str, Any]) -> Tallied:
    """A tally as a part's index holds it. Raises TypeError for what is none."""
    return ValueTally(**content) if "bits" in content else Tally(**content)


def add_up(tallies: Sequence[Tally], classes: int) -> Tally:
    """The totals of a scene. They do not depend on the order of its parts: areas are summed exactly, then rounded."""
    pixels = np.zeros(classes, np.int64)
    for tally in tallies:
        pixels += tally.pixels
    areas = [tally.area_m2 for tally in tallies if tally.area_m2 is not None]
    confidence = [tally.confidence for tally in tallies if tally.confidence is not None]
    return Tally(
        pixels=pixels.tolist(),
        area_m2=[round(math.fsum(parts), 6) for parts in zip(*areas, strict=True)] if areas else None,
        confidence=np.sum(confidence, axis=0).tolist() if confidence else None,
    )


def add_up_values(tallies: Sequence[ValueTally]) -> ValueTally:
    """The totals of a shard or a scene, whatever the order of its parts: sums are exact, then rounded (Chan et al. 1983,
    Algorithms for computing the sample variance, The American Statistician 37)."""
    areas = [tally.area_m2[0] for tally in tallies if tally.area_m2 is not None]
    known = [(tally, tally.pixels[0], tally.mean) for tally in tallies if tally.mean is not None]
    pixels = sum(count for _, count, _ in known)
    area_m2 = [round(math.fsum(areas), 6)] if areas else None
    if not known:
        return ValueTally([0], area_m2, None, 0.0, None, None, 0)
    mean = math.fsum(count * part for _, count, part in known) / pixels
    squares = math.fsum(term for tally, count, part in known for term in (tally.squares, count * (part - mean) ** 2))
    return ValueTally(
        [pixels], area_m2, mean, squares, min(tally.minimum for tally, *_ in known if tally.minimum is not None),
        max(tally.maximum for tally, *_ in known if tally.maximum is not None), sum(tally.bits for tally, *_ in known),
    )  # fmt: skip


def total(plan: Plan, tallies: Sequence[Any]) -> Any:
    """The totals of a plan's parts: a Tally of classes, or a ValueTally."""
    return add_up_values(tallies) if plan.layers == ("value",) else add_up(tallies, plan.classes)


class ClassCounter:
    """Counts the classes of a shard, and their ground areas and confidence."""

    def __init__(self, plan: Plan):
        self._plan, self._crs = plan, _ground_crs(plan)
        self._confidence_layer = plan.layers.index("confidence") if "confidence" in plan.layers else None
        self._pixels = np.zeros(256, np.int64)
        self._area_m2 = np.zeros(256)
        self._confidence = np.zeros(256, np.int64)

    def add(self, window: Window, rows_LHW: np.ndarray) -> None:
        """Count some rows of the shard, which lie at `window` of the scene."""
        mask_HW = rows_LHW[0]
        self._pixels += np.bincount(mask_HW.ravel(), minlength=256)
        if self._crs:
            self._area_m2 += ground_areas(window, self._plan.scene.grid.affine, self._crs).totals_m2(mask_HW)
        if self._confidence_layer is not None:
            weights = rows_LHW[self._confidence_layer].ravel()
            self._confidence += np.bincount(mask_HW.ravel(), weights=weights, minlength=256).astype(np.int64)

    def tally(self) -> Tally:
        count = self._plan.classes
        return Tally(
            pixels=self._pixels[:count].tolist(),
            area_m2=self._area_m2[:count].tolist() if self._crs else None,
            confidence=self._confidence[:count].tolist() if self._confidence_layer is not None else None,
        )


class ValueCounter:
    """Counts the valid values of a shard and their ground area; NaN is no value."""

    def __init__(self, plan: Plan):
        self._plan, self._crs = plan, _ground_crs(plan)
        self._rows: list[ValueTally] = []

    def add(self, window: Window, rows_LHW: np.ndarray) -> None:
        """Count some rows of the shard, which lie at `window` of the scene."""
        missing_HW = np.isnan(rows_LHW[0])
        area_m2 = None
        if self._crs:
            kinds_HW = missing_HW.astype(np.uint8) * NODATA
            area_m2 = float(ground_areas(window, self._plan.scene.grid.affine, self._crs).totals_m2(kinds_HW)[0])
        self._rows.append(ValueTally.of(rows_LHW[0][~missing_HW], area_m2))

    def tally(self) -> ValueTally:
        return add_up_values(self._rows)


def _ground_crs(plan: Plan) -> CRS | None:
    return plan.scene.grid.rasterio_crs if plan.scene.on_ground else None


def counter_of(plan: Plan) -> ClassCounter | ValueCounter:
    """What counts a shard of that plan."""
    return ValueCounter(plan) if plan.layers == ("value",) else ClassCounter(plan)
