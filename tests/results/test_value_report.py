"""The page and the tables of an evaluation of numbers: they say the same, and names are escaped."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.models.value_scores import COUNT
from pipeline.results.into_bundle import value_evaluation_json
from pipeline.results.value_report import shown, value_report_html
from pipeline.results.value_tables import score_errors, write_value_tables
from pipeline.training import block_counts
from pipeline.training.value_scoring import ValueEvaluation
from tests.results.test_evaluation_report import Checker
from tests.training.predicted import evaluated, labelled, value_bundle


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> ValueEvaluation:
    folder = tmp_path_factory.mktemp("scored")
    two = {name: value_bundle(folder / name, seed) for seed, name in enumerate(("one", "other"))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_counts, "BLOCK_SIDE", 64)
        return evaluated(two, [labelled(folder, two["one"])], folder / "work")


def test_tables_page_and_comparison_say_the_same(evaluation: ValueEvaluation, tmp_path: Path) -> None:
    scores = [score_errors(evaluation, counts) for counts in evaluation.bundles]
    compared = write_value_tables(evaluation, scores, tmp_path)
    rows = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    for each in scores:
        mine = {row["metric"]: row["value"] for row in rows if row["bundle"] == each.counts.name and row["scope"] == "all"}
        assert mine == {name: score.value for name, score in each.overall.items()}
        assert value_evaluation_json(evaluation, each, datetime.now(UTC))["rmse"] == pytest.approx(mine["rmse"], rel=1e-5)
    gap = next(row for row in compared if (row["bundle"], row["metric"]) == ("one", "rmse"))
    assert gap["difference"] == pytest.approx(scores[0].overall["rmse"].value - scores[1].overall["rmse"].value)
    assert gap["low"] <= gap["difference"] <= gap["high"] and 0 < gap["p"] <= 1
    ranges = pq.read_table(tmp_path / "errors.parquet").to_pylist()
    assert len(ranges) == 20 and ranges[0]["range_low"] is None and ranges[9]["range_high"] is None
    assert sum(row["pixel_count"] for row in ranges[:10]) == scores[0].sums[COUNT]
    html = value_report_html(evaluation, scores, compared, datetime(2026, 1, 2, tzinfo=UTC))
    checker = Checker()
    checker.feed(html)
    assert not checker.open and all(value.startswith("data:image/png;base64,") for value in checker.loaded) and len(checker.loaded) >= 8
    assert "<b>height" not in html and "&lt;b&gt;height" in html
    assert f"{scores[0].overall['rmse'].value:.4g}" in html and "no better than its training mean" in html  # random weights


def test_numbers_are_shown_so_that_they_can_be_read() -> None:
    texts = [shown(value) for value in (None, float("nan"), 0.000123456, 12.3456, 123456.7, 1e12)]
    assert texts == ["none", "none", "0.0001235", "12.35", "123,457", "1e+12"] and shown(12.3456, "+") == "+12.35"
