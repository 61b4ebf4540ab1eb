"""The blocks where bundles err most and least, as small pictures: image, truth and each prediction in one ramp of colours."""

from __future__ import annotations

import numpy as np

from pipeline.errors import Refused, Unreadable
from pipeline.models.ramp import ramp_colours
from pipeline.models.value_scores import COUNT, rmse
from pipeline.results.evaluation_samples import BUNDLES_SHOWN, ENOUGH, SIDE, Sample, as_uri, resized
from pipeline.results.quicklook import scene_picture
from pipeline.training.value_scoring import ValueEvaluation, read_values


def lowest_and_highest(evaluation: ValueEvaluation, count: int = 4) -> tuple[list[Sample], list[Sample]]:
    """Up to `count` blocks each, by the mean RMSE of all bundles; no block is in both."""
    pixels = evaluation.bundles[0].sums_U6[:, COUNT]
    candidates = np.flatnonzero(pixels >= max(1, ENOUGH * pixels.max()))
    mean = np.mean([rmse(counts.sums_U6[candidates]) for counts in evaluation.bundles], axis=0)
    ranked = candidates[np.argsort(mean, kind="stable")]
    count = max(1, min(count, len(ranked) // 2))
    highest = ranked[::-1][:count]
    lowest = [number for number in ranked[:count] if number not in highest]
    return [_sample(evaluation, number) for number in lowest], [_sample(evaluation, number) for number in highest]


def _sample(evaluation: ValueEvaluation, number: int) -> Sample:
    unit, target = evaluation.units[number], evaluation.target
    item = next(item for item in evaluation.labelled if item.name == unit.scene)
    scale = SIDE / max(unit.window.height, unit.window.width)
    shape = (max(1, round(unit.window.height * scale)), max(1, round(unit.window.width * scale)))
    pictures = [("image", as_uri(scene_picture(item.scene, evaluation.bundles[0].bundle.bands, unit.window, shape)))]
    try:
        layers = [("truth", item.read_labels(unit.window))]
    except (Refused, Unreadable):  # it could be read a moment ago
        layers = []
    for counts in evaluation.bundles[:BUNDLES_SHOWN]:
        title = f"{counts.name}, RMSE {float(rmse(counts.sums_U6[number])):.3g} {target.unit}".strip()
        layers.append((title, read_values(evaluation.predictions[counts.name, unit.scene], unit.window)))
    pictures += [(title, as_uri(resized(ramp_colours(values_HW, target.low, target.high), shape))) for title, values_HW in layers]
    mean = np.mean([rmse(counts.sums_U6[number]) for counts in evaluation.bundles])
    return Sample(unit, float(mean), pictures)
