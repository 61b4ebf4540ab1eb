"""How good a mask is: scores from a confusion matrix."""

from __future__ import annotations

from collections.abc import Callable
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


# Each measure takes confusion matrices [..., truth, predicted] and returns [...] for all classes, or [..., K] for each, float64.


def accuracy(confusion: np.ndarray) -> np.ndarray:
    """The share of pixels that are called what they are; NaN where nothing was counted."""
    return _ratio(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum(axis=(-2, -1)))


def precision(confusion: np.ndarray) -> np.ndarray:
    """Of the pixels that are called a class, the share that are it (user's accuracy); NaN where none is called so."""
    hits, called, _ = _counts(confusion)
    return _ratio(hits, called)


def recall(confusion: np.ndarray) -> np.ndarray:
    """Of the pixels that are a class, the share that are called it (producer's accuracy); NaN where there is none."""
    hits, _, there = _counts(confusion)
    return _ratio(hits, there)


def f1(confusion: np.ndarray) -> np.ndarray:
    """The harmonic mean of precision and recall; NaN where a class is neither there nor predicted."""
    hits, called, there = _counts(confusion)
    return _ratio(2 * hits, called + there)


def iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union; NaN where a class is neither there nor predicted."""
    hits, called, there = _counts(confusion)
    return _ratio(hits, called + there - hits)


def frequency_weighted_iou(confusion: np.ndarray) -> np.ndarray:
    """The IoU of each class, weighted by its share of the truth; NaN where nothing was counted."""
    _, _, there = _counts(confusion)
    return _ratio((np.nan_to_num(iou(confusion)) * there).sum(axis=-1), there.sum(axis=-1))


def kappa(confusion: np.ndarray) -> np.ndarray:
    """Cohen's kappa: how far accuracy is above what chance would agree on, 1 at best (Cohen 1960, Educational and
    Psychological Measurement 20, 37-46). NaN where chance alone would agree on everything, or nothing was counted."""
    _, called, there = _counts(confusion)
    total = confusion.sum(axis=(-2, -1)).astype(float)
    expected = _ratio((called.astype(float) * there).sum(axis=-1), total**2)
    return _ratio(accuracy(confusion) - expected, 1 - expected)


def mean_over_classes(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis of what is not NaN; NaN where nothing is left."""
    known = np.isfinite(values)
    return _ratio(np.where(known, values, 0).sum(axis=-1), known.sum(axis=-1))


def mean_precision_of(confusion: np.ndarray) -> np.ndarray:
    """The mean precision of the classes that are predicted."""
    return mean_over_classes(precision(confusion))


def mean_recall_of(confusion: np.ndarray) -> np.ndarray:
    """The mean recall of the classes that are there (balanced accuracy)."""
    return mean_over_classes(recall(confusion))


def mean_f1_of(confusion: np.ndarray) -> np.ndarray:
    """The mean F1 of the classes that are there or predicted."""
    return mean_over_classes(f1(confusion))


def mean_iou_of(confusion: np.ndarray) -> np.ndarray:
    """The mean IoU of the classes that are there or predicted."""
    return mean_over_classes(iou(confusion))


Measure = Callable[[np.ndarray], np.ndarray]
CLASS_MEASURES: dict[str, Measure] = {"precision": precision, "recall": recall, "f1": f1, "iou": iou}
MEASURES: dict[str, Measure] = {
    "accuracy": accuracy,
    "mean_precision": mean_precision_of,
    "mean_recall": mean_recall_of,
    "mean_f1": mean_f1_of,
    "mean_iou": mean_iou_of,
    "frequency_weighted_iou": frequency_weighted_iou,
    "kappa": kappa,
}


@dataclass(frozen=True)
class Scores:
    """What a confusion matrix [truth, predicted] says; everything is a share, 0..1, save kappa, which may be negative.

    A class that is neither in the truth nor predicted has no score (NaN) and no part in the means. One that is only in
    the truth has recall, F1 and IoU of 0 and no precision; one that is only predicted has no recall.
    """

    confusion: np.ndarray

    @property
    def pixels(self) -> int:
        """That were scored."""
        return int(self.confusion.sum())

    @property
    def summary(self) -> dict[str, Any]:
        """What is told of an epoch."""
        return {"accuracy": self.accuracy, "mean_iou": self.mean_iou, "mean_f1": self.mean_f1, "iou": tuple(self.iou.tolist())}

    @property
    def accuracy(self) -> float:
        """The share of pixels that are called what they are."""
        return float(accuracy(self.confusion))

    @property
    def precision(self) -> np.ndarray:
        """Of the pixels called each class the share that are it, float64 K."""
        return precision(self.confusion)

    @property
    def recall(self) -> np.ndarray:
        """Of the pixels of each class the share that are called it, float64 K."""
        return recall(self.confusion)

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union of each class, float64 K."""
        return iou(self.confusion)

    @property
    def f1(self) -> np.ndarray:
        """The harmonic mean of precision and recall of each class, float64 K."""
        return f1(self.confusion)

    @property
    def mean_iou(self) -> float:
        return float(mean_iou_of(self.confusion))

    @property
    def mean_f1(self) -> float:
        return float(mean_f1_of(self.confusion))

    @property
    def frequency_weighted_iou(self) -> float:
        return float(frequency_weighted_iou(self.confusion))

    @property
    def kappa(self) -> float:
        return float(kappa(self.confusion))

    def to_json(self, names: list[str]) -> dict[str, Any]:
        """The scores, rounded to five digits, by the classes' names; null where a class has none."""
        told: dict[str, Any] = {
            name: _rounded(float(MEASURES[name](self.confusion)))
            for name in ("accuracy", "mean_iou", "mean_f1", "frequency_weighted_iou", "kappa")
        }
        for name, measure in CLASS_MEASURES.items():
            told[name] = {title: _rounded(value) for title, value in zip(names, measure(self.confusion), strict=True)}
        return told | {"confusion_truth_predicted": self.confusion.tolist()}


def _counts(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each class the pixels that were called so rightly, that were called so, and that are so."""
    return np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(axis=-2), confusion.sum(axis=-1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole`, NaN where the whole is nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(whole) == 0, np.nan, np.asarray(part, float) / whole)


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 5)
