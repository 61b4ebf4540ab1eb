"""How good a mask is: scores from a confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.models.bundle import NODATA


def confusion_matrix(truth_ids: np.ndarray, predicted_ids: np.ndarray, classes: int) -> np.ndarray:
    """Count pixels by class: entry [t, p] is how many of class t were called p, int64 `classes` x `classes`.

    Both arrays hold class ids in one shape; a pixel that is 255 in either is not counted. Matrices of parts add up to
    the matrix of the whole. Raises ValueError for another id that is not in 0..classes-1.

    >>> confusion_matrix(np.array([0, 0, 1, 255]), np.array([0, 1, 1, 1]), classes=2)
    array([[1, 1],
           [0, 1]])
    """
    if truth_ids.shape != predicted_ids.shape:
        raise ValueError(f"truth is {truth_ids.shape}, prediction is {predicted_ids.shape}")
    known = (truth_ids != NODATA) & (predicted_ids != NODATA)
    truth, predicted = truth_ids[known].astype(np.int64), predicted_ids[known].astype(np.int64)
    for ids in (truth, predicted):
        if ids.size and not 0 <= ids.min() <= ids.max() < classes:
            raise ValueError(f"class ids {ids.min()} to {ids.max()}, but there are {classes} classes")
    return np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)


@dataclass(frozen=True)
class Scores:
    """What a confusion matrix [truth, predicted] says; everything is a share, 0..1.

    A class that is neither in the truth nor predicted has no score (NaN) and no part in the means.
    """

    confusion: np.ndarray

    @property
    def accuracy(self) -> float:
        """The share of pixels that are called what they are."""
        return float(_ratio(np.trace(self.confusion), self.confusion.sum()))

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union of each class, float64 K."""
        hits, called, there = self._counts()
        return _ratio(hits, called + there - hits)

    @property
    def f1(self) -> np.ndarray:
        """The harmonic mean of precision and recall of each class, float64 K."""
        hits, called, there = self._counts()
        return _ratio(2 * hits, called + there)

    @property
    def mean_iou(self) -> float:
        return _mean(self.iou)

    @property
    def mean_f1(self) -> float:
        return _mean(self.f1)

    def to_json(self, names: list[str]) -> dict[str, Any]:
        """The scores, rounded to five digits, by the classes' names; null where a class has none."""
        return {
            "accuracy": _rounded(self.accuracy),
            "mean_iou": _rounded(self.mean_iou),
            "mean_f1": _rounded(self.mean_f1),
            "iou": {name: _rounded(value) for name, value in zip(names, self.iou, strict=True)},
            "f1": {name: _rounded(value) for name, value in zip(names, self.f1, strict=True)},
            "confusion_truth_predicted": self.confusion.tolist(),
        }

    def _counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each class the pixels that were called so rightly, that were called so, and that are so."""
        return np.diag(self.confusion), self.confusion.sum(axis=0), self.confusion.sum(axis=1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.asarray(part, float) / whole


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 5)
