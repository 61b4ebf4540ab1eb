"""Laws 1, 2 and 6 where a network predicts a number a pixel: from a bundle with a target to value.tif, in one process."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rio_cogeo import cog_validate

from pipeline.errors import Refused, Unreadable
from pipeline.imagery.bands import Band
from pipeline.inference.plan import Settings
from pipeline.inference.segment import segment_scene
from pipeline.models.bundle import Bundle, Target, save_bundle
from pipeline.models.networks import build_network
from tests.inference.reference import whole_logits
from tests.toys import HEIGHT, smooth_noise, write_scene

FP32 = Settings(precision="fp32")


def whole_values(bundle: Bundle, values_CHW: np.ndarray, valid_CHW: np.ndarray | None = None) -> np.ndarray:
    """The reference."""
    output_HW = whole_logits(bundle, values_CHW, valid_CHW)[0].numpy()
    value_HW = np.float32(bundle.target.mean) + np.float32(bundle.target.std) * output_HW
    if valid_CHW is not None:
        value_HW[~valid_CHW.all(axis=0)] = np.nan
    return value_HW


def read_values(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


@pytest.mark.parametrize(
    ("height", "width", "tile", "halo", "shard", "batch", "workers"),
    [
        (1, 1, "auto", "exact", "auto", "auto", 1),
        (105, 103, 104, "exact", 512, 3, 2),
        (600, 1100, 256, "exact", 512, 4, 2),
        (1100, 1030, 608, "exact", 1024, 1, 2),
        pytest.param(1500, 1700, "auto", "auto", "auto", "auto", None, marks=pytest.mark.slow),
    ],
)
def test_tiled_equals_whole_to_the_bit(exact_regression: Bundle, tmp_path: Path, height, width, tile, halo, shard, batch, workers):
    values_CHW = smooth_noise(height, (3, height, width))
    scene = write_scene(tmp_path / "scene.tif", values_CHW)
    settings = replace(FP32, tile=tile, halo=halo, shard=shard)
    counts = segment_scene(scene, exact_regression.path, tmp_path / "value.tif", settings=settings, batch=batch, workers=workers)
    expected_HW = whole_values(exact_regression, values_CHW)
    assert read_values(tmp_path / "value.tif").tobytes() == expected_HW.tobytes()
    assert counts == {"canopy height": height * width}
    assert height == 1 or np.unique(expected_HW).size > 20, "it is no constant"


def test_tiled_equals_whole_with_weights_as_they_come(regression: Bundle, tmp_path: Path):
    """Within 1e-3 standard deviations; half the halo is not enough."""
    values_CHW = smooth_noise(10, (3, 700, 630))
    scene = write_scene(tmp_path / "scene.tif", values_CHW)
    expected_HW, off = whole_values(regression, values_CHW), {}
    for halo in ("exact", 8):
        settings = replace(FP32, tile=256, halo=halo, shard=512)
        segment_scene(scene, regression.path, tmp_path / f"{halo}.tif", settings=settings)
        off[halo] = np.abs(read_values(tmp_path / f"{halo}.tif") - expected_HW).max() / HEIGHT.std
    assert off["exact"] < 1e-3 < off[8]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_network_that_passes_on_its_band_reproduces_the_raster(tmp_path: Path, dtype: str):
    network = build_network("logistic_regression", 1, 1)
    with torch.no_grad():
        network.weight.fill_(1)
        network.bias.zero_()
    target = Target("reflectance", "", mean=0.0, std=1.0, low=0.0, high=1.0)
    bundle = save_bundle(
        tmp_path / "bundle", network, architecture="logistic_regression", arguments={}, bands=[Band("band_1")], classes=target,
        sample_CHW=torch.rand(1, 64, 64),
    )  # fmt: skip
    random = np.random.default_rng(1)
    values_CHW = random.normal(size=(1, 700, 600)) * 1e4 if dtype == "float32" else random.integers(0, 255, (1, 700, 600))
    values_CHW = values_CHW.astype(dtype)
    scene = write_scene(tmp_path / "scene.tif", values_CHW)
    segment_scene(scene, bundle.path, tmp_path / "value.tif", settings=replace(FP32, shard=512, tile=100))
    assert read_values(tmp_path / "value.tif").tobytes() == values_CHW[0].astype(np.float32).tobytes()


def test_what_is_missing_in_any_band_is_nan_and_its_neighbours_are_computed_with_the_mean(exact_regression: Bundle, tmp_path: Path):
    values_CHW = smooth_noise(6, (3, 300, 320))
    valid_CHW = np.ones(values_CHW.shape, bool)
    valid_CHW[0, 100:140, 50:200] = False
    valid_CHW[2, 0:30, 0:30] = False
    values_CHW[values_CHW == 0] = 1
    values_CHW[~valid_CHW] = 0
    scene = write_scene(tmp_path / "scene.tif", values_CHW, nodata=0)
    counts = segment_scene(scene, exact_regression.path, tmp_path / "value.tif", settings=replace(FP32, tile=160, halo="exact"))
    np.testing.assert_array_equal(read_values(tmp_path / "value.tif"), whole_values(exact_regression, values_CHW, valid_CHW))
    assert counts == {"canopy height": int(valid_CHW.all(axis=0).sum())}


def test_a_scene_of_nodata_only_is_nan(regression: Bundle, tmp_path: Path):
    scene = write_scene(tmp_path / "scene.tif", np.zeros((3, 600, 600), np.uint8), nodata=0)
    assert segment_scene(scene, regression.path, tmp_path / "value.tif", settings=FP32) == {"canopy height": 0}
    assert np.isnan(read_values(tmp_path / "value.tif")).all()


def test_the_raster_says_what_it_holds(regression: Bundle, tmp_path: Path):
    scene = write_scene(tmp_path / "scene.tif", smooth_noise(7, (3, 300, 700)))
    for name, workers, batch in (("a", 1, 1), ("b", 2, 3)):
        segment_scene(
            scene, regression.path, tmp_path / f"{name}.tif", settings=Settings(precision="bf16", shard=512), batch=batch, workers=workers
        )
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert (dataset.dtypes, dataset.descriptions, dataset.units) == (("float32",), ("canopy height",), ("m",))
        assert np.isnan(dataset.nodata) and dataset.overviews(1) == [2]
        tags = dataset.tags()
    assert json.loads(tags["TARGET"]) == asdict(HEIGHT) and tags["MODEL_ID"] == regression.model_id and "CLASSES" not in tags
    assert {"INPUT_ID", "SCENE"} <= set(tags)
    valid, errors, _ = cog_validate(tmp_path / "a.tif", strict=True, quiet=True)
    assert valid and not errors


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 1e38])
def test_a_value_that_is_not_finite_is_named_nodata(regression: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poison: float):
    """Also where the output is, and the value in the target's unit is not."""
    from pipeline.models.program import Program

    def poisoned(self, *inputs):
        logits_BKHW = honest(self, *inputs)
        logits_BKHW[0, 0, 70, 70] = poison
        return logits_BKHW

    honest = Program.forward
    scene = write_scene(tmp_path / "scene.tif", smooth_noise(8, (3, 500, 900)))
    segment = {"settings": replace(FP32, tile=512, halo="exact", shard=512), "workers": 1}
    segment_scene(scene, regression.path, tmp_path / "whole.tif", **segment)
    monkeypatch.setattr("pipeline.models.engine.check_device", lambda *_: None)
    monkeypatch.setattr(Program, "forward", poisoned)
    with pytest.raises(Unreadable, match="not finite"):
        segment_scene(scene, regression.path, tmp_path / "value.tif", **segment)
    assert not (tmp_path / "value.tif").exists()
    partial_HW, whole_HW = read_values(tmp_path / "value.partial.tif"), read_values(tmp_path / "whole.tif")
    known_HW = ~np.isnan(partial_HW)
    assert not known_HW.all() and np.isfinite(partial_HW[known_HW]).all()
    np.testing.assert_array_equal(partial_HW[known_HW], whole_HW[known_HW])


@pytest.mark.parametrize("layer", ["mask", "confidence", "probabilities", "polygons"])
def test_other_layers_are_refused_by_name(regression: Bundle, tmp_path: Path, layer: str):
    scene = write_scene(tmp_path / "scene.tif", smooth_noise(9, (3, 64, 64)))
    with pytest.raises(Refused, match=rf"--save {layer}: .*canopy height.* only value"):
        segment_scene(scene, regression.path, tmp_path / "value.tif", settings=replace(FP32, layers=(layer,)))


def test_a_network_of_classes_gives_no_values(unet: Bundle, tmp_path: Path):
    scene = write_scene(tmp_path / "scene.tif", smooth_noise(9, (3, 64, 64)))
    with pytest.raises(Refused, match=r"--save value: .*use mask"):
        segment_scene(scene, unet.path, tmp_path / "mask.tif", settings=replace(FP32, layers=("value",)))
