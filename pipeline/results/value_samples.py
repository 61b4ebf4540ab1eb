"""The blocks where bundles err most and least, as small pictures: image, truth and each prediction in one ramp of colours."""

from __future__ import annotations

from functools import partial

import numpy as np

from pipeline.models.ramp import ramp_colours
from pipeline.models.value_scores import COUNT, rmse
from pipeline.results.evaluation_samples import BUNDLES_SHOWN, Sample, ranked_blocks, sample_of
from pipeline.training.value_scoring import ValueEvaluation, read_values


def lowest_and_highest(evaluation: ValueEvaluation, count: int = 4) -> tuple[list[Sample], list[Sample]]:
    """Up to `count` blocks each, by the mean RMSE of all bundles; no block is in both."""
    sums = [counts.sums_U6 for counts in evaluation.bundles]
    ranked, count = ranked_blocks(sums[0][:, COUNT], rmse, sums, count)
    highest = ranked[::-1][:count]
    lowest = [number for number in ranked[:count] if number not in highest]
    return [_sample(evaluation, number) for number in lowest], [_sample(evaluation, number) for number in highest]


def _sample(evaluation: ValueEvaluation, number: int) -> Sample:
    unit, target = evaluation.units[number], evaluation.target
    errors = [float(rmse(counts.sums_U6[number])) for counts in evaluation.bundles]
    predicted = [
        (
            f"{counts.name}, RMSE {error:.3g} {target.unit}".strip(),
            read_values(evaluation.predictions[counts.name, unit.scene], unit.window),
        )
        for counts, error in list(zip(evaluation.bundles, errors, strict=True))[:BUNDLES_SHOWN]
    ]
    bands, paint = evaluation.bundles[0].bundle.bands, partial(ramp_colours, low=target.low, high=target.high)
    return sample_of(unit, evaluation.labelled, bands, predicted, paint, float(np.mean(errors)))
