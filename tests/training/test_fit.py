"""From labelled scenes to a bundle: what was held out decides nothing, and what was measured is written down."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.errors import Refused
from pipeline.models.bundle import load_bundle
from pipeline.models.engine import Engine, Execution
from pipeline.models.metrics import Scores
from pipeline.models.receptive import Reach, find_reach
from pipeline.training import fit as fitting
from pipeline.training.classification import Classification
from pipeline.training.fit import MEGAPIXEL, Quiet, auto_halo, check_window, fit, megapixel
from pipeline.training.loop import Recipe
from tests.training.labelled import HEIGHT, RECIPE, TABLE, TEST, VALIDATION, training, write_pair

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("small_halo_sample")
CLASSES = Classification(TABLE, np.array([1, 1]), RECIPE)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, small_halo_sample: Any) -> tuple[Path, dict[str, Scores] | None]:
    folder = tmp_path_factory.mktemp("pair")
    write_pair(folder)
    return folder, fit(training(folder, run=folder / "run"), CPU)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "bundle" / "weights.safetensors")


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_held_out_for_test_decides_nothing(tmp_path: Path, fitted: tuple[Path, dict[str, Scores]]) -> None:
    """With any pixels and labels in the test columns, weights, band statistics and halo are the same; only its scores change."""
    for path in write_pair(tmp_path):
        with rasterio.open(path, "r+") as dataset:
            values = dataset.read()
            values[:, :, TEST.start :] = values[:, ::-1, TEST.start :] // 2 + 1
            dataset.write(values)
    changed = fit(training(tmp_path), CPU)
    before, after = load_bundle(fitted[0] / "bundle"), load_bundle(tmp_path / "bundle")
    assert same(tmp_path, fitted[0])
    assert (after.bands, after.halo) == (before.bands, before.halo)
    assert after.metrics["validation"] == before.metrics["validation"]
    assert changed is not None and (changed["network"].confusion != fitted[1]["network"].confusion).any()


def test_the_bundle_tells_everything(fitted: tuple[Path, dict[str, Scores]]) -> None:
    folder, scores = fitted
    bundle = load_bundle(folder / "bundle")
    Engine(bundle, "cpu", Execution())
    assert [entry.name for entry in bundle.classes] == ["dark", "bright"]
    assert bundle.resolution_m == pytest.approx(30, rel=0.01)
    assert set(bundle.metrics["test"]) == {"network", "logistic_regression", "majority_class"} == set(scores)
    assert bundle.metrics["test"]["network"]["accuracy"] == round(scores["network"].accuracy, 5)
    assert scores["network"].confusion.sum() == HEIGHT * TEST.length
    about = json.loads((folder / "bundle" / "model.json").read_text())["provenance"]
    assert about["data"]["split"]["validation"]["scene"]["areas"] == [[0, VALIDATION.start, HEIGHT, VALIDATION.length]]
    assert about["data"]["files"]["count"] == 2 and set(about["data"]["files"]["sha256"]) == {"scene.tif", "labels.tif"}
    assert about["labels"]["values"] == {"dark": [0], "bright": [1, 2]}
    assert sum(about["class_shares"].values()) == pytest.approx(1, abs=1e-3)
    assert about["recipe"]["window"] == [16, 16] and about["epochs"] == 2


def test_the_run_folder_holds_curves_samples_and_a_table(fitted: tuple[Path, dict[str, Scores]]) -> None:
    from PIL import Image

    run = fitted[0] / "run"
    rows = (run / "epochs.csv").read_text().splitlines()
    assert rows[0].startswith("epoch,loss,accuracy,mean_iou,mean_f1,iou_dark,iou_bright") and len(rows) == 3
    for name in ("curves.png", "samples.png"):
        with Image.open(run / name) as picture:
            assert picture.width > 300 and len(picture.convert("L").getcolors(256) or []) > 10
    assert any((run / "tensorboard").iterdir())


def test_stopped_and_taken_up_again_it_ends_as_it_would_have(tmp_path: Path) -> None:
    """After the first epoch the process is gone; its bundle is there; what goes on gives the same bytes of weights."""
    folders = [tmp_path / "whole", tmp_path / "stopped"]
    for folder in folders:
        write_pair(folder)
    longer = replace(RECIPE, epochs=3)
    fit(training(folders[0], longer), CPU)

    class Stopped(Quiet):
        state: Any = None

        def epoch(self, epoch: Any, trainer: Any) -> None:
            Stopped.state = trainer.state()
            raise KeyboardInterrupt

    class GoesOn(Quiet):
        def resumed(self) -> Any:
            return Stopped.state

    with pytest.raises(KeyboardInterrupt):
        fit(training(folders[1], longer), CPU, Stopped())
    so_far = load_bundle(folders[1] / "bundle")
    assert so_far.metrics["interrupted_after_epoch"] == 1
    Engine(so_far, "cpu", Execution())
    fit(training(folders[1], longer), CPU, GoesOn())
    assert same(*folders)
    assert load_bundle(folders[1] / "bundle").model_id == load_bundle(folders[0] / "bundle").model_id
    assert {path.name for path in folders[1].iterdir()} == {"scene.tif", "labels.tif", "bundle"}


def test_an_encoder_from_a_bundle_is_where_training_begins(fitted: tuple[Path, dict[str, Scores]], tmp_path: Path) -> None:
    write_pair(tmp_path)
    asked = training(tmp_path, replace(RECIPE, epochs=1, encoder_rate=0.0), encoder=str(fitted[0] / "bundle"))
    fit(asked, CPU)
    before, after = weights(fitted[0]), weights(tmp_path)
    kept = [name for name in before if name.startswith("down.") and not name.endswith("num_batches_tracked")]
    assert kept and all(torch.equal(before[name], after[name]) for name in kept)
    assert load_bundle(tmp_path / "bundle").provenance["encoder"]["source"] == str(fitted[0] / "bundle")


def test_windows_off_the_stride_are_refused() -> None:
    with pytest.raises(Refused, match="--window 15x16: must be a multiple of the network's stride, 2 px"):
        check_window(Recipe(window=(15, 16)), Reach(2, 8, None))


@pytest.mark.parametrize(("height", "width", "stride"), [(1428, 720, 8), (3000, 1200, 16), (40, 3000, 4), (50, 60, 32), (999, 1001, 8)])
def test_a_megapixel_is_one_at_least(height: int, width: int, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "MEGAPIXEL", MEGAPIXEL)
    monkeypatch.setattr(fitting, "MEGAPIXEL_SIDE", 1000)
    image_CHW = torch.arange(height * width, dtype=torch.float32).reshape(1, height, width)
    pixels_CHW = megapixel(image_CHW, stride)
    _, rows, cols = pixels_CHW.shape
    assert rows * cols >= MEGAPIXEL and rows % stride == cols % stride == 0
    assert torch.equal(pixels_CHW[:, : min(rows, height), : min(cols, width)], image_CHW[:, :rows, :cols])


def test_the_auto_halo_is_the_smallest_that_changes_one_pixel_in_10_000_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """A blur over 33 px that weighs its far taps so little that they seldom decide: some halo below the exact one will do."""
    monkeypatch.setattr(fitting, "MEGAPIXEL", MEGAPIXEL)
    taps = torch.exp(-torch.arange(-16.0, 17.0).abs())
    blur = nn.Conv2d(1, 2, (1, 33), padding=(0, 16), bias=False)
    with torch.no_grad():
        blur.weight.copy_(torch.stack([taps, -taps])[:, None, None])
    random = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 1000, 1000)).astype(np.float32))
    reach = find_reach(blur, 1)
    assert reach == Reach(1, 16, None)
    halo, tried = auto_halo(blur, random, reach, CLASSES)
    assert halo is not None and 0 < halo < 16
    assert tried[halo] <= 1e-4 < tried[halo - 1]


def test_a_network_that_is_never_exact_has_no_measured_halo() -> None:
    assert auto_halo(nn.Identity(), torch.zeros(1, 8, 8), Reach(8, None, "global pooling"), CLASSES) == (None, {})
