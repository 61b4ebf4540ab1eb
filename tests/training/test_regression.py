"""From labels that are numbers to a bundle: it learns what linear regression cannot, says so, and goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score, root_mean_squared_error

from pipeline.errors import Refused
from pipeline.models.bundle import load_bundle
from pipeline.models.networks import build_network
from pipeline.models.value_scores import ValueScores, error_sums
from pipeline.training.fit import Quiet, auto_halo, fit
from pipeline.training.loop import Recipe
from pipeline.training.pictures import Example, RampPaint, draw_samples
from pipeline.training.validation import classify
from tests.training.valued import HEIGHT, LEARNS, RECIPE, TEST, UNKNOWN, VALIDATION, value_training, write_heights

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("small_halo_sample")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, small_halo_sample: Any) -> tuple[Path, dict[str, ValueScores]]:
    folder = tmp_path_factory.mktemp("heights")
    write_heights(folder)
    scores = fit(value_training(folder, LEARNS), CPU)
    assert scores is not None
    return folder, scores


def arrays(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The image, float64, and the heights with NaN where image or label has nothing."""
    with rasterio.open(folder / "scene.tif") as image, rasterio.open(folder / "height.tif") as labels:
        values_CHW, heights_HW = image.read().astype(float), labels.read(1).astype(float)
    heights_HW[(heights_HW == UNKNOWN) | (values_CHW == 0).any(axis=0)] = np.nan
    return values_CHW, heights_HW


def test_a_small_network_learns_what_linear_regression_cannot(fitted: tuple[Path, dict[str, ValueScores]]) -> None:
    _, scores = fitted
    assert scores["network"].summary["r2"] > 0.9
    assert scores["linear_regression"].summary["r2"] < 0.3 and scores["training_mean"].summary["r2"] <= 0
    assert abs(scores["network"].summary["bias"]) < 0.5 * scores["network"].summary["rmse"]


def test_the_baselines_are_scikit_learns(fitted: tuple[Path, dict[str, ValueScores]]) -> None:
    """The linear regression is fitted to pixels that windows draw, so to a sample; the scores are of all test pixels."""
    folder, scores = fitted
    values_CHW, heights_HW = arrays(folder)
    margin = 2  # px, the exact halo at most: not trained on
    train = [slice(None), np.r_[0 : VALIDATION.start - margin, VALIDATION.stop + margin : TEST.start - margin]]
    test = [slice(None), np.r_[TEST.start : TEST.stop]]
    (x, y), (test_x, test_y) = ((values_CHW[:, *np.ix_(range(HEIGHT), cols)], heights_HW[:, cols]) for _, cols in (train, test))
    known, test_known = np.isfinite(y), np.isfinite(test_y)
    model = LinearRegression().fit(x[:, known].T, y[known])
    expected = root_mean_squared_error(test_y[test_known], model.predict(test_x[:, test_known].T))
    assert scores["linear_regression"].summary["rmse"] == pytest.approx(expected, rel=0.02)
    mean = root_mean_squared_error(test_y[test_known], np.full(test_known.sum(), y[known].mean()))
    assert scores["training_mean"].summary["rmse"] == pytest.approx(mean, rel=0.02)
    assert scores["network"].pixels == scores["training_mean"].pixels == test_known.sum()


def test_the_scores_are_those_of_the_bundle_on_the_test_columns(fitted: tuple[Path, dict[str, ValueScores]]) -> None:
    """Against one pass of the bundle's network over the whole scene, and scikit-learn."""
    folder, scores = fitted
    bundle = load_bundle(folder / "bundle")
    values_CHW, heights_HW = arrays(folder)
    mean, std = (np.array([getattr(band, name) for band in bundle.bands])[:, None, None] for name in ("mean", "std"))
    image_CHW = np.where(values_CHW == 0, 0, (values_CHW - mean) / std).astype(np.float32)
    with torch.inference_mode():
        output_HW = bundle.network().eval()(torch.from_numpy(image_CHW)[None])[0, 0].numpy()
    target = bundle.target
    assert target is not None and bundle.classes == () and (target.name, target.unit) == ("height", "m")
    predicted_HW = target.mean + target.std * output_HW
    part = np.isfinite(heights_HW) & (np.arange(heights_HW.shape[1]) >= TEST.start)
    assert scores["network"].summary["r2"] == pytest.approx(r2_score(heights_HW[part], predicted_HW[part]), abs=1e-4)
    told = bundle.metrics["test"]["network"]
    assert told["rmse"] == pytest.approx(root_mean_squared_error(heights_HW[part], predicted_HW[part]), rel=1e-4)
    assert told["pixels"] == part.sum() and set(bundle.metrics["test"]) == {"network", "linear_regression", "training_mean"}
    about = json.loads((folder / "bundle" / "model.json").read_text())["provenance"]
    assert about["labels"]["target"]["mean"] == target.mean and 0.9 < about["known_share"] < 1
    assert about["best_epoch"]["score"] == -about["best_epoch"]["rmse"] and about["recipe"]["metric"] == "rmse"


