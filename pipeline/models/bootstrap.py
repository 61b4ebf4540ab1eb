"""How sure a score is, and whether one model is better than another: both from units of data that are drawn anew.

Pixels are not independent, their neighbours err with them; scenes, or large blocks of a scene, nearly are. Counts of units
add up, so a resample is a weighted sum: 2,000 of them cost one matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2_000
FEWEST_UNITS = 2  # with one there is nothing to draw; below about 10 an interval is a rough guess
DRAWN_AT_ONCE = 100  # resamples: their weights for 10,000 units take 8 MB

Statistic = Callable[[np.ndarray], np.ndarray]


def resampled_totals(counts_U: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """The totals of `resamples` draws, with replacement, of as many units as there are: float64 [resamples, ...].

    `counts_U` is [units, ...]. The same number of units and the same seed draw the same units: so models are compared
    on the same draws.
    """
    units = len(counts_U)
    random = np.random.default_rng(seed)
    flat = counts_U.reshape(units, -1).astype(float)
    share = np.full(units, 1 / units)
    sizes = [min(DRAWN_AT_ONCE, resamples - start) for start in range(0, resamples, DRAWN_AT_ONCE)]
    totals = np.concatenate([random.multinomial(units, share, size) @ flat for size in sizes])
    return totals.reshape(resamples, *counts_U.shape[1:])


def interval(values_R: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The percentile interval (Efron and Tibshirani 1993, chapter 13) of resampled values [resamples, ...].

    NaNs, of draws that have no score, are left out; NaN where none is left.
    """
    tails = 100 * (1 - level) / 2
    known = np.isfinite(values_R).any(axis=0)
    filled = np.where(known, values_R, 0.0)
    low, high = np.nanpercentile(filled, (tails, 100 - tails), axis=0)
    return np.where(known, low, np.nan), np.where(known, high, np.nan)


def score_interval(counts_U: np.ndarray, statistic: Statistic, **draws: int) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of a statistic of the total, over units; NaN with fewer than two units."""
    if len(counts_U) < FEWEST_UNITS:
        nothing = np.full(np.shape(statistic(counts_U.sum(axis=0))), np.nan)
        return nothing, nothing
    return interval(statistic(resampled_totals(counts_U, **draws)))


@dataclass(frozen=True)
class Difference:
    """How much more the first of two models scores, with its 95 % interval and the two-sided p of there being none."""

    value: float
    low: float
    high: float
    p: float


def paired_difference(first_U: np.ndarray, second_U: np.ndarray, statistic: Statistic, **draws: int) -> Difference:
    """The difference of a scalar statistic between two models on the same units, [units, ...] each, by paired bootstrap.

    p is twice the share of resamples on the other side of 0, or on it, with one added to either count so that it is never 0.
    NaN with fewer than two units.
    """
    value = float(statistic(first_U.sum(axis=0)) - statistic(second_U.sum(axis=0)))
    if len(first_U) < FEWEST_UNITS:
        return Difference(value, math.nan, math.nan, math.nan)
    drawn = statistic(resampled_totals(first_U, **draws)) - statistic(resampled_totals(second_U, **draws))
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn) or not math.isfinite(value):
        return Difference(value, math.nan, math.nan, math.nan)
    low, high = interval(drawn)
    below, above = ((side.sum() + 1) / (len(drawn) + 1) for side in (drawn <= 0, drawn >= 0))
    return Difference(value, float(low), float(high), float(min(1.0, 2 * min(below, above))))


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided p of McNemar's test (1947, Psychometrika 12, 153-157; with Edwards's continuity correction), of pixels
    that only the one or only the other model gets right.

    It takes pixels as independent, which they are not: with a million of them any difference is "significant". Prefer
    `clustered_mcnemar`. NaN where the models are never of different correctness.
    """
    discordant = only_first + only_second
    if discordant == 0:
        return math.nan
    chi2 = max(0, abs(only_first - only_second) - 1) ** 2 / discordant
    return math.erfc(math.sqrt(chi2 / 2))


def clustered_mcnemar(only_first_U: np.ndarray, only_second_U: np.ndarray) -> float:
    """McNemar's test with units instead of pixels as what is independent (as Durkalski et al. 2003, Statistics in Medicine
    22, 2417-2428, here with units weighted by their pixels): two-sided p; good for 20 units or more.

    NaN with fewer than two units or where the models never differ.
    """
    gaps = only_first_U.astype(float) - only_second_U
    squares = float((gaps**2).sum())
    if len(gaps) < FEWEST_UNITS or squares == 0:
        return math.nan
    return math.erfc(abs(gaps.sum()) / math.sqrt(2 * squares))
