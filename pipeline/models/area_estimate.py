"""Class areas corrected for a map's errors, with confidence intervals.

Counting a map's pixels gives a biased area: what is missed and what is called too much seldom cancel. Olofsson et al. 2014
(Good practices for estimating area and assessing accuracy of land change, Remote Sensing of Environment 148, 42-57) weigh a
confusion matrix by the mapped areas instead. Equation numbers are theirs; the law is their table 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Z_95 = 1.96  # as in the paper


@dataclass(frozen=True)
class AreaEstimate:
    """Estimates for each class, float64 K, in the unit of the mapped areas; each with its standard error (`_se`).

    User's accuracy is precision and producer's accuracy is recall, in the mapped region and not only in the sample.
    `sample` is how many pixels of the sample are mapped as each class.
    """

    mapped: np.ndarray
    sample: np.ndarray
    area: np.ndarray
    area_se: np.ndarray
    users: np.ndarray
    users_se: np.ndarray
    producers: np.ndarray
    producers_se: np.ndarray
    overall: float
    overall_se: float

    @property
    def low(self) -> np.ndarray:
        """The lower end of the 95 % interval of the area; no area is below 0."""
        return np.maximum(0.0, self.area - Z_95 * self.area_se)

    @property
    def high(self) -> np.ndarray:
        return np.minimum(self.mapped.sum(), self.area + Z_95 * self.area_se)


def error_adjusted_areas(confusion: np.ndarray, mapped_areas: np.ndarray) -> AreaEstimate:
    """The area of each class in a map, from a sample of it: a confusion matrix [truth, predicted] and the mapped areas.

    The estimator holds for counts that are a random sample of the map, stratified by the mapped class (or simple random,
    then it is post-stratified). Counts of all pixels of some blocks are no such sample: neighbouring pixels err together,
    so the standard errors are far too small, and the blocks must stand for the map. Then take `resampled_areas` over
    blocks for the interval, and this for the estimate.

    A class that is mapped but has no pixel in the sample makes every area NaN: nothing is known of what it is. With
    one pixel its variance is NaN.
    """
    sample = confusion.T.astype(float)  # [mapped, reference], as in the paper
    mapped = np.asarray(mapped_areas, float)
    total = mapped.sum()
    there = mapped > 0  # strata that the map does not have weigh nothing
    with np.errstate(invalid="ignore", divide="ignore"):
        counts = sample.sum(axis=1)
        weights = mapped / total
        shares = np.where(there[:, None], sample / counts[:, None], 0.0)
        cells = weights[:, None] * shares  # eq. 4
        spread = np.where(there[:, None], shares * (1 - shares) / (counts - 1)[:, None], 0.0)
        reference = cells.sum(axis=0)  # eq. 9
        reference_se = np.sqrt((weights[:, None] ** 2 * spread).sum(axis=0))  # eq. 10
        users, producers = np.where(there, np.diag(shares), np.nan), np.diag(cells) / reference  # eq. 2, 3
        between = mapped[:, None] ** 2 * spread
        own = mapped**2 * (1 - producers) ** 2 * np.diag(spread)
        others = producers**2 * (between.sum(axis=0) - np.diag(between))
        producers_se = np.sqrt(own + others) / (reference * total)  # eq. 7
    return AreaEstimate(
        mapped=mapped, sample=sample.sum(axis=1).astype(np.int64),
        area=total * reference, area_se=total * reference_se,  # eq. 11
        users=users, users_se=np.where(there, np.sqrt(np.diag(spread)), np.nan),  # eq. 6
        producers=producers, producers_se=producers_se,
        overall=float(np.trace(cells)), overall_se=float(np.sqrt((weights**2 * np.diag(spread)).sum())),  # eq. 1, 5
    )  # fmt: skip


def resampled_areas(confusions: np.ndarray, mapped_areas: np.ndarray) -> np.ndarray:
    """The error-adjusted areas, [..., K], of confusion matrices [..., truth, predicted] that were drawn anew by blocks.

    Their spread is the interval to believe where the counts are all pixels of blocks. NaN where a draw has no pixel of a mapped class.
    """
    mapped = np.asarray(mapped_areas, float)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.where(mapped > 0, confusions / confusions.sum(axis=-2, keepdims=True), 0.0)
    return (shares * mapped).sum(axis=-1)
