"""Labels that are numbers, such as heights in metres: what they are called, and which of them say nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.errors import Refused
from pipeline.geometry.windows import Window
from pipeline.models.bundle import Target
from pipeline.training.classes import IGNORE, LabelClass

PERCENTILES = (2, 98)  # of a target: between them lie the colours of pictures
VALUE = "value"  # what a target is called that nobody named


@dataclass(frozen=True)
class Numbers:
    """What labels mean that are numbers, in place of a class table: a name and a unit, "" where there is none, and the values
    that count as unknown, as the files hold them: before scale and offset."""

    name: str = ""
    unit: str = ""
    ignored: tuple[float, ...] = ()

    thing = "a number"  # that a label gives a pixel
    unknown = np.nan
    dtype = np.dtype(np.float32)
    kinds = 1  # of pixels that windows are drawn by: all alike
    outputs = 1

    @property
    def classes(self) -> tuple[LabelClass, ...]:
        """There are none."""
        return ()

    @property
    def names(self) -> list[str]:
        """Of the kinds of pixels."""
        return [self.name]

    def read(self, labels: Any, window: Window) -> np.ndarray:
        """The numbers of a window inside the grid, float32 H x W, NaN where there is none."""
        return labels.numbers(window, self.ignored)

    def kinds_of(self, labels_HW: np.ndarray) -> np.ndarray:
        """0 where there is a number, 255 elsewhere: uint8 H x W."""
        return np.where(np.isnan(labels_HW), IGNORE, 0).astype(np.uint8)

    def named_by(self, opened: Sequence[Any]) -> Numbers:
        """With the name and unit that the labels have, where this has none. Raises Refused for labels in different units."""
        first = opened[0]
        for other in opened:
            wanted = self.unit or first.unit
            if wanted and other.unit and other.unit != wanted:
                source = "the model" if self.unit else first.place
                raise Refused(f"{other.place}: is in {other.unit}, {source} in {wanted}: convert one of them")
        name = first.named if len({other.named for other in opened}) == 1 else ""
        return replace(self, name=self.name or name or VALUE, unit=self.unit or first.unit)


def target_of(table: Numbers, mean: float, std: float, sample_N: np.ndarray, place: str) -> Target:
    """The target of training labels with that mean and standard deviation; `sample_N` are some of them, for the percentiles.

    Raises Refused, naming `place`, where all are one value.
    """
    if not std > 0:
        raise Refused(f"{place}: the labels are {mean:.6g} wherever the model is trained: there is nothing to learn (--labels)")
    low, high = np.percentile(sample_N, PERCENTILES).tolist()
    if not low < high:  # nearly all are one value
        low, high = mean - std, mean + std
    mean, std, low, high = (float(f"{value:.6g}") for value in (mean, std, low, high))
    return Target(table.name, table.unit, mean, std, low, high)
