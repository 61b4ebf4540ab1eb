"""An evaluation as one HTML page that loads nothing: bundles side by side, each bundle's errors, areas, samples, scenes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from html import escape
from itertools import combinations

import numpy as np

from pipeline.imagery.storage import Place
from pipeline.models.calibration import binned
from pipeline.models.metrics import accuracy, mean_iou_of
from pipeline.results.charts import SERIES, Bar, Curve, bar_chart, calibration_chart, heat_map
from pipeline.results.evaluation_page import notes, samples
from pipeline.results.evaluation_samples import best_and_worst
from pipeline.results.evaluation_tables import COMPARED, BundleScores, Row, Score
from pipeline.results.page import SIGNIFICANT, amount, area_unit, marked, p_value, page, section, signed, table, tail, write_page
from pipeline.training.scoring import Evaluation

TITLES = {
    "accuracy": "Pixel accuracy", "mean_iou": "Mean IoU", "mean_f1": "Mean F1", "frequency_weighted_iou": "Frequency-weighted IoU",
    "kappa": "Cohen's kappa", "mean_boundary_f1": "Mean boundary F1", "expected_calibration_error": "Calibration error (ECE)",
}  # fmt: skip
LOWER_IS_BETTER = ("expected_calibration_error",)
OF_CLASS = {"precision": "precision", "recall": "recall", "f1": "F1", "iou": "IoU", "boundary_f1": "boundary F1"}
SCENES_SHOWN, PAIRS_LISTED, BARS_SIDE_BY_SIDE = 100, 3, 4


def write_report(evaluation: Evaluation, bundles: Sequence[BundleScores], compared: Sequence[Row], path: Place, when: datetime) -> None:
    """Write the page, in place of what is there. Everything that has a name elsewhere is escaped."""
    write_page(report_html(evaluation, bundles, compared, when), path)


def report_html(evaluation: Evaluation, bundles: Sequence[BundleScores], compared: Sequence[Row], when: datetime) -> str:
    """The page; `compared` are the rows of COMPARISON."""
    pixels = int(bundles[0].confusion.sum())
    facts = [
        f"{len(evaluation.labelled)} scene{'s' * (len(evaluation.labelled) != 1)}", f"{pixels:,} labelled pixels",
        f"{len(evaluation.classes)} classes", f"{len(bundles)} bundle{'s' * (len(bundles) != 1)}", f"{when:%Y-%m-%d %H:%M} UTC",
    ]  # fmt: skip
    body = [
        f'<h1>Evaluation on {escape(tail(evaluation.data))}</h1><p class="faint">{escape(" · ".join(facts))}</p>',
        *notes(evaluation.skipped, {each.counts.name: each.counts.unpredicted for each in bundles}, "class", evaluation.drawing.count),
        section("Bundles side by side", _summary(evaluation, bundles)),
    ]
    if len(bundles) > 1:
        body.append(section("Which differences are real", _comparison(evaluation, bundles, compared)))
    body.append(section("Can the confidence be believed?", _calibration(bundles)))
    for scores in bundles:
        body.append(section(escape(scores.counts.name), _bundle(evaluation, scores)))
    body.append(section("Best and worst blocks", _samples(evaluation)))
    body.append(section("By scene", _scenes(evaluation, bundles)))
    body.append(section("How this was computed", _method(evaluation)))
    return page(f"Evaluation on {escape(tail(evaluation.data))}", body)


def _summary(evaluation: Evaluation, bundles: Sequence[BundleScores]) -> str:
    rows = [
        [
            f"{_named(each)}<small>{escape(each.counts.bundle.architecture)}, {escape(each.counts.precision)}</small>",
            *(_score(each.overall[name], name, bundles) for name in TITLES),
        ]
        for each in bundles
    ]
    parts = [table(["", *TITLES.values()], rows, kind="wrapped")]
    if 1 < len(bundles) <= BARS_SIDE_BY_SIDE:
        series = [(each.counts.name, SERIES[number]) for number, each in enumerate(bundles)]
        bars = [[_bar(each.per_class["iou"][entry.id]) for each in bundles] for entry in evaluation.classes]
        parts += ["<h3>IoU by class</h3>", bar_chart(evaluation.names, series, bars)]
    elif len(bundles) > 1:
        values = [[_named(each), *(_shaded(score.value) for score in each.per_class["iou"])] for each in bundles]
        parts += ["<h3>IoU by class</h3>", table(["", *map(escape, evaluation.names)], values, kind="wrapped")]
    parts.append(f'<p class="faint">Below each value its 95 % interval, from drawing {evaluation.drawing.drawn} anew 2,000 times.</p>')
    return "".join(parts)


def _score(score: Score, name: str, bundles: Sequence[BundleScores]) -> str:
    """A value with its interval below it, marked where no other bundle's is better."""
    if math.isnan(score.value):
        return "none"
    values = [each.overall[name].value for each in bundles if math.isfinite(each.overall[name].value)]
    best = min(values) if name in LOWER_IS_BETTER else max(values)
    marked = len(bundles) > 1 and score.value == best
    ends = f"<small>{score.low:.3f} to {score.high:.3f}</small>" if math.isfinite(score.low) else ""
    return f'<span class="{"best" if marked else ""}">{score.value:.3f}</span>{ends}'


