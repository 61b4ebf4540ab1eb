"""An evaluation of numbers as one HTML page that loads nothing: bundles side by side, predicted against true, errors by range."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from itertools import combinations

import numpy as np

from pipeline.imagery.storage import Place
from pipeline.models.ramp import ramp_legend
from pipeline.models.value_scores import COUNT, HAVE_UNIT, LOWER_IS_BETTER, TRUTH_SQUARED, r2, rmse
from pipeline.results.charts import scatter_chart
from pipeline.results.evaluation_page import notes, samples
from pipeline.results.evaluation_tables import Row, Score
from pipeline.results.page import SIGNIFICANT, marked, note, p_value, page, section, table, tail, write_page
from pipeline.results.value_samples import lowest_and_highest
from pipeline.results.value_tables import COMPARED, BundleErrors
from pipeline.training.value_scoring import ValueEvaluation

TITLES = {"rmse": "RMSE", "mae": "MAE", "bias": "Bias", "r2": "R²"}
SCENES_SHOWN = 100


def write_value_report(
    evaluation: ValueEvaluation, bundles: Sequence[BundleErrors], compared: Sequence[Row], path: Place, when: datetime
) -> None:
    """Write the page, in place of what is there. Everything that has a name elsewhere is escaped."""
    write_page(value_report_html(evaluation, bundles, compared, when), path)


def value_report_html(evaluation: ValueEvaluation, bundles: Sequence[BundleErrors], compared: Sequence[Row], when: datetime) -> str:
    """The page; `compared` are the rows of COMPARISON."""
    target, sums = evaluation.target, bundles[0].sums
    facts = [
        f"{target.name}{f', {target.unit}' if target.unit else ''}",
        f"{len(evaluation.labelled)} scene{'s' * (len(evaluation.labelled) != 1)}", f"{int(sums[COUNT]):,} labelled pixels",
        f"{len(bundles)} bundle{'s' * (len(bundles) != 1)}", f"{when:%Y-%m-%d %H:%M} UTC",
    ]  # fmt: skip
    title = f"Evaluation on {escape(tail(evaluation.data))}"
    body = [
        f'<h1>{title}</h1><p class="faint">{escape(" · ".join(facts))}</p>',
        *_notes(evaluation, bundles),
        section("Bundles side by side", _summary(evaluation, bundles)),
    ]
    if len(bundles) > 1:
        body.append(section("Which differences are real", _comparison(evaluation, bundles, compared)))
    for scores in bundles:
        body.append(section(escape(scores.counts.name), _bundle(evaluation, scores)))
    body.append(section("Worst and best blocks", _samples(evaluation)))
    body.append(section("By scene", _scenes(evaluation, bundles)))
    body.append(section("How this was computed", _method(evaluation)))
    return page(title, body)


def _notes(evaluation: ValueEvaluation, bundles: Sequence[BundleErrors]) -> Iterable[str]:
    yield from notes(
        evaluation.skipped, {each.counts.name: each.counts.unpredicted for each in bundles}, "number", evaluation.drawing.count
    )
    for scores in bundles:
        if not scores.overall["rmse"].value < _of_mean(scores):
            yield note(f"{scores.counts.name} is no better than its training mean as the answer for every pixel.")


def _of_mean(scores: BundleErrors) -> float:
    """The RMSE of answering with the first bundle's training mean, from which the sums of the truth are taken."""
    return float(np.sqrt(scores.sums[TRUTH_SQUARED] / scores.sums[COUNT]))


def _summary(evaluation: ValueEvaluation, bundles: Sequence[BundleErrors]) -> str:
    unit = evaluation.target.unit
    heads = [f"{title}{f', {escape(unit)}' if unit and name in HAVE_UNIT else ''}" for name, title in TITLES.items()]
    rows = [
        [
            f"{_named(each)}<small>{escape(each.counts.bundle.architecture)}, {escape(each.counts.precision)}</small>",
            *(_score(each.overall[name], name, bundles) for name in TITLES),
        ]
        for each in bundles
    ]
    mean = f"{evaluation.target.mean:.4g}"
    rows.append([f"training mean<small>{mean} for every pixel</small>", shown(_of_mean(bundles[0])), "", "", ""])
    return table(["", *heads], rows, kind="wrapped") + (
        f'<p class="faint">Below each value its 95 % interval, from drawing {evaluation.drawing.drawn} anew 2,000 times. Bias is predicted'
        " less true; R² is the share of the truth's variance that is explained, 0 for its mean, and below 0 for worse than that.</p>"
    )


def _score(score: Score, name: str, bundles: Sequence[BundleErrors]) -> str:
    """A value with its interval below it, marked where no other bundle's is better."""
    if math.isnan(score.value):
        return "none"
    merits = [_merit(name, each.overall[name].value) for each in bundles if math.isfinite(each.overall[name].value)]
    best = len(bundles) > 1 and _merit(name, score.value) == max(merits)
    return f'<span class="{"best" if best else ""}">{shown(score.value)}</span>{_ends(score)}'


def _merit(name: str, value: float) -> float:
    """The higher the better."""
    return -value if name in LOWER_IS_BETTER else -abs(value) if name == "bias" else value


