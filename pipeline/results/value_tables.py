"""The rows of an evaluation of numbers: scores with intervals, errors by range of the truth, and bundles compared."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from pipeline.imagery.storage import Place
from pipeline.models.bootstrap import interval, paired_difference, resampled_totals
from pipeline.models.value_scores import COUNT, MEASURES
from pipeline.results.evaluation_tables import Row, Score, numbers
from pipeline.results.tables import COMPARISON, ERRORS, SCORES, publish_tables
from pipeline.training.value_scoring import ValueCounts, ValueEvaluation

COMPARED = ("rmse", "mae", "r2")


@dataclass(frozen=True)
class BundleErrors:
    """What there is to say of one bundle on all scenes; `by_range` has a list for each measure, with the ranges in order."""

    counts: ValueCounts
    overall: dict[str, Score]
    by_range: dict[str, list[Score]]

    @property
    def sums(self) -> np.ndarray:
        return self.counts.sums_U6.sum(axis=0)

    @property
    def range_pixels(self) -> list[int]:
        """Scored pixels of each range."""
        return self.counts.ranges_UR6.sum(axis=0)[:, COUNT].astype(int).tolist()


def score_errors(evaluation: ValueEvaluation, counts: ValueCounts) -> BundleErrors:
    """All scores of a bundle with their intervals."""
    found = []
    for of_units in (counts.sums_U6, counts.ranges_UR6):
        units = evaluation.drawing.drawable(of_units)
        whole, drawn = units.sum(axis=0), resampled_totals(units) if len(units) > 1 else None
        for measure in MEASURES.values():
            value = measure(whole)
            low, high = interval(measure(drawn)) if drawn is not None else (np.full_like(value, np.nan),) * 2
            found.append([Score(*map(float, three)) for three in zip(*map(np.atleast_1d, (value, low, high)), strict=True)])
    overall, by_range = found[: len(MEASURES)], found[len(MEASURES) :]
    return BundleErrors(
        counts,
        {name: score for name, (score,) in zip(MEASURES, overall, strict=True)},
        dict(zip(MEASURES, by_range, strict=True)),
    )


def write_value_tables(evaluation: ValueEvaluation, bundles: list[BundleErrors], out: Place) -> list[Row]:
    """Write the tables of an evaluation into the folder `out`, in place of what is there; returns the rows of COMPARISON."""
    compared = list(comparison_rows(evaluation))
    publish_tables(out, {
        "scores": (score_rows(evaluation, bundles), SCORES), "errors": (range_rows(evaluation, bundles), ERRORS),
        "comparison": (compared, COMPARISON),
    })  # fmt: skip
    return compared


def score_rows(evaluation: ValueEvaluation, bundles: list[BundleErrors]) -> Iterator[Row]:
    """The rows of SCORES: those of all scenes with intervals, then each scene's."""
    for scores in bundles:
        for name, score in scores.overall.items():
            yield _row(scores, "all") | {"metric": name} | numbers(value=score.value, low=score.low, high=score.high)
        for scene, members in evaluation.drawing.scene_members():
            sums = scores.counts.sums_U6[members].sum(axis=0)
            for name, measure in MEASURES.items():
                yield _row(scores, "scene", scene) | {"metric": name} | numbers(value=float(measure(sums)), low=None, high=None)


def range_rows(evaluation: ValueEvaluation, bundles: list[BundleErrors]) -> Iterator[Row]:
    """The rows of ERRORS: of each range of the truth, from `range_low` on and below `range_high`."""
    for scores in bundles:
        for number, pixels in enumerate(scores.range_pixels):
            low, high = (None if math.isinf(edge) else float(edge) for edge in evaluation.edges[number : number + 2])
            yield (
                _row(scores, "all")
                | {"range_low": low, "range_high": high, "pixel_count": pixels}
                | numbers(
                    **{
                        f"{name}{end}": getattr(scores.by_range[name][number], end.strip("_") or "value")
                        for name in ("rmse", "mae", "bias")
                        for end in ("", "_low", "_high")
                    }
                )
            )


def comparison_rows(evaluation: ValueEvaluation) -> Iterator[Row]:
    """The rows of COMPARISON: every bundle against every other, on the same units."""
    for first, second in permutations(evaluation.bundles, 2):
        here, there = (evaluation.drawing.drawable(counts.sums_U6) for counts in (first, second))
        for name in COMPARED:
            found = paired_difference(here, there, MEASURES[name])
            yield {"bundle": first.name, "other": second.name, "metric": name} | numbers(
                difference=found.value, low=found.low, high=found.high, p=found.p
            )


def _row(scores: BundleErrors, scope: str, scene: str | None = None) -> Row:
    return {"bundle": scores.counts.name, "model_id": scores.counts.bundle.model_id, "scope": scope, "scene": scene}
