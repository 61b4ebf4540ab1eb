"""What the training data are like, found in one pass: each band's mean and spread, each class's share, and where classes are."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
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
    """Read the scenes once and measure what is learnt from: pixels in `areas` and not in `excluded`.

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
    pieces = item.pieces()
    moments = np.zeros((3, len(item.scene.bands)))
    values: list[list[np.ndarray]] = [[] for _ in item.scene.bands]
    positions: list[list[np.ndarray]] = [[] for _ in range(classes)]
    counts = np.zeros(classes, np.int64)
    for window in pieces:
        block = item.read(window)
        own_HW = block.labels_HW != IGNORE
        for number, (plane, valid) in enumerate(zip(block.physical_CHW, block.valid_CHW, strict=True)):
            known = plane[valid & own_HW].astype(np.float64)
            if known.size:
                moments[:, number] = _joined(moments[:, number], known.size, known.mean(), known.var() * known.size)
                values[number].append(_some(random, known.astype(np.float32), values_kept // len(pieces)))
        found = np.bincount(block.labels_HW[own_HW], minlength=classes)
        counts += found
        for number in np.flatnonzero(found).tolist():
            places = np.argwhere(block.labels_HW == number) + np.array([window.row, window.col])
            positions[number].append(_some(random, places.astype(np.int32), positions_kept))
    joined = tuple(_some(random, np.concatenate(some or [np.empty((0, 2), np.int32)]), positions_kept) for some in positions)
    return _Part(moments, [np.concatenate(some) if some else np.empty(0, np.float32) for some in values], counts, joined)


def _some(random: np.random.Generator, rows: np.ndarray, most: int) -> np.ndarray:
    return rows if len(rows) <= most else rows[np.sort(random.choice(len(rows), max(most, 1), replace=False))]


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