def _comparison(evaluation: ValueEvaluation, bundles: Sequence[BundleErrors], compared: Sequence[Row]) -> str:
    found = {(row["bundle"], row["other"], row["metric"]): row for row in compared}
    parts = []
    for one, other in combinations([each.counts.name for each in bundles], 2):
        rows = []
        for name in COMPARED:
            row = found[one, other, name]
            ends = "none" if row["low"] is None else f"{shown(row['low'], '+')} to {shown(row['high'], '+')}"
            rows.append([TITLES[name], shown(row["difference"], "+"), ends, marked(p_value(row["p"]), row["p"])])
        parts += [f"<h3>{escape(one)} less {escape(other)}</h3>", table(["", "difference", "95 % interval", "p"], rows)]
    return "".join(parts) + (
        f'<p class="faint">Paired bootstrap: both bundles are scored on the same draws of {evaluation.drawing.drawn}. Shaded: p below'
        f" {SIGNIFICANT}. Below 0 the first has the smaller error (or the smaller R²).</p>"
    )


def _bundle(evaluation: ValueEvaluation, scores: BundleErrors) -> str:
    unit = evaluation.target.unit
    rows = []
    for number, pixels in enumerate(scores.range_pixels):
        low, high = evaluation.edges[number : number + 2]
        called = _range(low, high)
        three = (scores.by_range[name][number] for name in ("rmse", "mae", "bias"))
        rows.append([called, f"{pixels:,}", *(f"{shown(score.value)}{_ends(score)}" for score in three)])
    name = evaluation.target.name + (f", {unit}" if unit else "")
    return "".join([
        f'<p class="faint">model {scores.counts.bundle.model_id[:12]}, {escape(scores.counts.bundle.architecture)},'
        f" {escape(scores.counts.precision)}</p>",
        "<h3>Predicted against true</h3>",
        scatter_chart(scores.counts.scatter_TP.tolist(), evaluation.axis.tolist(), name),
        '<p class="faint">Darker squares hold more pixels, on a logarithmic scale; on the dashed line predictions are right. The'
        " lowest and the highest 0.5 % of the truth, and predictions beyond them, are in the squares at the edges.</p>",
        "<h3>Errors by range of the truth</h3>",
        table([f"true {escape(name)}", "pixels", "RMSE", "MAE", "bias"], rows),
        '<p class="faint">Ranges hold about as many pixels each. A network that answers with the mean where it does not know has a bias'
        " above 0 in the low ranges and below 0 in the high ones.</p>",
    ])  # fmt: skip


def _range(low: float, high: float) -> str:
    if math.isinf(low):
        return f"below {shown(high)}"
    return f"{shown(low)} or more" if math.isinf(high) else f"{shown(low)} to {shown(high)}"


def _samples(evaluation: ValueEvaluation) -> str:
    lowest, highest = lowest_and_highest(evaluation)
    return samples(ramp_legend(evaluation.target), highest, lowest, len(evaluation.bundles))


def _scenes(evaluation: ValueEvaluation, bundles: Sequence[BundleErrors]) -> str:
    rows: list[tuple[float, list[str]]] = []
    for scene, members in evaluation.drawing.scene_members():
        sums = [each.counts.sums_U6[members].sum(axis=0) for each in bundles]
        cells = [f"{shown(float(rmse(some)))}<small>R² {shown(float(r2(some)))}</small>" for some in sums]
        mean = float(np.mean([rmse(some) for some in sums]))
        rows.append((mean, [escape(scene), f"{int(sums[0][COUNT]):,}", *cells]))
    rows.sort(key=lambda row: -row[0])
    more = f" The {SCENES_SHOWN} with the highest of {len(rows)}; all are in scores.parquet." if len(rows) > SCENES_SHOWN else ""
    heads = ["scene", "labelled px", *(_named(each) for each in bundles)]
    return f'<p class="faint">RMSE, and R² below it; the worst first.{more}</p>' + table(heads, [cells for _, cells in rows[:SCENES_SHOWN]])


def _method(evaluation: ValueEvaluation) -> str:
    return (
        "<p>Every scene went through the tiled inference of deployment. All bundles are scored on the same pixels: those with a label and a"
        " number from every bundle. Sums of errors are kept for each block, in double precision, so that blocks add up to scenes.</p>"
        f"<p>Intervals are percentiles of 2,000 bootstrap draws of {evaluation.drawing.drawn}; neighbouring pixels err together, so pixels"
        " are not drawn.</p>"
        "<p>Tables beside this page: scores.parquet, errors.parquet, comparison.parquet.</p>"
    )


def _named(scores: BundleErrors) -> str:
    return escape(scores.counts.name)


def _ends(score: Score) -> str:
    return f"<small>{shown(score.low)} to {shown(score.high)}</small>" if math.isfinite(score.low) else ""


def shown(value: float | None, sign: str = "") -> str:
    """A number to four digits, without exponents where it is of usual size."""
    if value is None or math.isnan(value):
        return "none"
    return f"{value:{sign},.0f}" if 1000 <= abs(value) < 1e9 else f"{value:{sign}.4g}"
