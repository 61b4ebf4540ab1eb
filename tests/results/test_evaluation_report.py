"""The page and the tables of an evaluation made up in memory: names are escaped, numbers are those of the counts."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.geometry.windows import Window
from pipeline.imagery.catalogue import find_sources
from pipeline.imagery.raster import open_scene
from pipeline.models.bundle import Bundle, ClassEntry
from pipeline.models.metrics import Scores
from pipeline.results import evaluation_report
from pipeline.results.charts import Bar, bar_chart, heat_map
from pipeline.results.evaluation_report import report_html
from pipeline.results.evaluation_tables import comparison_rows, score_bundle, write_tables
from pipeline.training.block_counts import Prediction, Unit
from pipeline.training.scoring import BundleCounts, Evaluation
from tests.pages import Checker
from tests.toys import COLOURS, smooth_noise, write_scene

NASTY = "<script>alert('x')</script> & \"sons\""
WHEN = datetime(2026, 1, 2, tzinfo=UTC)


@dataclass(frozen=True)
class Fake:
    name: str
    scene: object
    labels_HW: np.ndarray
    classes: tuple[()] = ()
    areas: tuple[Window, ...] = ()
    excluded: tuple[Window, ...] = ()

    def read_labels(self, window: Window) -> np.ndarray:
        return self.labels_HW[window.slices()]


def made_up(folder: Path, model: Bundle, bundles: int, classes: int, blocks: int = 12) -> Evaluation:
    """Bundles of falling quality on `blocks` blocks of 32 px of one scene."""
    random = np.random.default_rng(0)
    side, wide = 32, 32 * blocks
    opened = open_scene(find_sources([str(write_scene(folder / "scene.tif", smooth_noise(1, (3, side, wide))))])[0], model.bands)
    truth_HW = (smooth_noise(2, (1, side, wide))[0].astype(int) * classes // 256).astype(np.uint8)
    entries = tuple(ClassEntry(k, NASTY if k == 0 else f"class {k}", COLOURS[k % len(COLOURS)]) for k in range(classes))
    counted, predictions, right = [], {}, []
    for number in range(bundles):
        name = f"model {number} {NASTY}" if number == 1 else f"model {number}"
        wrong = random.random((side, wide)) < 0.1 + 0.05 * number * random.random(wide)
        ids_HW = np.where(wrong, (truth_HW + 1) % classes, truth_HW).astype(np.uint8)
        mask, confidence = (
            write_scene(folder / f"{number}.tif", ids_HW[None]),
            write_scene(folder / f"{number}c.tif", (ids_HW * 0 + 90)[None]),
        )
        predictions[name, NASTY] = Prediction(mask, confidence, Window(0, 0, side, wide))
        cells = [slice(32 * block, 32 * block + 32) for block in range(blocks)]
        confusion_UKK = np.stack(
            [
                np.bincount(truth_HW[:, cell].ravel().astype(int) * classes + ids_HW[:, cell].ravel(), minlength=classes**2).reshape(
                    classes, classes
                )
                for cell in cells
            ]
        )
        calibration_UP2 = np.zeros((blocks, 101, 2), int)
        calibration_UP2[:, 90] = np.stack([confusion_UKK.sum(axis=(1, 2)), np.trace(confusion_UKK, axis1=1, axis2=2)], axis=-1)
        mapped_UK = confusion_UKK.sum(axis=1)
        counted.append(
            BundleCounts(
                name,
                replace(model, classes=entries, model_id="ab" * 32),
                "fp32 by eager",
                confusion_UKK,
                random.integers(0, 9, (blocks, classes, 4)),
                calibration_UP2,
                mapped_UK,
                mapped_UK * 900.0,
                7,
            )
        )
        right.append(np.stack([(ids_HW == truth_HW)[:, cell].ravel() for cell in cells]))
    only = np.array([[[(one[u] & ~other[u]).sum() for other in right] for one in right] for u in range(blocks)])
    units = tuple(Unit(NASTY, Window(0, 32 * block, side, 32)) for block in range(blocks))
    item = Fake(NASTY, opened, truth_HW)
    return Evaluation(f"data/{NASTY}", entries, (item,), {f"lost {NASTY}": "its & file"}, units, 32, 3, tuple(counted), only, predictions)  # type: ignore[arg-type]


@pytest.mark.parametrize(("bundles", "classes"), [(1, 2), (2, 4), (10, 20)])
def test_the_page_is_well_formed_loads_nothing_and_escapes_names(unet: Bundle, tmp_path: Path, bundles: int, classes: int) -> None:
    evaluation = made_up(tmp_path, unet, bundles, classes)
    scores = [score_bundle(evaluation, counts) for counts in evaluation.bundles]
    page = report_html(evaluation, scores, list(comparison_rows(evaluation)), WHEN)
    checker = Checker()
    checker.feed(page)
    assert not checker.open and "script" not in checker.tags and "link" not in checker.tags
    assert checker.loaded and all(place.startswith("data:image/png;base64,") for place in checker.loaded)
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.search(r"\bnan\b", re.sub('src="data:[^"]*"', "", page))
    assert page.count("<svg") == 1 + 2 * bundles + (bundles == 2)
    for svg in page.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + svg.split("</svg>")[0] + "</svg>")
    assert f"{scores[0].overall['mean_iou'].value:.3f}" in page and "2026-01-02" in page
    assert ("Which differences are real" in page) == (bundles > 1)


def test_the_tables_hold_what_was_counted(unet: Bundle, tmp_path: Path) -> None:
    evaluation = made_up(tmp_path, unet, 2, 3)
    scores = [score_bundle(evaluation, counts) for counts in evaluation.bundles]
    write_tables(evaluation, scores, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{name}.parquet" for name in ("areas", "calibration", "comparison", "confusion", "scores")
    ]
    tables = {path.stem: pq.read_table(path).to_pylist() for path in (tmp_path / "out").iterdir()}
    first, confusion = evaluation.bundles[0], evaluation.bundles[0].confusion_UKK.sum(axis=0)
    rows = [row for row in tables["confusion"] if row["bundle"] == first.name and row["scope"] == "all"]
    assert [row["pixel_count"] for row in rows] == confusion.ravel().tolist()
    found = {(row["metric"], row["class_id"]): row for row in tables["scores"] if row["bundle"] == first.name and row["scope"] == "all"}
    expected = Scores(confusion)
    assert found["kappa", None]["value"] == expected.kappa and found["iou", 2]["value"] == expected.iou[2]
    for row in found.values():
        assert row["low"] <= row["value"] <= row["high"]
    by_scene = {
        (row["metric"], row["class_id"]): row for row in tables["scores"] if row["bundle"] == first.name and row["scope"] == "scene"
    }
    assert by_scene["accuracy", None]["value"] == expected.accuracy and by_scene["accuracy", None]["scene"] == NASTY
    areas = [row for row in tables["areas"] if row["bundle"] == first.name]
    assert sum(row["adjusted_area_m2"] for row in areas) == pytest.approx(sum(row["mapped_area_m2"] for row in areas))
    np.testing.assert_allclose([row["adjusted_area_m2"] for row in areas], confusion.sum(axis=1) * 900)
    assert all(row["block_low_m2"] < row["adjusted_area_m2"] < row["block_high_m2"] for row in areas)
    calibration = [row for row in tables["calibration"] if row["bundle"] == first.name and row["scope"] == "all"]
    assert [(row["confidence_percent"], row["correct_pixel_count"]) for row in calibration] == [(90, int(np.trace(confusion)))]
    there, back = ([row for row in tables["comparison"] if row["bundle"] == each.name] for each in evaluation.bundles)
    assert [row["difference"] for row in there] == [-row["difference"] for row in back]
    accuracy = next(row for row in there if row["metric"] == "accuracy")
    assert (
        accuracy["low"] <= accuracy["difference"] <= accuracy["high"]
        and 0 < accuracy["p"] <= 1
        and accuracy["clustered_mcnemar_p"] is not None
    )


def test_without_a_place_on_the_ground_areas_are_shares(unet: Bundle, tmp_path: Path) -> None:
    evaluation = made_up(tmp_path, unet, 1, 3)
    evaluation = replace(evaluation, bundles=tuple(replace(counts, area_m2_UK=None) for counts in evaluation.bundles))
    scores = [score_bundle(evaluation, counts) for counts in evaluation.bundles]
    write_tables(evaluation, scores, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "areas.parquet").to_pylist()
    assert all(row["adjusted_area_m2"] is None and row["adjusted_share"] > 0 for row in rows)
    assert "adjusted, px" in report_html(evaluation, scores, [], WHEN)


def test_the_samples_are_the_best_and_the_worst(unet: Bundle, tmp_path: Path) -> None:
    evaluation = made_up(tmp_path, unet, 2, 3)
    best, worst = evaluation_report.best_and_worst(evaluation, 3)
    shares = np.mean([Scores(counts.confusion_UKK).confusion.trace(axis1=1, axis2=2) / 1024 for counts in evaluation.bundles], axis=0)
    assert [sample.score for sample in worst] == pytest.approx(sorted(shares)[:3])
    assert [sample.score for sample in best] == pytest.approx(sorted(shares)[:-4:-1])
    assert [title for title, _ in best[0].pictures][:2] == ["image", "truth"] and len(best[0].pictures) == 4


def test_charts_without_values_and_of_one_class() -> None:
    ElementTree.fromstring(bar_chart(["a<b"], [("IoU", "#123456")], [[Bar(float("nan"))]]))
    ElementTree.fromstring(heat_map(["only & one"], [[0]]))
    assert "nan" not in heat_map(["a", "b"], [[0, 0], [1, 3]])
