"""What the training data are like, found in one pass: each band's mean and spread, each class's share or the
target's, and where classes are."""

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
from pipeline.models.bundle import Target
from pipeline.training.datasets import LabelledScene
from pipeline.training.labels import ignored_outside
from pipeline.training.targets import Numbers, target_of
from pipeline.training.unknown import known

ROBUST_PERCENT = (0.1, 99.9)
VALUES_KEPT = 2_000_000  # of a band, for its robust range
POSITIONS_KEPT = 500_000  # of all classes, where windows are drawn
FEWEST_POSITIONS = 32  # of a class in a scene


@dataclass(frozen=True)
class Statistics:
    """Of training data: bands with mean, std and robust range; pixels of each class in each scene, int64 S x K; and of each
    scene and class some of its pixels, (row, col) int32 N x 2, drawn at random. Where labels are numbers all pixels that have one
    are of one class, and `target` says what they are like."""

    bands: tuple[Band, ...]
    counts_SK: np.ndarray
    positions: tuple[tuple[np.ndarray, ...], ...]
    target: Target | None = None

    @property
    def counts(self) -> np.ndarray:
        """Pixels of each class, int64 K."""
        return self.counts_SK.sum(axis=0)


@dataclass(frozen=True)
class _Part:
    """What one scene adds. `moments` are count, mean and sum of squared deviations of each band, 3 x C float64; labels that are
    numbers are measured as one band more, the last."""

    moments: np.ndarray
    values: list[np.ndarray]
    counts: np.ndarray
    positions: tuple[np.ndarray, ...]


def measure(scenes: Sequence[LabelledScene], bands: Sequence[Band], seed: int = 0) -> Statistics:
    """Read the scenes once and measure what is learnt from: pixels that have a class, in `areas` and not in `excluded`.

    Raises Refused for a band that holds one value only or none, where no pixel has a class, and for label values that
    the class table does not have; Unreadable for a damaged file.
    """
    table = scenes[0].table
    kept = max(VALUES_KEPT // len(scenes), 1000)
    places = max(POSITIONS_KEPT // len(scenes) // table.kinds, FEWEST_POSITIONS)
    look = partial(_look, values_kept=kept, positions_kept=places)
    with ThreadPoolExecutor(len(sched_getaffinity(0))) as pool:
        parts = list(pool.map(look, scenes, [[seed, number] for number in range(len(scenes))]))
    counts_SK = np.stack([part.counts for part in parts])
    if not counts_SK.sum():
        raise Refused(f"no training pixel has {table.thing}: check --labels, --classes and what is held out")
    positions = tuple(part.positions for part in parts)
    if not isinstance(table, Numbers):
        return Statistics(_measured(bands, parts), counts_SK, positions)
    mean, std, sample_N = _together(parts, len(bands))
    return Statistics(_measured(bands, parts), counts_SK, positions, target_of(table, mean, std, sample_N, scenes[0].labels.place))


def count_labels(scenes: Sequence[LabelledScene]) -> np.ndarray:
    """Pixels of each class, or of numbers, in the scenes' areas, int64 K. Raises Refused for values that the class table does not have."""
    table = scenes[0].table

    def count(item: LabelledScene) -> np.ndarray:
        pieces = (table.kinds_of(item.read_labels(window)) for window in item.pieces())
        return np.sum([np.bincount(kinds_HW.ravel(), minlength=256)[: table.kinds] for kinds_HW in pieces], axis=0)

    with ThreadPoolExecutor(len(sched_getaffinity(0))) as pool:
        return np.sum(list(pool.map(count, scenes)), axis=0)


def own_pixels(scenes: Sequence[LabelledScene]) -> int:
    """The pixels that belong to the scenes' sets, labelled or not."""
    blank = ((item, window, np.zeros((window.height, window.width), np.uint8)) for item in scenes for window in item.pieces())
    return sum(int(known(ignored_outside(some_HW, window, item.areas, item.excluded)).sum()) for item, window, some_HW in blank)


def _look(item: LabelledScene, seed: Sequence[int], *, values_kept: int, positions_kept: int) -> _Part:
    random = np.random.default_rng(seed)
    table = item.table
    measured = len(item.scene.bands) + isinstance(table, Numbers)
    moments, counts = np.zeros((3, measured)), np.zeros(table.kinds, np.int64)
    values = _Drawn(values_kept, np.empty((0, measured), np.float32), random)
    positions = [_Drawn(positions_kept, np.empty((0, 2), np.int32), random) for _ in range(table.kinds)]
    for window in item.pieces():
        block = item.read(window)
        own_HW = known(block.labels_HW)  # there every band is valid
        known_NC = block.physical_CHW[:, own_HW].T
        if isinstance(table, Numbers):
            known_NC = np.concatenate([known_NC, block.labels_HW[own_HW][:, None]], axis=1)
        if not len(known_NC):
            continue
        mean, squares = known_NC.mean(axis=0, dtype=np.float64), known_NC.var(axis=0, dtype=np.float64) * len(known_NC)
        moments = np.stack([_joined(*each) for each in zip(moments.T, repeat(len(known_NC)), mean, squares)], axis=1)
        values.add(known_NC)
        kinds_HW = table.kinds_of(block.labels_HW)
        counts += np.bincount(kinds_HW[own_HW], minlength=table.kinds)
        for number in np.unique(kinds_HW[own_HW]).tolist():
            places_N2 = np.argwhere(kinds_HW == number) + np.array([window.row, window.col])
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


def _together(parts: Sequence[_Part], number: int) -> tuple[float, float, np.ndarray]:
    """Mean, standard deviation and a sample of what all parts have of a band."""
    moments = np.zeros(3)
    for part in parts:
        count, mean, squares = part.moments[:, number]
        moments = _joined(moments, count, mean, squares) if count else moments
    return moments[1], float(np.sqrt(moments[2] / moments[0])), np.concatenate([part.values[number] for part in parts])


def _measured(bands: Sequence[Band], parts: Sequence[_Part]) -> tuple[Band, ...]:
    measured = []
    for number, band in enumerate(bands):
        mean, std, sample_N = _together(parts, number)
        if not std > 0:
            raise Refused(f"band {band.name} holds one value only where the model is trained: leave it out (--bands)")
        low, high = np.percentile(sample_N, ROBUST_PERCENT)
        mean, std, low, high = (float(f"{value:.6g}") for value in (mean, std, low, high))
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
