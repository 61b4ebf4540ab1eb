"""From a labelled scene to a bundle: what was held out decides nothing, and what was measured is written down."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from torch import nn

from pipeline.errors import Refused
from pipeline.geometry.windows import Span
from pipeline.models.bundle import ClassEntry, load_bundle
from pipeline.models.receptive import Reach, find_reach
from pipeline.training import fit as fitting
from pipeline.training.classes import LabelClass
from pipeline.training.datasets import open_labelled
from pipeline.training.fit import MEGAPIXEL, Columns, Fitted, auto_halo, fit, megapixel, save_fitted
from pipeline.training.loop import Recipe
from tests.toys import smooth_noise, write_scene

HEIGHT, WIDTH = 64, 160
CLASSES = (LabelClass(ClassEntry(0, "dark", "#000000"), (0,)), LabelClass(ClassEntry(1, "bright", "#FFFFFF"), (1, 2)))
COLUMNS = Columns(validation=Span(90, 110), test=Span(130, 160))
RECIPE = Recipe(epochs=2, batch=2, window=16, seed=3)
UNET = {"width": 4, "depth": 1}


def write_pair(folder: Path) -> tuple[Path, Path]:
    """A scene of two bands and its labels on the same grid: how many bands are above their middle."""
    values_CHW = smooth_noise(1, (2, HEIGHT, WIDTH))
    labels_HW = (values_CHW > 128).sum(axis=0).astype(np.uint8)
    return write_scene(folder / "scene.tif", values_CHW), write_scene(folder / "labels.tif", labels_HW[None])


def fit_pair(scene: Path, labels: Path, **changed: object) -> Fitted:
    asked = {"columns": COLUMNS, "recipe": RECIPE, **changed}
    return fit(open_labelled(str(scene), str(labels), CLASSES), "unet", UNET, asked["columns"], asked["recipe"])  # type: ignore[arg-type]


def weights(fitted: Fitted) -> torch.Tensor:
    return torch.cat([tensor.float().ravel() for tensor in fitted.network.state_dict().values()])


@pytest.fixture(autouse=True)
def small_halo_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """A megapixel through the network for every test would be a minute of nothing new."""
    monkeypatch.setattr(fitting, "MEGAPIXEL", 4_000)
    monkeypatch.setattr(fitting, "MEGAPIXEL_SIDE", 64)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "MEGAPIXEL", 4_000)
        patch.setattr(fitting, "MEGAPIXEL_SIDE", 64)
        return fit_pair(*write_pair(tmp_path_factory.mktemp("pair")))


def test_what_is_held_out_for_test_decides_nothing(tmp_path: Path, fitted: Fitted) -> None:
    """With any pixels and labels in the test block, weights, band statistics and halo are the same; only its scores change."""
    scene, labels = write_pair(tmp_path)
    for path in (scene, labels):
        with rasterio.open(path, "r+") as dataset:
            values = dataset.read()
            values[:, :, COLUMNS.test.start :] = values[:, ::-1, COLUMNS.test.start :] // 2 + 1
            dataset.write(values)
    changed = fit_pair(scene, labels)
    assert torch.equal(weights(changed), weights(fitted))
    assert (changed.bands, changed.halo) == (fitted.bands, fitted.halo)
    assert [epoch.score for epoch in changed.epochs] == [epoch.score for epoch in fitted.epochs]
    assert (changed.scores["network"].confusion != fitted.scores["network"].confusion).any()


def test_training_and_held_out_blocks_are_a_halo_apart(fitted: Fitted) -> None:
    halo = find_reach(fitted.network, 2).exact_halo
    assert halo and fitted.split.train == Span(0, COLUMNS.validation.start - halo)
    assert fitted.blocks["train"].window.cols == fitted.split.train


def test_one_seed_gives_the_same_weights(tmp_path: Path, fitted: Fitted) -> None:
    again = fit_pair(*write_pair(tmp_path))
    assert torch.equal(weights(again), weights(fitted)) and again.halo == fitted.halo


def test_the_bundle_tells_everything(tmp_path: Path, fitted: Fitted) -> None:
    bundle = save_fitted(fitted, tmp_path / "bundle", command="python jobs/train_model.py ...", licences={"data": "CC0-1.0"}, began=0.0)
    assert load_bundle(tmp_path / "bundle") == bundle
    assert (bundle.bands, bundle.halo, bundle.resolution_m) == (fitted.bands, fitted.halo, pytest.approx(30, rel=0.01))
    assert [entry.name for entry in bundle.classes] == ["dark", "bright"]
    assert set(bundle.metrics["test"]) == {"network", "logistic_regression", "majority_class"}
    assert bundle.metrics["test"]["network"]["accuracy"] == round(fitted.scores["network"].accuracy, 5)
    about = json.loads((tmp_path / "bundle" / "model.json").read_text())["provenance"]
    assert about["columns"] == {"train": list(fitted.split.train), "validation": [90, 110], "test": [130, 160]}
    assert about["labels"]["values"] == {"dark": [0], "bright": [1, 2]}
    assert about["labelled_pixels"]["test"] == dict(zip(("dark", "bright"), fitted.blocks["test"].class_counts(2).tolist(), strict=True))
    assert sum(about["labelled_pixels"]["test"].values()) == HEIGHT * 30


def test_blocks_without_labels_and_windows_off_the_stride_are_refused(tmp_path: Path) -> None:
    scene, labels = write_pair(tmp_path)
    with pytest.raises(Refused, match="--window 15: must be a multiple of the network's stride, 2 px"):
        fit_pair(scene, labels, recipe=Recipe(epochs=1, window=15))
    with rasterio.open(labels, "r+") as dataset:
        values = dataset.read()
        values[:, :, 130:] = 9
        dataset.write(values)
    with pytest.raises(Refused, match="--test-columns: no pixel there has a class"):
        fit_pair(scene, labels)


@pytest.mark.parametrize(("height", "width", "stride"), [(1428, 720, 8), (3000, 1200, 16), (40, 3000, 4), (50, 60, 32), (999, 1001, 8)])
def test_a_megapixel_is_one_at_least(height: int, width: int, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    image_CHW = torch.arange(height * width, dtype=torch.float32).reshape(1, height, width)
    pixels_CHW = megapixel(image_CHW, stride)
    _, rows, cols = pixels_CHW.shape
    assert rows * cols >= MEGAPIXEL and rows % stride == cols % stride == 0
    assert torch.equal(pixels_CHW[:, : min(rows, height), : min(cols, width)], image_CHW[:, :rows, :cols])


def test_the_auto_halo_is_the_smallest_that_changes_one_pixel_in_10_000_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """A blur over 33 px that weighs its far taps so little that they seldom decide: some halo below the exact one will do."""
    monkeypatch.undo()
    taps = torch.exp(-torch.arange(-16.0, 17.0).abs())
    blur = nn.Conv2d(1, 2, (1, 33), padding=(0, 16), bias=False)
    with torch.no_grad():
        blur.weight.copy_(torch.stack([taps, -taps])[:, None, None])
    random = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 1000, 1000)).astype(np.float32))
    reach = find_reach(blur, 1)
    assert reach == Reach(1, 16, None)
    halo, tried = auto_halo(blur, random, reach)
    assert halo is not None and 0 < halo < 16
    assert tried[halo] <= 1e-4 < tried[halo - 1]


def test_a_network_that_is_never_exact_has_no_measured_halo() -> None:
    assert auto_halo(nn.Identity(), torch.zeros(1, 8, 8), Reach(8, None, "global pooling")) == (None, {})
