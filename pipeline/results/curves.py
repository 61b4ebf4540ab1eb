"""Curves of an index: observations at irregular dates, smoothed and filled onto a regular grid of days.

A curve is the z that minimises  sum of w (y - z(t))^2 + smoothness x sum of (second differences of z)^2,  the smoother of
Whittaker and Eilers (2003, "A perfect smoother"), on a grid of days, with z(t) interpolated between two grid days so that each
observation counts at its own date. Weights are the valid share over the square of the parcel's own noise. An index is biased low by
clouds and shadows that no mask found: as in Atzberger and Eilers (2011) the curve is drawn to the upper envelope by giving
observations below it less weight, round by round; here by Tukey's bisquare of the residual over the parcel's robust spread, so that
clean observations on both sides keep their weight.

Arrays are T x P, dates by parcels, and all parcels of a chunk are solved together, grid day by grid day.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.imagery.composites import median_known

ROUNDS = 4  # of weights; five more change 99 % of the grid days of real series by less than 0.009
CHUNK = 8192  # parcels at once: their bands stay in the cache of the processor
NORMAL_MAD = 1.4826  # standard deviations in a median absolute deviation of a normal distribution
BISQUARE = 4.685  # Tukey's constant: 95 % efficient under normal noise
TINY = 1e-9  # weight that keeps days far from any observation solvable


@dataclass(frozen=True)
class CurveSettings:
    """How curves are made; the defaults were measured on real series, see the README.

    step_days: the grid's step. smoothness: the weight of squared second differences on a grid of 5 days (it is scaled to other
    steps), for a parcel with the least noise. noise: the least that is taken for a parcel, in units of the index. reach_days: a day
    is filled where an observation lies no farther. minimum_observations: with fewer there is no curve.
    """

    step_days: int = 5
    smoothness: float = 1.0
    reach_days: int = 30
    noise: float = 0.02
    minimum_observations: int = 5

    def __post_init__(self) -> None:
        if self.step_days < 1 or self.smoothness <= 0 or self.reach_days < 1 or self.noise <= 0 or self.minimum_observations < 3:
            raise ValueError(f"need step_days, reach_days >= 1, smoothness, noise > 0, minimum_observations >= 3, got {self}")


class Curves(NamedTuple):
    """Days since 1970 of the grid, values G x P (NaN: not filled), and which observations T x P were kept."""

    days_G: np.ndarray
    values_GP: np.ndarray
    kept_TP: np.ndarray


def grid_days(days_T: np.ndarray, step: int) -> np.ndarray:
    """The grid around the days: multiples of `step` since 1970, so that a later date adds grid days and moves none."""
    return np.arange(int(np.min(days_T)) // step, -(-int(np.max(days_T)) // step) + 2) * step


def fit_curves(days_T: np.ndarray, values_TP: np.ndarray, shares_TP: np.ndarray, settings: CurveSettings) -> Curves:
    """The curve of each parcel.

    `days_T`: days since 1970, ascending. `values_TP`: the index, NaN where not known. `shares_TP`: the valid share, the weight. No
    parcel's curve depends on another's, nor on how parcels are cut into chunks. Values are float32.
    """
    grid = grid_days(days_T, settings.step_days)
    values = np.full((len(grid), values_TP.shape[1]), np.nan, np.float32)
    kept = np.zeros(values_TP.shape, bool)
    for part in chunks(values_TP.shape[1]):
        values[:, part], kept[:, part] = _fit_chunk(days_T, grid, values_TP[:, part], shares_TP[:, part], settings)
    return Curves(grid, values, kept)


def chunks(parcels: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, parcels)) for start in range(0, parcels, CHUNK))


def _fit_chunk(
    days_T: np.ndarray, grid_G: np.ndarray, values_TP: np.ndarray, shares_TP: np.ndarray, settings: CurveSettings
) -> tuple[np.ndarray, np.ndarray]:
    seen = np.isfinite(values_TP) & (shares_TP > 0)
    known = np.where(seen, values_TP, 0.0).astype(np.float64)
    noise_P = _noise(days_T, np.where(seen, values_TP, np.nan), settings)
    weight = np.where(seen, shares_TP, 0.0) * (settings.noise / noise_P) ** 2
    smoother = _Smoother(days_T, grid_G, settings.smoothness * (5 / settings.step_days) ** 3)
    robust = np.ones_like(known)
    for _ in range(ROUNDS):
        curve_GP = smoother.solve(known, weight * robust)
        below = np.clip((smoother.at_dates(curve_GP) - known) / (BISQUARE * noise_P), 0.0, 1.0)
        robust = (1.0 - below**2) ** 2
    curve_GP = smoother.solve(known, weight * robust)
    kept = seen & (robust > 0)
    kept &= kept.sum(axis=0) >= settings.minimum_observations
    return np.where(_reached(days_T, grid_G, kept, settings), curve_GP, np.nan), kept


def _noise(days_T: np.ndarray, values_TP: np.ndarray, settings: CurveSettings) -> np.ndarray:
    """A parcel's robust noise: how far each observation lies from the line between the one before and the one after.

    For independent noise of variance v that distance has a variance of v (1 + a^2 + b^2), a and b being the line's shares.
    """
    before, after = neighbours_in_time(values_TP)
    own = np.arange(len(days_T))[:, None]
    span = np.maximum(days_T[after] - days_T[before], 1)
    share = (days_T[after] - days_T[:, None]) / span
    columns = np.arange(values_TP.shape[1])
    line = share * values_TP[before, columns] + (1 - share) * values_TP[after, columns]
    off = np.abs(values_TP - line) / np.sqrt(1 + share**2 + (1 - share) ** 2)
    inner = (before < own) & (after > own) & (span <= settings.reach_days)
    return np.fmax(NORMAL_MAD * median_known(np.where(inner, off, np.nan)), settings.noise)


def neighbours_in_time(values_TP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each date and parcel, the last date before and the first one after with a value; the date itself where there is none."""
    own = np.arange(len(values_TP))[:, None]
    known = np.isfinite(values_TP)
    last = np.maximum.accumulate(np.where(known, own, -1), axis=0)
    first = np.minimum.accumulate(np.where(known, own, len(values_TP))[::-1], axis=0)[::-1]
    before = np.vstack([np.full((1, values_TP.shape[1]), -1), last[:-1]])
    after = np.vstack([first[1:], np.full((1, values_TP.shape[1]), len(values_TP))])
    return np.where(before < 0, own, before), np.where(after == len(values_TP), own, after)


