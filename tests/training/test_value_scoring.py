"""Errors of blocks add up to scikit-learn's scores of the whole, on the values of deployment; what cannot be compared is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window as RasterioWindow
from sklearn import metrics as oracle

from pipeline.errors import Refused
from pipeline.geometry.windows import Window
from pipeline.models.bundle import Bundle
from pipeline.models.value_scores import COUNT
from pipeline.results.value_tables import comparison_rows, score_errors
from pipeline.training import block_counts
from pipeline.training.datasets import open_labelled
from pipeline.training.targets import Numbers
from pipeline.training.value_scoring import ValueEvaluation, common_target, read_values
from tests.conftest import MakeBundle
from tests.toys import write_scene
from tests.training.predicted import HEIGHT, WIDTH, evaluated, labelled, value_bundle


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return {name: value_bundle(folder / name, seed) for seed, name in enumerate(("one", "other"))}


@pytest.fixture(scope="module")
def scored(two: dict[str, Bundle], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ValueEvaluation]:
    folder = tmp_path_factory.mktemp("scored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_counts, "BLOCK_SIDE", 64)
        item = replace(labelled(folder, two["one"]), excluded=(Window(100, 100, 20, 30),))
        return folder, evaluated(two, [item], folder / "work")


def pixels(scored: tuple[Path, ValueEvaluation], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The truth and the predictions of one bundle where all have both: the files read whole."""
    folder, evaluation = scored
    with rasterio.open(folder / "5-truth.tif") as dataset:
        truth_HW = dataset.read(1)
    truth_HW[100:120, 100:130] = np.nan
    made = evaluation.predictions[name, evaluation.labelled[0].name]
    with rasterio.open(made.files["value"]) as dataset:
        values_HW = dataset.read(1, window=RasterioWindow(0, 0, WIDTH, HEIGHT))
    known = np.isfinite(truth_HW) & np.isfinite(values_HW)
    assert np.isnan(values_HW[:20, :30]).all()
    return truth_HW[known].astype(float), values_HW[known].astype(float)


@pytest.mark.parametrize("name", ["one", "other"])
def test_blocks_add_up_to_scikit_learns_scores(scored: tuple[Path, ValueEvaluation], name: str) -> None:
    evaluation = scored[1]
    truth, predicted = pixels(scored, name)
    counts = next(counts for counts in evaluation.bundles if counts.name == name)
    found = score_errors(evaluation, counts)
    assert len(evaluation.units) == 9 and counts.sums_U6[:, COUNT].sum() == len(truth)
    assert found.overall["rmse"].value == pytest.approx(oracle.root_mean_squared_error(truth, predicted))
    assert found.overall["mae"].value == pytest.approx(oracle.mean_absolute_error(truth, predicted))
    assert found.overall["r2"].value == pytest.approx(oracle.r2_score(truth, predicted))
    assert found.overall["bias"].value == pytest.approx((predicted - truth).mean())
    assert counts.unpredicted == 20 * 30  # labelled, but a band is missing
    for score in found.overall.values():
        assert score.low <= score.value <= score.high
    place = np.digitize(truth, evaluation.edges[1:-1])
    for number in range(len(evaluation.edges) - 1):
        inside = place == number
        assert found.range_pixels[number] == inside.sum() == pytest.approx(len(truth) / 10, rel=0.05)
        assert found.by_range["bias"][number].value == pytest.approx((predicted - truth)[inside].mean())
    axis = evaluation.axis
    clipped = [np.clip(some.astype(np.float32), axis[0], np.nextafter(axis[-1], 0)) for some in (truth, predicted)]
    np.testing.assert_array_equal(counts.scatter_TP, np.histogram2d(*clipped, bins=[axis, axis])[0])


def test_a_bundle_that_answers_with_the_truth_has_no_error(
    two: dict[str, Bundle], scored: tuple[Path, ValueEvaluation], tmp_path: Path
) -> None:
    """The labels are what the bundle predicts: RMSE 0, R2 1, and every pixel on the diagonal."""
    folder, evaluation = scored
    item = evaluation.labelled[0]
    made = evaluation.predictions["one", item.name]
    values_HW = read_values(made, Window(0, 0, HEIGHT, WIDTH))
    write_scene(tmp_path / "truth.tif", values_HW[None])
    (same,) = open_labelled(str(folder / "5.tif"), labels=str(tmp_path / "truth.tif"), classes=Numbers(unit="m"), bands=two["one"].bands)
    found = evaluated({"one": two["one"]}, [same], tmp_path / "work")
    overall = score_errors(found, found.bundles[0]).overall
    assert overall["rmse"].value == 0 and overall["r2"].value == 1
    assert np.trace(found.bundles[0].scatter_TP) == found.bundles[0].scatter_TP.sum() == np.isfinite(values_HW).sum()
    assert list(comparison_rows(found)) == []


def test_bundles_that_cannot_be_compared_are_refused_by_name(two: dict[str, Bundle], make_bundle: MakeBundle, tmp_path: Path) -> None:
    classes = make_bundle("unet", classes=3, width=4, depth=1)
    for bundles in ({"height": two["one"], "crops": classes}, {"crops": classes, "height": two["one"]}):
        with pytest.raises(Refused, match="height predicts a number and crops predicts classes: evaluate them apart"):
            common_target(bundles)
    with pytest.raises(Refused, match="one is in m, feet in ft: evaluate them apart"):
        common_target({"one": two["one"], "feet": value_bundle(tmp_path / "feet", 0, "ft")})
