"""The rows of an evaluation: scores with intervals, confusion, calibration, error-adjusted areas, and bundles compared."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np

from pipeline.imagery.storage import Place
from pipeline.models.area_estimate import AreaEstimate, error_adjusted_areas, resampled_areas
from pipeline.models.bootstrap import Statistic, clustered_mcnemar, interval, mcnemar, paired_difference, resampled_totals, score_interval
from pipeline.models.boundary import boundary_f1, boundary_precision, boundary_recall, mean_boundary_f1
from pipeline.models.calibration import COUNT, RIGHT, expected_calibration_error, mean_confidence
from pipeline.models.metrics import CLASS_MEASURES, MEASURES
from pipeline.results.tables import ADJUSTED_AREAS, CALIBRATION, COMPARISON, CONFUSION, SCORES, publish_tables
from pipeline.training.scoring import BundleCounts, Evaluation

Row = dict[str, Any]


@dataclass(frozen=True)
class Metric:
    """A score, and which counts it is made from: confusion, boundary or calibration."""

    name: str
    counts: str
    of: Statistic


OVERALL = (
    *(Metric(name, "confusion", measure) for name, measure in MEASURES.items()),
    Metric("mean_boundary_f1", "boundary", mean_boundary_f1),
    Metric("expected_calibration_error", "calibration", expected_calibration_error),
    Metric("mean_confidence", "calibration", mean_confidence),
)
PER_CLASS = (
    *(Metric(name, "confusion", measure) for name, measure in CLASS_MEASURES.items()),
    Metric("boundary_precision", "boundary", boundary_precision),
    Metric("boundary_recall", "boundary", boundary_recall),
    Metric("boundary_f1", "boundary", boundary_f1),
)
COMPARED = tuple(metric for metric in OVERALL if metric.name in ("accuracy", "mean_f1", "mean_iou", "kappa", "mean_boundary_f1"))


@dataclass(frozen=True)
class Score:
    """A value and its 95 % interval; NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class BundleScores:
    """What there is to say of one bundle on all scenes; per-class lists are in the labels' order."""

    counts: BundleCounts
    overall: dict[str, Score]
    per_class: dict[str, list[Score]]
    areas: AreaEstimate  # in square metres, or in pixels where a scene has no place on the ground
    block_areas: tuple[np.ndarray, np.ndarray]  # the ends of the interval from drawing units anew
    on_ground: bool

    @property
    def confusion(self) -> np.ndarray:
        return self.counts.confusion_UKK.sum(axis=0)

    @property
    def calibration(self) -> np.ndarray:
        return self.counts.calibration_UP2.sum(axis=0)


def counts_of(counts: BundleCounts, kind: str) -> np.ndarray:
    """The counts by unit that a metric is made from."""
    return {"confusion": counts.confusion_UKK, "boundary": counts.boundary_UK4, "calibration": counts.calibration_UP2}[kind]


def score_bundle(evaluation: Evaluation, counts: BundleCounts) -> BundleScores:
    """All scores of a bundle with their intervals."""
    overall: dict[str, Score] = {}
    per_class: dict[str, list[Score]] = {}
    for kind in ("confusion", "boundary", "calibration"):
        units = evaluation.drawing.drawable(counts_of(counts, kind))
        whole, drawn = units.sum(axis=0), resampled_totals(units) if len(units) > 1 else None
        for metric in (metric for metric in (*OVERALL, *PER_CLASS) if metric.counts == kind):
            value = metric.of(whole)
            low, high = interval(metric.of(drawn)) if drawn is not None else (np.full_like(value, np.nan),) * 2
            if metric in OVERALL:
                overall[metric.name] = Score(float(value), float(low), float(high))
            else:
                per_class[metric.name] = [Score(*map(float, three)) for three in zip(value, low, high, strict=True)]
    mapped = (counts.mapped_UK if counts.area_m2_UK is None else counts.area_m2_UK).sum(axis=0)
    confusions = evaluation.drawing.drawable(counts.confusion_UKK)
    return BundleScores(
        counts, overall, per_class,
        areas=error_adjusted_areas(confusions.sum(axis=0), mapped),
        block_areas=score_interval(confusions, lambda confusion: resampled_areas(confusion, mapped)),
        on_ground=counts.area_m2_UK is not None,
    )  # fmt: skip


def write_tables(evaluation: Evaluation, bundles: list[BundleScores], out: Place) -> list[Row]:
    """Write the tables of an evaluation into the folder `out`, in place of what is there; returns the rows of COMPARISON."""
    compared = list(comparison_rows(evaluation))
    publish_tables(out, {
        "scores": (score_rows(evaluation, bundles), SCORES), "confusion": (confusion_rows(evaluation, bundles), CONFUSION),
        "calibration": (calibration_rows(evaluation, bundles), CALIBRATION), "areas": (area_rows(evaluation, bundles), ADJUSTED_AREAS),
        "comparison": (compared, COMPARISON),
    })  # fmt: skip
    return compared