def _shaded(value: float) -> str:
    if math.isnan(value):
        return "none"
    return f'<span class="shade" style="background:rgba(37,99,168,{0.45 * value:.2f})">{value:.2f}</span>'


def _comparison(evaluation: Evaluation, bundles: Sequence[BundleScores], compared: Sequence[Row]) -> str:
    found = {(row["bundle"], row["other"], row["metric"]): row for row in compared}
    names = [each.counts.name for each in bundles]
    parts = []
    if len(names) <= PAIRS_LISTED:
        for one, other in combinations(names, 2):
            rows = [[TITLES[metric.name], *_difference(found[one, other, metric.name])] for metric in COMPARED]
            tests = found[one, other, "accuracy"]
            parts.append(f"<h3>{escape(one)} less {escape(other)}</h3>")
            parts.append(table(["", "difference", "95 % interval", "p"], rows))
            parts.append(
                f"<p>McNemar's test of accuracy with units as what is independent: p {p_value(tests['clustered_mcnemar_p'])};"
                f' <span class="faint">with every pixel as independent, which it is not: p {p_value(tests["pixel_mcnemar_p"])}.</span></p>'
            )
    else:
        for metric in ("mean_iou", "accuracy"):
            rows = [[escape(one), *("" if one == other else _matrix_cell(found[one, other, metric]) for other in names)] for one in names]
            parts += [f"<h3>{TITLES[metric]}: row less column</h3>", table(["", *map(escape, names)], rows, kind="wrapped")]
    tests_made = len(COMPARED) * len(names) * (len(names) - 1) // 2
    parts.append(
        f'<p class="faint">Paired bootstrap: both bundles are scored on the same draws of {evaluation.drawing.drawn}. Shaded: p below'
        f" {SIGNIFICANT}. Of {tests_made} such tests one in twenty falls below it by chance alone.</p>"
    )
    return "".join(parts)


def _difference(row: Row) -> list[str]:
    value, low, high, p = (row[name] for name in ("difference", "low", "high", "p"))
    ends = "none" if low is None else f"{low:+.4f} to {high:+.4f}"
    return [signed(value), ends, marked(p_value(p), p)]


def _matrix_cell(row: Row) -> str:
    return marked(f"{signed(row['difference'])}<small>p {p_value(row['p'])}</small>", row["p"])


def _calibration(bundles: Sequence[BundleScores]) -> str:
    curves = []
    for scores in bundles:
        bins = binned(scores.calibration)
        bins = bins[bins[:, 0] > 0]
        curves.append(Curve(
            f"{scores.counts.name}: ECE {scores.overall['expected_calibration_error'].value:.3f}",
            (bins[:, 2] / bins[:, 0]).tolist(), (bins[:, 1] / bins[:, 0]).tolist(), (bins[:, 0] / bins[:, 0].sum()).tolist(),
        ))  # fmt: skip
    return (
        calibration_chart(curves)
        + '<p class="faint">On the dashed line, of the pixels called with 80 % confidence 80 % are right. Below it'
        " a bundle is surer than it should be. Larger points hold more pixels.</p>"
    )


def _bundle(evaluation: Evaluation, scores: BundleScores) -> str:
    series = [(title, SERIES[number]) for number, title in enumerate(OF_CLASS.values())]
    bars = [[_bar(scores.per_class[name][entry.id]) for name in OF_CLASS] for entry in evaluation.classes]
    return "".join([
        f'<p class="faint">model {scores.counts.bundle.model_id[:12]}, {escape(scores.counts.bundle.architecture)},'
        f" {escape(scores.counts.precision)}</p>",
        "<h3>Confusion: what each true class is called</h3>",
        heat_map(evaluation.names, scores.confusion.tolist()),
        "<h3>By class</h3>",
        bar_chart(evaluation.names, series, bars),
        "<h3>Areas, corrected for the map's errors</h3>",
        _areas(evaluation, scores),
    ])  # fmt: skip


