"""The blocks that bundles get most and least right, as small pictures for a page: image, truth, and each prediction."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.errors import Refused, Unreadable
from pipeline.models.metrics import accuracy
from pipeline.results.quicklook import painted, scene_picture
from pipeline.training.block_counts import Unit, to_label_ids
from pipeline.training.scoring import Evaluation

SIDE = 176  # px: the longer side of a picture
ENOUGH = 0.25  # of the best labelled block's pixels: fewer say little
BUNDLES_SHOWN = 4


@dataclass(frozen=True)
class Sample:
    """A block's pictures as data URIs, each with its caption; `accuracy` is the mean of all bundles."""

    unit: Unit
    accuracy: float
    pictures: list[tuple[str, str]]


def best_and_worst(evaluation: Evaluation, count: int = 4) -> tuple[list[Sample], list[Sample]]:
    """Up to `count` blocks each, by the mean accuracy of all bundles; no block is in both."""
    pixels = evaluation.bundles[0].confusion_UKK.sum(axis=(1, 2))
    candidates = np.flatnonzero(pixels >= max(1, ENOUGH * pixels.max()))
    mean = np.mean([accuracy(counts.confusion_UKK[candidates]) for counts in evaluation.bundles], axis=0)
    ranked = candidates[np.argsort(mean, kind="stable")]
    count = max(1, min(count, len(ranked) // 2))
    worst, best = ranked[:count], ranked[count:][::-1][:count]
    return [_sample(evaluation, number) for number in best], [_sample(evaluation, number) for number in worst]


def _sample(evaluation: Evaluation, number: int) -> Sample:
    unit = evaluation.units[number]
    window = unit.window
    item = next(item for item in evaluation.labelled if item.name == unit.scene)
    scale = SIDE / max(window.height, window.width)
    shape = (max(1, round(window.height * scale)), max(1, round(window.width * scale)))
    first = evaluation.bundles[0].bundle
    colours = {entry.id: tuple(bytes.fromhex(entry.color[1:])) for entry in evaluation.classes}
    pictures = [("image", as_uri(scene_picture(item.scene, first.bands, window, shape)))]
    try:
        layers = [("truth", item.read_labels(window))]
    except (Refused, Unreadable):  # it could be read a moment ago
        layers = []
    for counts in evaluation.bundles[:BUNDLES_SHOWN]:
        ids_HW, _ = evaluation.predictions[counts.name, unit.scene].read(window)
        share = float(accuracy(counts.confusion_UKK[number]))
        layers.append((f"{counts.name}, {share:.1%} right", to_label_ids(counts.bundle, evaluation.classes)[ids_HW]))
    pictures += [(title, as_uri(resized(painted(ids_HW, colours), shape))) for title, ids_HW in layers]  # type: ignore[arg-type]
    mean = np.mean([accuracy(counts.confusion_UKK[number]) for counts in evaluation.bundles])
    return Sample(unit, float(mean), pictures)


def resized(picture_HWC: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(picture_HWC).resize(shape[::-1], Image.Resampling.NEAREST))


def as_uri(picture_HWC: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture_HWC).save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