def score_rows(evaluation: Evaluation, bundles: list[BundleScores]) -> Iterator[Row]:
    """The rows of SCORES: those of all scenes with intervals, then each scene's."""
    for scores in bundles:
        for name, score in scores.overall.items():
            yield _row(scores, "all") | _class() | {"metric": name} | numbers(value=score.value, low=score.low, high=score.high)
        for name, listed in scores.per_class.items():
            for entry, score in zip(evaluation.classes, listed, strict=True):
                yield (
                    _row(scores, "all") | _class(entry.id, entry.name) | {"metric": name}
                    | numbers(value=score.value, low=score.low, high=score.high)
                )  # fmt: skip
        for scene, members in evaluation.drawing.scene_members():
            for metric in (*OVERALL, *PER_CLASS):
                values = metric.of(counts_of(scores.counts, metric.counts)[members].sum(axis=0))
                for number, value in enumerate(np.atleast_1d(values)):
                    of_class = _class(number, evaluation.names[number]) if values.ndim else _class()
                    yield (
                        _row(scores, "scene", scene) | of_class | {"metric": metric.name} | numbers(value=float(value), low=None, high=None)
                    )


def confusion_rows(evaluation: Evaluation, bundles: list[BundleScores]) -> Iterator[Row]:
    """The rows of CONFUSION, zeros included."""
    for scores in bundles:
        for base, members in _scopes(evaluation, scores):
            confusion = scores.counts.confusion_UKK[members].sum(axis=0)
            for (true, called), count in np.ndenumerate(confusion):
                yield base | {
                    "true_class_id": true, "true_class_name": evaluation.names[true],
                    "predicted_class_id": called, "predicted_class_name": evaluation.names[called], "pixel_count": int(count),
                }  # fmt: skip


def calibration_rows(evaluation: Evaluation, bundles: list[BundleScores]) -> Iterator[Row]:
    """The rows of CALIBRATION, for each percent that some pixel has."""
    for scores in bundles:
        for base, members in _scopes(evaluation, scores):
            counts = scores.counts.calibration_UP2[members].sum(axis=0)
            for percent in np.flatnonzero(counts[:, COUNT]):
                yield base | {
                    "confidence_percent": int(percent), "pixel_count": int(counts[percent, COUNT]),
                    "correct_pixel_count": int(counts[percent, RIGHT]),
                }  # fmt: skip


def area_rows(evaluation: Evaluation, bundles: list[BundleScores]) -> Iterator[Row]:
    """The rows of ADJUSTED_AREAS, for all scenes together."""
    for scores in bundles:
        estimate, ground = scores.areas, scores.on_ground
        pixels, whole = scores.counts.mapped_UK.sum(axis=0), estimate.mapped.sum()
        for entry in evaluation.classes:
            k = entry.id
            in_m2 = {
                "mapped_area_m2": estimate.mapped[k], "adjusted_area_m2": estimate.area[k], "standard_error_m2": estimate.area_se[k],
                "low_m2": estimate.low[k], "high_m2": estimate.high[k],
                "block_low_m2": scores.block_areas[0][k], "block_high_m2": scores.block_areas[1][k],
            }  # fmt: skip
            yield _row(scores, "all") | _class(k, entry.name) | {
                "sample_pixel_count": int(estimate.sample[k]), "mapped_pixel_count": int(pixels[k]),
            } | numbers(
                mapped_share=estimate.mapped[k] / whole, adjusted_share=estimate.area[k] / whole,
                users_accuracy=estimate.users[k], users_accuracy_standard_error=estimate.users_se[k],
                producers_accuracy=estimate.producers[k], producers_accuracy_standard_error=estimate.producers_se[k],
                **{name: value if ground else None for name, value in in_m2.items()},
            )  # fmt: skip


def comparison_rows(evaluation: Evaluation) -> Iterator[Row]:
    """The rows of COMPARISON: every bundle against every other, on the same units."""
    for one, other in permutations(range(len(evaluation.bundles)), 2):
        first, second = evaluation.bundles[one], evaluation.bundles[other]
        only_first, only_second = evaluation.only_first_UBB[:, one, other], evaluation.only_first_UBB[:, other, one]
        for metric in COMPARED:
            here, there = (evaluation.drawing.drawable(counts_of(counts, metric.counts)) for counts in (first, second))
            found = paired_difference(here, there, metric.of)
            tests: dict[str, float | None] = {"clustered_mcnemar_p": None, "pixel_mcnemar_p": None}
            if metric.name == "accuracy":
                tests = {
                    "clustered_mcnemar_p": clustered_mcnemar(
                        evaluation.drawing.drawable(only_first), evaluation.drawing.drawable(only_second)
                    ),
                    "pixel_mcnemar_p": mcnemar(int(only_first.sum()), int(only_second.sum())),
                }
            yield {"bundle": first.name, "other": second.name, "metric": metric.name} | numbers(
                difference=found.value, low=found.low, high=found.high, p=found.p, **tests
            )


def _scopes(evaluation: Evaluation, scores: BundleScores) -> Iterator[tuple[Row, Any]]:
    yield _row(scores, "all"), slice(None)
    for scene, members in evaluation.drawing.scene_members():
        yield _row(scores, "scene", scene), members


def _row(scores: BundleScores, scope: str, scene: str | None = None) -> Row:
    return {"bundle": scores.counts.name, "model_id": scores.counts.bundle.model_id, "scope": scope, "scene": scene}


def _class(number: int | None = None, name: str | None = None) -> Row:
    return {"class_id": number, "class_name": name}


def numbers(**values: float | None) -> Row:
    """Floats for a table: null instead of NaN."""
    return {name: None if value is None or math.isnan(value) else float(value) for name, value in values.items()}
