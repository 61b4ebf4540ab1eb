"""What changed: another class that stays, and an index that fell against a parcel's own history and its neighbours.

A class flip is told when a class that was dominant on `dates` known dates in a row is followed by another on as many: where one date in
ten is wrong in the same way, independently, a date confirms a false one in at most one parcel of 500.

A drop is tested date by date. What is followed is how far a parcel lies beside the median of its nearest neighbours of the same season's
class, who saw the same weather on the same day. Its level is the median of that on its last three observations. What it lies below its
level, over the robust spread (MAD) of that among its class on that date, and over the parcel's own noise so far, is z. It has to lie as
low on `dates` observations in a row: z is the least of them, and p, by Student's t with 12 degrees of freedom, the largest (an
intersection-union test), so that a cloud that no mask found is no change. Of the date's parcels those are told whose p, adjusted by
Benjamini and Hochberg (1995), is at most `false_share`: of all drops told at most that share is expected to be false, and where nothing
changes at most that share of dates tells any. Simulated, nothing changing: with the residuals of real parcels none of 7,400 dates told
any of 100 to 20,000 parcels; with 1 observation in 20 an unseen cloud, each on its own, 0.4 % of dates did for 100, 3.9 % for 2,000, but
12.5 % for 10,000, where clouds on three observations in a row become common.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr

from pipeline.results.curves import chunks, neighbours_in_time
from pipeline.results.peers import Peers, below_group, beside_peers, known_neighbours

NO_CLASS = 255
MEMORY = 3  # observations whose median is the level
DEGREES_OF_FREEDOM = 12  # real residuals have heavier tails than a normal distribution
OWN_WEIGHT = 8  # observations that the noise of all parcels counts for, beside a parcel's own
CLIPPED = 3.0  # standard deviations that one observation adds to its parcel's noise at most


@dataclass(frozen=True)
class ChangeSettings:
    """How sure a change has to be.

    dates: that a class or a drop has to stay. false_share: of the drops told. minimum_drop: in units of the index. noise: the least
    spread of a date, in the same. history_days: between two observations of a parcel at most. neighbours: how many are asked.
    """

    dates: int = 3
    false_share: float = 0.05
    minimum_drop: float = 0.1
    noise: float = 0.02
    history_days: int = 60
    neighbours: int = 15

    def __post_init__(self) -> None:
        if self.dates < 1 or not 0 < self.false_share < 1 or min(self.minimum_drop, self.noise, self.history_days, self.neighbours) <= 0:
            raise ValueError(f"need dates >= 1, 0 < false_share < 1, and all else positive, got {self}")


class Flips(NamedTuple):
    """A row a flip: parcel, positions of dates, and classes."""

    parcel: np.ndarray
    before: np.ndarray
    since: np.ndarray
    confirmed: np.ndarray
    from_class: np.ndarray
    to_class: np.ndarray


class Drops(NamedTuple):
    """A row a drop: parcel, positions of dates, values of the index, and how sure it is."""

    parcel: np.ndarray
    before: np.ndarray
    since: np.ndarray
    confirmed: np.ndarray
    value_before: np.ndarray
    value_after: np.ndarray
    expected_after: np.ndarray
    z: np.ndarray
    p: np.ndarray
    q: np.ndarray
    neighbour_count: np.ndarray


def class_flips(classes_TP: np.ndarray, dates: int) -> Flips:
    """Where the dominant class (uint8, NO_CLASS: not known) was one on `dates` known dates in a row, then another on as many."""
    parcels = classes_TP.shape[1]
    stable, candidate = (np.full(parcels, NO_CLASS, np.uint8) for _ in range(2))
    run, since, last = (np.zeros(parcels, np.int32) for _ in range(3))
    found: list[tuple[np.ndarray, ...]] = [tuple(np.empty(0, np.int64) for _ in Flips._fields)]
    for date, seen in enumerate(classes_TP):
        known = seen != NO_CLASS
        same = known & (seen == stable)
        last[same], run[same] = date, 0
        other = known & ~same
        fresh = other & ((run == 0) | (seen != candidate))
        run[other] += 1
        run[fresh], since[fresh], candidate[fresh] = 1, date, seen[fresh]
        settled = np.flatnonzero(other & (run >= dates))
        flipped = settled[stable[settled] != NO_CLASS]
        found.append((flipped, last[flipped], since[flipped], np.full(len(flipped), date), stable[flipped], candidate[flipped]))
        stable[settled], last[settled], run[settled] = candidate[settled], date, 0
    return Flips(*(np.concatenate(column) for column in zip(*found, strict=True)))


def index_drops(
    days_T: np.ndarray, values_TP: np.ndarray, peers: Peers, settings: ChangeSettings, wanted_T: np.ndarray | None = None
) -> Drops:
    """Drops of an index: `values_TP`, NaN where not known, on ascending days since 1970.

    `wanted_T`: the dates whose drops are told, all without; the others are history, and confirm.
    """
    every = np.arange(values_TP.shape[1])
    following = _next_known(values_TP)
    beside_TP = beside_peers(values_TP, peers)
    recent = np.full((2, MEMORY, len(every)), np.nan)  # beside the peers, and the index itself
    last = np.full(len(every), -1)
    own = _OwnNoise(len(every))
    found: list[tuple[np.ndarray, ...]] = [tuple(np.empty(0, np.int64) for _ in Drops._fields)]
    for date, beside in enumerate(beside_TP.astype(np.float64)):
        level, before = np.median(recent, axis=1)  # NaN until there are as many
        fresh = (last >= 0) & (days_T[date] - days_T[last] <= settings.history_days)
        now = below_group(np.where(fresh, beside - level, np.nan), peers, settings.noise)
        z, depth, then = now.z, now.depth, np.full(len(every), date)
        for _ in range(settings.dates - 1):
            sooner, then = then, following[then, every]
            stays = np.isfinite(z) & (then > sooner) & (days_T[then] - days_T[sooner] <= settings.history_days)
            later = below_group(np.where(stays, beside_TP[then, every] - level, np.nan), peers, settings.noise)
            z, depth = np.minimum(z, later.z), np.minimum(depth, later.depth)
        z = z / own.scale()
        own.add(now.z)
        tested = np.flatnonzero(np.isfinite(z))
        p = np.where(depth[tested] >= settings.minimum_drop, stdtr(DEGREES_OF_FREEDOM, -z[tested]), 1.0)
        q = adjusted(p)
        few = q <= settings.false_share
        told, value = tested[few], values_TP[date].astype(np.float64)
        if wanted_T is None or wanted_T[date]:
            columns = (last, np.full(len(every), date), then, before, value, value + now.depth, z)
            found.append((told, *(column[told] for column in columns), p[few], q[few], known_neighbours(value, peers, told)))
        known = np.isfinite(beside)
        recent[:, :, known] = np.concatenate([recent[:, 1:, known], np.stack([beside[known], value[known]])[:, None]], axis=1)
        recent[:, :, told] = np.stack([beside[told], value[told]])[:, None]  # their history begins anew
        last[known] = date
    return Drops(*(np.concatenate(column) for column in zip(*found, strict=True)))


class _OwnNoise:
    """How much noisier than all parcels each one was so far: the root of its mean squared z, begun at 1."""

    def __init__(self, parcels: int):
        self.squares = np.full(parcels, float(OWN_WEIGHT))
        self.counts = np.full(parcels, float(OWN_WEIGHT))

    def scale(self) -> np.ndarray:
        return np.sqrt(self.squares / self.counts)

    def add(self, z: np.ndarray) -> None:
        known = np.isfinite(z)
        self.squares[known] += np.minimum(z[known] ** 2, CLIPPED**2)
        self.counts[known] += 1


def adjusted(p: np.ndarray) -> np.ndarray:
    """p-values adjusted for the false discovery rate (Benjamini and Hochberg 1995)."""
    order = np.argsort(p, kind="stable")
    steps = p[order] * len(p) / np.arange(1, len(p) + 1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum.accumulate(steps[::-1])[::-1]
    return adjusted


def _next_known(values_TP: np.ndarray) -> np.ndarray:
    """For each date and parcel, the position of the next date with a value; the date itself where there is none."""
    found = np.empty(values_TP.shape, np.int16)
    for part in chunks(values_TP.shape[1]):
        found[:, part] = neighbours_in_time(values_TP[:, part])[1]
    return found
