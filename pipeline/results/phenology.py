"""When a season began, peaked and ended, from curves of an index.

The definitions are those of TIMESAT (Jonsson and Eklundh 2004): the peak is the highest local maximum of the curve inside the season's
window; a side's minimum is the lowest value within a year of the peak; the season starts where the curve last rose through the level
`fraction` of the way from the left minimum to the peak, and ends where it first falls through that level of the right side; the base
is the mean of both minima and the amplitude the peak less the base. Start and end may lie outside the window: the peak's date decides.
Where these are not there, nothing is told: flat curves, sides that the series does not show, starts and ends inside a gap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

UNKNOWN, KNOWN, GROWING = 0, 1, 2
STATES = ("unknown", "known", "growing")
YEAR = 365
WHOLE_SIDE = 0.5  # a side is seen whole where it is at least half as high as the other


@dataclass(frozen=True)
class PhenologySettings:
    """fraction: of a side's height, where the season starts and ends. minimum_amplitude: of each side, in units of the index."""

    fraction: float = 0.2
    minimum_amplitude: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1 or self.minimum_amplitude <= 0:
            raise ValueError(f"need 0 <= fraction < 1 and minimum_amplitude > 0, got {self}")


class Phenology(NamedTuple):
    """Of P parcels in one window: days since 1970 (NaN: not known), values of the index, and a number of STATES.

    A season that grows has risen and not fallen yet: its peak is the highest so far, its base the left minimum, its end NaN.
    """

    state: np.ndarray
    start: np.ndarray
    peak: np.ndarray
    end: np.ndarray
    base_value: np.ndarray
    peak_value: np.ndarray
    amplitude: np.ndarray


def find_season(days_G: np.ndarray, values_GP: np.ndarray, window: tuple[int, int], settings: PhenologySettings) -> Phenology:
    """The season of each parcel whose peak lies in the window.

    `days_G`: the grid's days since 1970, two at least. `values_GP`: the curves, NaN where not filled. `window`: its first and last day.
    """
    around = slice(*np.searchsorted(days_G, (window[0] - YEAR, window[1] + YEAR + 1)))
    days, values = days_G[around], values_GP[around].astype(np.float64)
    if not len(days):
        days, values = days_G[:1], np.full((1, values_GP.shape[1]), np.nan)
    peak = _highest(days, values, window)
    top = np.where(peak >= 0, values[peak, np.arange(values.shape[1])], np.nan)
    left, start = _side(days, values, peak, top, settings.fraction)
    mirrored = np.where(peak >= 0, len(days) - 1 - peak, -1)
    right, end = _side(-days[::-1], values[::-1], mirrored, top, settings.fraction)
    rise, fall, tall = top - left, top - right, settings.minimum_amplitude
    with np.errstate(invalid="ignore"):
        known = (np.minimum(rise, fall) >= np.maximum(tall, WHOLE_SIDE * np.maximum(rise, fall))) & np.isfinite(start - end)
        growing = (rise >= tall) & (fall < WHOLE_SIDE * rise) & np.isfinite(start) & _seen_since(peak, values)
    growing &= ~known & (days_G[-1] <= window[1])
    base = np.where(known, (left + right) / 2, left)
    told = [
        np.where(some, what, np.nan)
        for some, what in (
            (known | growing, start), (known | growing, days[peak]), (known, -end),
            (known | growing, base), (known | growing, top), (known | growing, top - base),
        )
    ]  # fmt: skip
    return Phenology(np.where(known, KNOWN, np.where(growing, GROWING, UNKNOWN)).astype(np.uint8), *told)


def _highest(days_G: np.ndarray, values_GP: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """The index of the highest local maximum in the window, the first of equal ones; -1 where there is none.

    A neighbour that is not filled counts as lower.
    """
    padded = np.full((len(values_GP) + 2, values_GP.shape[1]), -np.inf)
    padded[1:-1] = np.where(np.isfinite(values_GP), values_GP, -np.inf)
    inner = padded[1:-1]
    maximum = (inner >= padded[:-2]) & (inner >= padded[2:]) & np.isfinite(inner)
    maximum &= ((days_G >= window[0]) & (days_G <= window[1]))[:, None]
    return np.where(maximum.any(axis=0), np.where(maximum, inner, -np.inf).argmax(axis=0), -1)


def _side(
    days_G: np.ndarray, values_GP: np.ndarray, peak_P: np.ndarray, top_P: np.ndarray, fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    """The lowest value before the peak, and the last day on which the curve rises through the level; NaN where a gap hides it."""
    parcels, index = np.arange(values_GP.shape[1]), np.arange(len(days_G))[:, None]
    before = (index <= peak_P) & (days_G[:, None] >= days_G[peak_P] - YEAR) & np.isfinite(values_GP)
    lowest = np.where(before, values_GP, np.inf).min(axis=0)
    level = np.where(np.isfinite(lowest), lowest + fraction * (top_P - lowest), np.nan)
    below = before & (values_GP <= level)
    last = np.where(below.any(axis=0), len(days_G) - 1 - below[::-1].argmax(axis=0), 0)
    following = np.minimum(last + 1, len(days_G) - 1)
    low, high = values_GP[last, parcels], values_GP[following, parcels]
    part = (level - low) / np.where(high > low, high - low, 1.0)
    crossed = below.any(axis=0) & (last < peak_P) & np.isfinite(high)
    day = days_G[last] + part * (days_G[following] - days_G[last])
    return np.where(np.isfinite(lowest), lowest, np.nan), np.where(crossed, day, np.nan)


def _seen_since(peak_P: np.ndarray, values_GP: np.ndarray) -> np.ndarray:
    """Whether the curve is filled from its peak to its last filled day, so that no gap hides a fall."""
    filled = np.isfinite(values_GP)
    index = np.arange(len(values_GP))[:, None]
    last = len(values_GP) - 1 - filled[::-1].argmax(axis=0)
    return ~(~filled & (index > peak_P) & (index < last)).any(axis=0)
