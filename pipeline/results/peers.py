"""Which parcels a parcel is compared with: the nearest of the same crop; and how far its change lies below theirs.

Fields beside each other ripen weeks apart where their crops differ: in made-up regions of five mixed crops, of drops of 0.3 and more next to
none was told against the nearest parcels of any crop, and 10 of 20 against those of their own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from pipeline.results.curves import NORMAL_MAD, chunks, median_known

LEAST_NEIGHBOURS = 5  # known ones; with fewer all parcels of the group stand for them
LEAST_PARCELS = 20  # of a group on a date: a spread of fewer means little


class Peers(NamedTuple):
    """Of P parcels: the group of each, numbered from 0, and the positions P x K of its nearest neighbours in it, -1 where there are fewer."""

    group_P: np.ndarray
    neighbours_PK: np.ndarray


class Below(NamedTuple):
    """How far each parcel's change lies below that of its peers: in units of the index, and in robust spreads of its group.

    NaN where too few of the group are known.
    """

    change: np.ndarray  # the neighbours' median, and what all of the group lie beside theirs
    depth: np.ndarray
    z: np.ndarray
    neighbours: np.ndarray  # that were known


def find_peers(xy_P2: np.ndarray, kind_P: np.ndarray, count: int) -> Peers:
    """Groups by kind, with `count` neighbours; kinds with too few parcels are one group together."""
    kinds, group, members = np.unique(kind_P, return_inverse=True, return_counts=True)
    if (members < LEAST_PARCELS).any():
        kinds, group = np.unique(np.where(members < LEAST_PARCELS, len(kinds), np.arange(len(kinds)))[group], return_inverse=True)
    neighbours = np.full((len(kind_P), count), -1, np.int32)
    for number in range(len(kinds)):
        own = np.flatnonzero(group == number).astype(np.int32)
        nearest = own[nearest_neighbours(xy_P2[own], count)]
        neighbours[own, : nearest.shape[1]] = nearest
    return Peers(group.astype(np.int32), neighbours)


def nearest_neighbours(xy_P2: np.ndarray, count: int) -> np.ndarray:
    """The positions, P x K, of the nearest other places; K is smaller where there are not as many."""
    count = min(count, len(xy_P2) - 1)
    if count < 1:
        return np.empty((len(xy_P2), 0), np.int32)
    found = cKDTree(xy_P2).query(xy_P2, count + 1)[1].astype(np.int32)
    itself = found == np.arange(len(found), dtype=np.int32)[:, None]
    itself[~itself.any(axis=1), -1] = True  # parcels of one place may hide each other
    return found[~itself].reshape(len(found), count)


def below_peers(change_P: np.ndarray, peers: Peers, noise: float) -> Below:
    """Each parcel's change (NaN: not known) against its peers'; `noise` is the least spread of a group."""
    known = np.isfinite(change_P)
    padded = np.append(change_P, np.nan)  # what -1 points at
    count, median = np.zeros(len(change_P), np.int32), np.full(len(change_P), np.nan)
    for part in chunks(len(change_P)):
        asked = padded[peers.neighbours_PK[part].T]
        count[part] = np.isfinite(asked).sum(axis=0)
        median[part] = median_known(asked)
    expected, spread = np.full(len(change_P), np.nan), np.full(len(change_P), np.nan)
    for group in range(int(peers.group_P.max(initial=-1)) + 1):
        told = np.flatnonzero(known & (peers.group_P == group))
        if len(told) < LEAST_PARCELS:
            continue
        near = np.where(count[told] >= LEAST_NEIGHBOURS, median[told], np.median(change_P[told]))
        expected[told] = near + np.median(change_P[told] - near)
        spread[told] = max(NORMAL_MAD * float(np.median(np.abs(expected[told] - change_P[told]))), noise)
    depth = expected - change_P
    return Below(expected, depth, depth / spread, count)
