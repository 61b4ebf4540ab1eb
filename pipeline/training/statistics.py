"""What the training data are like, found in one pass: each band's mean and spread, each class's share, and where classes are."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from os import sched_getaffinity

import numpy as np

from pipeline.errors import Refused
from pipeline.imagery.bands import Band
from pipeline.training.classes import IGNORE
from pipeline.training.datasets import LabelledScene

ROBUST_PERCENT = (0.1, 99.9)
VALUES_KEPT = 2_000_000  # of a band, for its robust range
POSITIONS_KEPT = 500_000  # of all classes, where windows are drawn
FEWEST_POSITIONS = 32  # of a class in a scene


@dataclass(frozen=True)
class Statistics:
    """Of training data: bands with mean, std and robust range; pixels of each class in each scene, int64 S x K; and of each
    scene and class some of its pixels, (row, col) int32 N x 2, drawn at random."""

    bands: tuple[Band, ...]
    counts_SK: np.ndarray
    positions: tuple[tuple[np.ndarray, ...], ...]

    @property
    def counts(self) -> np.ndarray:
        """Pixels of each class, int64 K."""
        return self.counts_SK.sum(axis=0)


@dataclass(frozen=True)
class _Part:
    """What one scene adds. `moments` are count, mean and sum of squared deviations of each band, 3 x C float64."""

    moments: np.ndarray
    values: list[np.ndarray]
    counts: np.ndarray
    positions: tuple[np.ndarray, ...]


def measure(scenes: Sequence[LabelledScene], bands: Sequence[Band], seed: int = 0) -> Statistics:
    """Read the scenes once and measure what is learnt from: pixels that have a class, in `areas` and not in `excluded`.

    Raises Refused for a band that holds one value only or none, where no pixel has a class, and for label values that
    the class table does not have; Unreadable for a damaged file.
    """
    classes = len(scenes[0].classes)
    kept = max(VALUES_KEPT // len(scenes), 1000)
    places = max(POSITIONS_KEPT // len(scenes) // classes, FEWEST_POSITIONS)
    look = partial(_look, classes=classes, values_kept=kept, positions_kept=places)
    with ThreadPoolExecutor(len(sched_getaffinity(0))) as pool:
        parts = list(pool.map(look, scenes, [[seed, number] for number in range(len(scenes))]))
    counts_SK = np.stack([part.counts for part in parts])
    if not counts_SK.sum():
        raise Refused("no training pixel has a class: check --labels, --classes and what is held out")
    return Statistics(_measured(bands, parts), counts_SK, tuple(part.positions for part in parts))


def count_labels(scenes: Sequence[LabelledScene]) -> np.ndarray:
    """Pixels of each class in the scenes' areas, int64 K. Raises Refused for label values that the class table does not have."""
    classes = len(scenes[0].classes)

    def count(item: LabelledScene) -> np.ndarray:
        pieces = (item.read_labels(window) for window in item.pieces())
        return np.sum([np.bincount(ids_HW.ravel(), minlength=256)[:classes] for ids_HW in pieces], axis=0)

    with ThreadPoolExecutor(len(sched_getaffinity(0))) as pool:
        return np.sum(list(pool.map(count, scenes)), axis=0)


def _look(item: LabelledScene, seed: Sequence[int], *, classes: int, values_kept: int, positions_kept: int) -> _Part:
    random = np.random.default_rng(seed)
    bands = len(item.scene.bands)
    moments, counts = np.zeros((3, bands)), np.zeros(classes, np.int64)
    values = _Drawn(values_kept, np.empty((0, bands), np.float32), random)
    positions = [_Drawn(positions_kept, np.empty((0, 2), np.int32), random) for _ in range(classes)]
    for window in item.pieces():
        block = item.read(window)
        own_HW = block.labels_HW != IGNORE  # there every band is valid
        known_NC = block.physical_CHW[:, own_HW].T
        if not len(known_NC):
            continue
        mean, squares = known_NC.mean(axis=0, dtype=np.float64), known_NC.var(axis=0, dtype=np.float64) * len(known_NC)
        moments = np.stack([_joined(*each) for each in zip(moments.T, repeat(len(known_NC)), mean, squares)], axis=1)
        values.add(known_NC)
        counts += np.bincount(block.labels_HW[own_HW], minlength=classes)
        for number in np.unique(block.labels_HW[own_HW]).tolist():
            places_N2 = np.argwhere(block.labels_HW == number) + np.array([window.row, window.col])
            positions[number].add(places_N2.astype(np.int32))
    return _Part(moments, list(values.rows.T), counts, tuple(some.rows for some in positions))


class _Drawn:
    """Of all rows that are added, some at random, each as likely: those with the smallest of random keys."""

    def __init__(self, most: int, rows: np.ndarray, random: np.random.Generator):
        self.most, self.rows, self.random = most, rows, random
        self.keys = np.empty(0)

    def add(self, rows: np.ndarray) -> None:
        keys = np.concatenate([self.keys, self.random.random(len(rows))])
        kept = np.sort(np.argpartition(keys, self.most)[: self.most]) if len(keys) > self.most else slice(None)
        self.keys, self.rows = keys[kept], np.concatenate([self.rows, rows])[kept]


def _joined(before: np.ndarray, count: float, mean: float, squares: float) -> np.ndarray:
    """Count, mean and squared deviations of two samples together (Chan, Golub and LeVeque 1983)."""
    total = before[0] + count
    delta = mean - before[1]
    return np.array([total, before[1] + delta * count / total, before[2] + squares + delta**2 * before[0] * count / total])


def _measured(bands: Sequence[Band], parts: Sequence[_Part]) -> tuple[Band, ...]:
    measured = []
    for number, band in enumerate(bands):
        moments = np.zeros(3)
        for part in parts:
            count, mean, squares = part.moments[:, number]
            moments = _joined(moments, count, mean, squares) if count else moments
        std = float(np.sqrt(moments[2] / moments[0])) if moments[0] else 0.0
        if not std > 0:
            what = "one value only" if moments[0] else "nothing"
            raise Refused(f"band {band.name} holds {what} where the model is trained: leave it out (--bands)")
        low, high = np.percentile(np.concatenate([part.values[number] for part in parts]), ROBUST_PERCENT)
        mean, std, low, high = (float(f"{value:.6g}") for value in (moments[1], std, low, high))
        measured.append(replace(band, mean=mean, std=std, range=(low, high)))
    return tuple(measured)


def class_weights(counts: np.ndarray, how: str | Sequence[float]) -> np.ndarray:
    """The weight of a pixel of each class in the loss, fp32 K; a labelled pixel weighs 1 on average.

    `how` is "none", "median-frequency" (Eigen and Fergus 2015, arXiv 1411.4734: the median of the classes' shares over a
    class's own; here of its share of all labelled pixels), "inverse-root" (of its share), or a weight for each class. A
    class that is nowhere weighs 0. Raises Refused for a wrong number of weights.
    """
    there = counts > 0
    share = np.where(there, counts, 1) / counts.sum()
    if how == "none":
        weights = np.ones(len(counts))
    elif how == "median-frequency":
        weights = np.median(share[there]) / share
    elif how == "inverse-root":
        weights = share**-0.5
    else:
        weights = np.asarray(how, float)
        if weights.shape != counts.shape or (weights < 0).any():
            raise Refused(f"--class-weights has {weights.size} numbers; there are {len(counts)} classes, and none may be below 0")
    weights = np.where(there, weights, 0.0)
    if not (weights * counts).sum() > 0:
        raise Refused("--class-weights are all 0 for the classes that there are")
    return (weights * counts.sum() / (weights * counts).sum()).astype(np.float32)