def test_the_run_folder_has_the_columns_and_pictures_of_numbers(tmp_path: Path) -> None:
    write_heights(tmp_path)
    run = tmp_path / "run"
    fit(value_training(tmp_path, replace(RECIPE, epochs=1), run=run), CPU)
    rows = [line.split(",") for line in (run / "epochs.csv").read_text().splitlines()]
    assert rows[0] == ["epoch", "loss", "rmse", "mae", "bias", "r2", "learning_rate", "seconds"] and len(rows) == 2
    best = min(float(row[2]) for row in rows[1:])
    assert load_bundle(tmp_path / "bundle").metrics["validation"]["network"]["rmse"] == pytest.approx(best, rel=1e-4)
    for name in ("curves.png", "samples.png"):
        with Image.open(run / name) as picture:
            assert picture.width > 300 and len(np.unique(np.asarray(picture.convert("L")))) > 10
    assert any((run / "tensorboard").iterdir())


def test_a_network_that_does_not_beat_the_baselines_is_said_to(tmp_path: Path) -> None:
    write_heights(tmp_path)
    task = value_training(tmp_path).task
    good, bad = (ValueScores(error_sums(np.arange(9.0), np.arange(9.0) + off)) for off in (0.1, 2.0))
    assert "note: the network is no better than the training mean" in task.table({"network": bad, "training_mean": good})
    table = task.table({"network": good, "linear_regression": bad})
    assert "note" not in table and table.splitlines()[1].split() == ["RMSE", "m", "0.1", "2"]
    assert table.splitlines()[4].split()[0] == "R2"


def test_stopped_and_taken_up_again_it_ends_as_it_would_have(tmp_path: Path) -> None:
    folders = [tmp_path / "whole", tmp_path / "stopped"]
    for folder in folders:
        write_heights(folder)
    longer = replace(RECIPE, epochs=3, ema=0.9)
    fit(value_training(folders[0], longer), CPU)

    class Stopped(Quiet):
        state: Any = None

        def epoch(self, epoch: Any, trainer: Any) -> None:
            torch.save(trainer.state(), tmp_path / "state.pt")
            raise KeyboardInterrupt

    class GoesOn(Quiet):
        def resumed(self) -> Any:
            return torch.load(tmp_path / "state.pt", weights_only=True)

    with pytest.raises(KeyboardInterrupt):
        fit(value_training(folders[1], longer), CPU, Stopped())
    so_far = load_bundle(folders[1] / "bundle")
    assert so_far.metrics["interrupted_after_epoch"] == 1 and set(so_far.metrics["validation"]) == {"rmse", "mae", "bias", "r2"}
    fit(value_training(folders[1], longer), CPU, GoesOn())
    first, second = (load_file(folder / "bundle" / "weights.safetensors") for folder in folders)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert load_bundle(folders[1] / "bundle").model_id == load_bundle(folders[0] / "bundle").model_id


def test_the_auto_halo_counts_values_that_are_far_off(tmp_path: Path) -> None:
    """At the halo that was found at most 1 pixel in 10,000 is more than 0.05 standard deviations off; one stride less, more are."""
    write_heights(tmp_path)
    training = value_training(tmp_path, arguments={"width": 4, "depth": 2})
    torch.manual_seed(0)
    network = build_network("unet", 2, 1, width=4, depth=2).eval()
    image_CHW = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 128, 128)).astype(np.float32))
    halo, tried = auto_halo(network, image_CHW, training.reach, training.task)
    assert halo is not None and tried[halo] <= 1e-4 and tried[training.reach.exact_halo or 0] == 0
    assert halo == 0 or tried.get(halo - training.reach.stride, 1) > 1e-4
    values_HW = classify(network, image_CHW, training.reach, training.task.answer)
    assert values_HW.dtype == np.float32 and values_HW.shape == (128, 128)
    off = training.statistics.target.std  # type: ignore[union-attr]
    assert (
        training.task.differ(values_HW, values_HW + 0.06 * off).all() and not training.task.differ(values_HW, values_HW + 0.04 * off).any()
    )


def test_a_sheet_of_numbers_shows_one_ramp_and_grey(tmp_path: Path) -> None:
    write_heights(tmp_path)
    target = value_training(tmp_path).statistics.target
    assert target is not None
    labels_HW = np.linspace(target.low, target.high, 300 * 300, dtype=np.float32).reshape(300, 300)
    labels_HW[:100] = np.nan
    draw_samples(tmp_path / "sheet.png", [Example("x", np.zeros((2, 300, 300), np.float32), labels_HW, labels_HW)], RampPaint(target))
    page = np.asarray(Image.open(tmp_path / "sheet.png"))
    grey = (page == 214).all(axis=2).sum()
    yellow = (np.abs(page.astype(int) - (253, 231, 37)).max(axis=2) <= 2).sum()
    assert 0 <= grey - 2 * 100 * 300 < 100 and yellow > 2 * 100  # a few of the letters' pixels are grey


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"class_weights": "inverse-root"}, "--class-weights: is of classes, and with --loss mse there are none: leave it out"),
        ({"class_weights": (1.0, 2.0)}, "--class-weights: is of classes"),
        ({"label_smoothing": 0.1}, "--label-smoothing: is of classes"),
        ({"balanced": True}, "--balanced: is of classes"),
        ({"metric": "mean_iou"}, "--metric mean_iou: with --loss mse there are rmse, mae, r2"),
        ({"loss": "dice", "metric": "rmse"}, "--metric rmse: with --loss dice there are mean_iou, mean_f1, accuracy"),
        ({"loss": "mse+dice"}, "--loss mse\\+dice: mse is of numbers"),
    ],
)
def test_what_means_nothing_for_numbers_is_refused_by_name(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message):
        Recipe(**{"loss": "mse", **recipe})
    assert (Recipe(loss="mse").metric, Recipe().metric) == ("rmse", "mean_iou")
