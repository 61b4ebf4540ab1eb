"""What grew in a season: windows of dates, and the class of each parcel from the evidence of all dates in one.

A date's evidence for a class is  valid share of the parcel x share of the class x certainty,  and certainty is 1 + ln(c) / ln(K) for a
mean confidence c among K classes: the logarithm of the likelihood ratio against chance, 0 at c = 1/K and 1 at c = 1; where no confidence
was saved it is 1. Evidence is summed over the dates, and the class with the most is the season's. A date adds 1 at most, whatever it
is sure of, so one wrong date changes nothing where the others' evidence differs by more than that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import Refused
from pipeline.results.changes import NO_CLASS
from pipeline.results.phenology import PhenologySettings

EPOCH = date(1970, 1, 1)
TIE = 1e-6  # of evidence: the sum's own rounding is far below


def days_since(day: date) -> int:
    """Days from 1970-01-01 to a date."""
    return (day - EPOCH).days


@dataclass(frozen=True)
class SeasonWindow:
    """A season by its name: peaks from `first` to `last` belong to it, and the dates in it tell its class."""

    name: str
    first: date
    last: date

    def __post_init__(self) -> None:
        if self.first > self.last:
            raise Refused(f"season {self.name}: ends on {self.last}, before it begins on {self.first}")

    @classmethod
    def parse(cls, said: Any) -> SeasonWindow:
        """A window from `{"name": "2017", "from": "2016-11-01", "to": "2017-10-31"}`. Raises Refused."""
        if not isinstance(said, Mapping) or set(said) != {"name", "from", "to"}:
            raise Refused(f"season {said!r}: must have name, from and to")
        try:
            first, last = (date.fromisoformat(str(said[key])) for key in ("from", "to"))
        except ValueError:
            raise Refused(f"season {said['name']}: from and to must be dates, YYYY-MM-DD") from None
        return cls(str(said["name"]), first, last)

    @property
    def days(self) -> tuple[int, int]:
        """Its first and last day since 1970."""
        return days_since(self.first), days_since(self.last)


@dataclass(frozen=True)
class SeasonSettings:
    """windows: none for calendar years. minimum_observations: of the index in the window, without which a season is unknown."""

    windows: tuple[SeasonWindow, ...] = ()
    minimum_observations: int = 5
    phenology: PhenologySettings = field(default_factory=PhenologySettings)

    def __post_init__(self) -> None:
        names = [window.name for window in self.windows]
        if len(set(names)) < len(names):
            raise Refused(f"seasons {', '.join(names)}: two have one name")

    def windows_of(self, days_T: Sequence[int] | np.ndarray) -> list[SeasonWindow]:
        """The windows that hold a date, in order: those that were asked for, or the calendar years."""
        if not len(days_T):
            return []
        years = (np.asarray(days_T, "datetime64[D]").astype("datetime64[Y]").astype(int) + 1970).tolist()
        calendar = [SeasonWindow(str(year), date(year, 1, 1), date(year, 12, 31)) for year in sorted(set(years))]
        held = [window for window in self.windows or calendar if any(window.days[0] <= day <= window.days[1] for day in days_T)]
        return sorted(held, key=lambda window: (window.first, window.last, window.name))


class SeasonClass(NamedTuple):
    """Of P parcels: the position of the class (NO_CLASS: none, or a tie), its share of the evidence, and dates that gave any."""

    position: np.ndarray
    share: np.ndarray
    dates: np.ndarray


class Evidence:
    """The evidence for K classes of P parcels in one window, added date by date, in the dates' order."""

    def __init__(self, classes: int, parcels: int):
        self.sums_KP = np.zeros((classes, parcels))
        self.dates_P = np.zeros(parcels, np.int32)

    def add(self, evidence_KP: np.ndarray) -> None:
        self.sums_KP += evidence_KP
        self.dates_P += (evidence_KP > 0).any(axis=0)

    def decide(self) -> SeasonClass:
        total = self.sums_KP.sum(axis=0)
        if not len(self.sums_KP):
            return SeasonClass(np.full(len(total), NO_CLASS, np.uint8), np.full(len(total), np.nan), self.dates_P)
        best = self.sums_KP.argmax(axis=0)
        most = self.sums_KP.max(axis=0)
        clear = (most > TIE) & ((self.sums_KP >= most - TIE).sum(axis=0) == 1)
        share = np.where(clear, most / np.where(total > 0, total, 1.0), np.nan)
        return SeasonClass(np.where(clear, best, NO_CLASS).astype(np.uint8), share, self.dates_P)


def evidence_of(valid_P: np.ndarray, shares_KP: np.ndarray, confidence_KP: np.ndarray) -> np.ndarray:
    """The evidence K x P of one date.

    `valid_P`: valid share of each parcel, 0 where it is not known. `shares_KP`: share of each class, 0..1. `confidence_KP`: mean
    confidence in percent, NaN where none was saved.
    """
    classes = max(len(shares_KP), 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        certainty = np.clip(1 + np.log(confidence_KP / 100) / np.log(classes), 0.0, 1.0)
    return valid_P * np.nan_to_num(shares_KP) * np.where(np.isnan(confidence_KP), 1.0, certainty)