def _reached(days_T: np.ndarray, grid_G: np.ndarray, kept_TP: np.ndarray, settings: CurveSettings) -> np.ndarray:
    """Which grid days lie between a parcel's first and last observation, a step more or less, and near enough to one."""
    before = np.full((len(grid_G), kept_TP.shape[1]), -np.inf)
    after = np.full(before.shape, np.inf)
    position = np.searchsorted(days_T, grid_G, side="right")  # dates up to each grid day
    last = np.maximum.accumulate(np.where(kept_TP, days_T[:, None], -np.inf), axis=0)
    following = np.minimum.accumulate(np.where(kept_TP, days_T[:, None], np.inf)[::-1], axis=0)[::-1]
    some, rest = position > 0, position < len(days_T)
    before[some] = last[position[some] - 1]
    after[rest] = following[position[rest]]
    back, ahead = grid_G[:, None] - before, after - grid_G[:, None]
    near = np.minimum(back, ahead)
    inside = np.isfinite(back) & np.isfinite(ahead)
    return np.where(inside, near <= settings.reach_days, near < settings.step_days)


class _Smoother:
    """The penalised least squares of one set of dates: a matrix of five bands for each parcel, factored as L D L'."""

    def __init__(self, days_T: np.ndarray, grid_G: np.ndarray, smoothness: float):
        step = grid_G[1] - grid_G[0]
        self.left_T = np.searchsorted(grid_G, days_T, side="right") - 1
        self.part_T = (days_T - grid_G[self.left_T]) / step
        self.penalty = _penalty_bands(len(grid_G), smoothness)

    def at_dates(self, curve_GP: np.ndarray) -> np.ndarray:
        part = self.part_T[:, None]
        return (1 - part) * curve_GP[self.left_T] + part * curve_GP[self.left_T + 1]

    def solve(self, values_TP: np.ndarray, weights_TP: np.ndarray) -> np.ndarray:
        """The curves G x P of observations with their weights."""
        size, parcels = len(self.penalty[0]), values_TP.shape[1]
        main = np.repeat(self.penalty[0][:, None] + TINY, parcels, axis=1)
        next_ = np.repeat(self.penalty[1][:, None], parcels, axis=1)
        right = np.zeros((size, parcels))
        for left, part, value, weight in zip(self.left_T, self.part_T, values_TP, weights_TP, strict=True):
            main[left] += weight * (1 - part) ** 2
            main[left + 1] += weight * part**2
            next_[left] += weight * part * (1 - part)
            right[left] += weight * (1 - part) * value
            right[left + 1] += weight * part * value
        return _solve_five_bands(main, next_, self.penalty[2], right)


def _penalty_bands(size: int, smoothness: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The main, first and second band of smoothness x D'D, D being second differences."""
    main, first, second = np.zeros(size), np.zeros(size), np.zeros(size)
    for start in range(size - 2):
        main[start : start + 3] += (1, 4, 1)
        first[start : start + 2] += -2
        second[start] += 1
    return smoothness * main, smoothness * first, smoothness * second


def _solve_five_bands(main_GP: np.ndarray, first_GP: np.ndarray, second_G: np.ndarray, right_GP: np.ndarray) -> np.ndarray:
    """Solve symmetric positive definite systems of five bands, one a column, by L D L'; the arguments are overwritten."""
    second_GP = np.empty_like(main_GP)
    for row in range(len(main_GP)):
        if row > 0:
            step = main_GP[row - 1] * first_GP[row - 1]
            main_GP[row] -= step * first_GP[row - 1]
            first_GP[row] -= step * second_GP[row - 1]
            right_GP[row] -= first_GP[row - 1] * right_GP[row - 1]
        if row > 1:
            main_GP[row] -= second_GP[row - 2] ** 2 * main_GP[row - 2]
            right_GP[row] -= second_GP[row - 2] * right_GP[row - 2]
        first_GP[row] /= main_GP[row]
        second_GP[row] = second_G[row] / main_GP[row]
    right_GP /= main_GP
    for row in range(len(main_GP) - 2, -1, -1):
        right_GP[row] -= first_GP[row] * right_GP[row + 1]
        if row + 2 < len(main_GP):
            right_GP[row] -= second_GP[row] * right_GP[row + 2]
    return right_GP
