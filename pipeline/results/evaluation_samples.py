"""The blocks that bundles get most and least right, as small pictures for a page: image, truth, and each prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pipeline.errors import Refused, Unreadable
from pipeline.imagery.bands import Band
from pipeline.models.metrics import accuracy
from pipeline.results.page import picture_uri
from pipeline.results.quicklook import painted, scene_picture
from pipeline.training.block_counts import Labelled, Unit, to_label_ids
from pipeline.training.scoring import Evaluation

SIDE = 176  # px: the longer side of a picture
ENOUGH = 0.25  # of the best labelled block's pixels: fewer say little
BUNDLES_SHOWN = 4


@dataclass(frozen=True)
class Sample:
    """A block's pictures as data URIs, each with its caption; `score` is the mean of all bundles."""

    unit: Unit
    score: float
    pictures: list[tuple[str, str]]


def best_and_worst(evaluation: Evaluation, count: int = 4) -> tuple[list[Sample], list[Sample]]:
    """Up to `count` blocks each, by the mean accuracy of all bundles; no block is in both."""
    confusions = [counts.confusion_UKK for counts in evaluation.bundles]
    ranked, count = ranked_blocks(confusions[0].sum(axis=(1, 2)), accuracy, confusions, count)
    worst, best = ranked[:count], ranked[count:][::-1][:count]
    return [_sample(evaluation, number) for number in best], [_sample(evaluation, number) for number in worst]


def ranked_blocks(
    pixels_U: np.ndarray, measure: Callable[[np.ndarray], np.ndarray], counts: Sequence[np.ndarray], count: int
) -> tuple[np.ndarray, int]:  # fmt: skip
    """The blocks that say enough, from the lowest mean measure of all bundles' `counts` (by unit) on, and how many to show of each end."""
    candidates = np.flatnonzero(pixels_U >= max(1, ENOUGH * pixels_U.max()))
    mean = np.mean([measure(counts_U[candidates]) for counts_U in counts], axis=0)
    return candidates[np.argsort(mean, kind="stable")], max(1, min(count, len(candidates) // 2))


def _sample(evaluation: Evaluation, number: int) -> Sample:
    unit = evaluation.units[number]
    colours: Any = {entry.id: tuple(bytes.fromhex(entry.color[1:])) for entry in evaluation.classes}
    shares = [float(accuracy(counts.confusion_UKK[number])) for counts in evaluation.bundles]
    predicted = []
    for counts, share in list(zip(evaluation.bundles, shares, strict=True))[:BUNDLES_SHOWN]:
        ids_HW, _ = evaluation.predictions[counts.name, unit.scene].read(unit.window)
        predicted.append((f"{counts.name}, {share:.1%} right", to_label_ids(counts.bundle, evaluation.classes)[ids_HW]))
    bands = evaluation.bundles[0].bundle.bands
    return sample_of(unit, evaluation.labelled, bands, predicted, lambda ids_HW: painted(ids_HW, colours), float(np.mean(shares)))


def sample_of(
    unit: Unit, labelled: Sequence[Labelled], bands: Sequence[Band], predicted: Sequence[tuple[str, np.ndarray]],
    paint: Callable[[np.ndarray], np.ndarray], score: float,
) -> Sample:  # fmt: skip
    """The pictures of a block: the image, and as `paint` shows them the truth and what was predicted, H x W by title."""
    item = next(item for item in labelled if item.name == unit.scene)
    scale = SIDE / max(unit.window.height, unit.window.width)
    shape = (max(1, round(unit.window.height * scale)), max(1, round(unit.window.width * scale)))
    pictures = [("image", picture_uri(scene_picture(item.scene, bands, unit.window, shape)))]
    try:
        layers = [("truth", item.read_labels(unit.window))]
    except (Refused, Unreadable):  # it could be read a moment ago
        layers = []
    pictures += [(title, picture_uri(_resized(paint(layer_HW), shape))) for title, layer_HW in (*layers, *predicted)]
    return Sample(unit, score, pictures)


def _resized(picture_HWC: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(picture_HWC).resize(shape[::-1], Image.Resampling.NEAREST))