def _areas(evaluation: Evaluation, scores: BundleScores) -> str:
    estimate, (block_low, block_high) = scores.areas, scores.block_areas
    factor, unit = area_unit(float(estimate.mapped.sum())) if scores.on_ground else (1.0, "px")
    rows = []
    for entry in evaluation.classes:
        k = entry.id
        rows.append([
            f'<span class="dot" style="background:{escape(entry.color)}"></span>{escape(entry.name)}',
            amount(estimate.mapped[k] / factor),
            f"<b>{amount(estimate.area[k] / factor)}</b>",
            _ends(block_low[k] / factor, block_high[k] / factor),
            f"± {amount(1.96 * estimate.area_se[k] / factor)}",
            _share(estimate.users[k], estimate.users_se[k]),
            _share(estimate.producers[k], estimate.producers_se[k]),
        ])  # fmt: skip
    heads = [
        "",
        f"mapped, {unit}",
        f"adjusted, {unit}",
        "95 % by blocks",
        "95 % if random sample",
        "user's accuracy",
        "producer's accuracy",
    ]
    overall = f"Overall accuracy of the map {_share(estimate.overall, estimate.overall_se)}."
    return table(heads, rows) + (
        f'<p class="faint">{overall} Stratified estimator of Olofsson et al. 2014, for the map inside the evaluated areas, labelled or not.'
        " It takes the labelled pixels as a random sample of each mapped class. Where labels cover whole blocks, neighbours err together"
        " and its own interval (and those of the accuracies) is far too narrow: then take the one by blocks.</p>"
    )


def _samples(evaluation: Evaluation) -> str:
    best, worst = best_and_worst(evaluation)
    return samples([(entry.color, entry.name) for entry in evaluation.classes], worst, best, len(evaluation.bundles))


def _scenes(evaluation: Evaluation, bundles: Sequence[BundleScores]) -> str:
    rows: list[tuple[float, list[str]]] = []
    for scene, members in evaluation.drawing.scene_members():
        confusions = [each.counts.confusion_UKK[members].sum(axis=0) for each in bundles]
        values = [float(mean_iou_of(confusion)) for confusion in confusions]
        cells = [f"{value:.3f}<small>{float(accuracy(confusion)):.3f}</small>" for value, confusion in zip(values, confusions, strict=True)]
        rows.append((float(np.nanmean(values)), [escape(scene), f"{int(confusions[0].sum()):,}", *cells]))
    rows.sort(key=lambda row: row[0])
    more = f" The {SCENES_SHOWN} with the lowest of {len(rows)}; all are in scores.parquet." if len(rows) > SCENES_SHOWN else ""
    heads = ["scene", "labelled px", *(_named(each) for each in bundles)]
    return f'<p class="faint">Mean IoU, and pixel accuracy below it; the worst first.{more}</p>' + table(
        heads, [cells for _, cells in rows[:SCENES_SHOWN]]
    )


def _method(evaluation: Evaluation) -> str:
    return (
        "<p>Every scene went through the tiled inference of deployment. All bundles are scored on the same pixels: those with a label and a"
        " class from every bundle. A class that is neither in the truth nor predicted has no score and no part in the means.</p>"
        f"<p>Boundary F1 (Csurka et al. 2013) counts boundary pixels within {evaluation.tolerance} px of the other mask's boundary of the"
        " same class, over all scenes. ECE has 20 bins and confidence in whole percents, so it is exact to half a point. Intervals are"
        f" percentiles of 2,000 bootstrap draws of {evaluation.drawing.drawn}.</p>"
        "<p>Tables beside this page: scores.parquet, confusion.parquet, calibration.parquet, areas.parquet, comparison.parquet.</p>"
    )


def _named(scores: BundleScores) -> str:
    return escape(scores.counts.name)


def _bar(score: Score) -> Bar:
    return Bar(score.value, score.low, score.high)


def _share(value: float, error: float) -> str:
    if math.isnan(value):
        return "none"
    return f"{value:.1%}" + (f" ± {1.96 * error:.1%}" if math.isfinite(error) else "")


def _ends(low: float, high: float) -> str:
    return "none" if math.isnan(low) else f"{amount(low)} to {amount(high)}"
