"""How good predicted numbers are: RMSE, MAE, bias and R2 from sums that add up over parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

COUNT, ERROR, ABSOLUTE, SQUARED, TRUTH, TRUTH_SQUARED = range(6)
SUMS = 6


def error_sums(truth: np.ndarray, predicted: np.ndarray, origin: float = 0.0) -> np.ndarray:
    """Of pixels that have a number in both: their count, and the sums of predicted - truth, of its size, of its square, of truth -
    `origin`, and of the square of that; float64 of 6.

    The sums of parts add up to those of the whole. An origin near the truth's mean keeps R2 exact where that is large.

    >>> error_sums(np.array([1.0, 2.0, np.nan]), np.array([2.0, 0.0, 1.0]))
    array([ 2., -1.,  3.,  5.,  3.,  5.])
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"truth is {truth.shape}, prediction is {predicted.shape}")
    known = np.isfinite(truth) & np.isfinite(predicted)
    true, error = truth[known].astype(np.float64), predicted[known].astype(np.float64) - truth[known]
    away = true - origin
    return np.array([len(true), error.sum(), np.abs(error).sum(), (error**2).sum(), away.sum(), (away**2).sum()], np.float64)


# Each measure takes sums [..., 6] and returns [...], float64; NaN where nothing was counted.


def rmse(sums: np.ndarray) -> np.ndarray:
    """The root of the mean squared error, in the unit of the numbers."""
    return np.sqrt(_ratio(sums[..., SQUARED], sums[..., COUNT]))


def mae(sums: np.ndarray) -> np.ndarray:
    """The mean size of the errors, in the unit of the numbers."""
    return _ratio(sums[..., ABSOLUTE], sums[..., COUNT])


def bias(sums: np.ndarray) -> np.ndarray:
    """The mean error, predicted less true, in the unit of the numbers: above 0 predictions are too high."""
    return _ratio(sums[..., ERROR], sums[..., COUNT])


def r2(sums: np.ndarray) -> np.ndarray:
    """The share of the truth's variance that is explained: 1 at best, 0 for predicting the mean of the truth, below 0 for worse
    than that. NaN where the truth is one value."""
    spread = sums[..., TRUTH_SQUARED] - sums[..., TRUTH] * _ratio(sums[..., TRUTH], sums[..., COUNT])
    spread = np.where(spread > 1e-12 * sums[..., TRUTH_SQUARED], spread, 0.0)
    return 1 - _ratio(sums[..., SQUARED], spread)


Measure = Callable[[np.ndarray], np.ndarray]
MEASURES: dict[str, Measure] = {"rmse": rmse, "mae": mae, "bias": bias, "r2": r2}
LOWER_IS_BETTER = ("rmse", "mae")
HAVE_UNIT = ("rmse", "mae", "bias")


@dataclass(frozen=True)
class ValueScores:
    """What `error_sums` say, all in the unit of the numbers save R2."""

    sums: np.ndarray

    @property
    def pixels(self) -> int:
        """That were scored."""
        return int(self.sums[COUNT])

    @property
    def summary(self) -> dict[str, Any]:
        """What is told of an epoch."""
        return {name: float(measure(self.sums)) for name, measure in MEASURES.items()}

    def to_json(self) -> dict[str, Any]:
        """The scores to six digits, null where there is none, and the pixels."""
        return {name: rounded(value) for name, value in self.summary.items()} | {"pixels": self.pixels}


def rounded(value: float) -> float | None:
    """To six digits; None for NaN."""
    return None if np.isnan(value) else float(f"{value:.6g}")


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(whole) == 0, np.nan, np.asarray(part, float) / whole)
