"""Rules over indices are a model like any other: the first condition that holds, for every pixel by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

from pipeline.errors import Refused
from pipeline.inference.plan import Settings
from pipeline.inference.segment import segment_scene
from pipeline.models.bundle import load_bundle
from pipeline.models.rules import save_rules
from tests.toys import write_scene

RULES: list[dict[str, Any]] = [
    {"name": "water", "color": "#2166AC", "when": "(green - nir) / (green + nir) > 0.1"},
    {"name": "crop", "when": "(nir - red) / (nir + red) >= 0.5 and nir > 0.2"},
    {"name": "bare"},
]


def expected(values: dict[str, np.ndarray]) -> np.ndarray:
    green, nir, red = (values[name] for name in ("green", "nir", "red"))
    with np.errstate(divide="ignore", invalid="ignore"):
        water = (green - nir) / (green + nir) > np.float32(0.1)
        crop = ((nir - red) / (nir + red) >= np.float32(0.5)) & (nir > np.float32(0.2))
    return np.where(water, 0, np.where(crop, 1, 2))


def test_a_class_is_the_first_whose_condition_holds(tmp_path: Path):
    bundle = save_rules(tmp_path / "model", RULES)
    values = dict(zip(("green", "nir", "red"), np.random.default_rng(1).uniform(0, 1, (3, 64, 64)).astype(np.float32), strict=True))
    values["green"][:4], values["nir"][:4] = 0, 0  # 0 / 0 satisfies nothing
    batch_BCHW = torch.from_numpy(np.stack([values[band.name] for band in bundle.bands])[None])
    found = bundle.network()(batch_BCHW)[0].argmax(0).numpy()
    assert (found == expected(values)).all() and {0, 1, 2} == set(np.unique(found))
    assert bundle.reach == (1, 0, None), "a pixel by itself: tiles need no halo"


def test_a_scene_is_segmented_by_rules(tmp_path: Path):
    save_rules(tmp_path / "model", RULES)
    numbers_CHW = np.random.default_rng(2).integers(1, 10_000, (3, 300, 200)).astype(np.uint16)
    scene = write_scene(tmp_path / "scene.tif", numbers_CHW, descriptions=["red", "nir", "green"], nodata=0)
    with rasterio.open(scene, "r+") as dataset:
        dataset.scales = (1e-4,) * 3
    counts = segment_scene(scene, tmp_path / "model", tmp_path / "mask.tif", settings=Settings(precision="fp32"))
    scaled = dict(zip(("red", "nir", "green"), numbers_CHW.astype(np.float32) * np.float32(1e-4), strict=True))
    with rasterio.open(tmp_path / "mask.tif") as dataset:
        assert (dataset.read(1) == expected(scaled)).mean() > 0.9999, "but for ties in the last bit"
    assert list(counts) == ["water", "crop", "bare"] and sum(counts.values()) == 300 * 200


def test_the_same_rules_are_the_same_model(tmp_path: Path):
    one, again = save_rules(tmp_path / "a", RULES), save_rules(tmp_path / "b", RULES)
    other = save_rules(tmp_path / "c", [{**RULES[0], "when": "(green - nir) / (green + nir) > 0.2"}, *RULES[1:]])
    assert one.model_id == again.model_id != other.model_id
    assert load_bundle(tmp_path / "a").provenance["rules"] == RULES


@pytest.mark.parametrize(
    ("rules", "word"),
    [
        ([], "at least two classes"), ([{"name": "a"}], "at least two classes"), ([{"when": "b > 1"}, {"name": "c"}], "each with a name"),
        ([{"name": "a", "when": "b > 1"}, {"name": "c", "when": "b > 0"}], "the last is what is left"),
        ([{"name": "a"}, {"name": "c"}], "the last is what is left"), ([{"name": "a", "when": "b + 1"}, {"name": "c"}], "is a number"),
        ([{"name": "a", "when": "import b"}, {"name": "c"}], "no formula"),
        ([{"name": "a", "when": "b > 1", "color": "red"}, {"name": "c"}], "#RRGGBB"),
    ],
)  # fmt: skip
def test_what_are_no_rules_is_refused(tmp_path: Path, rules: Any, word: str):
    with pytest.raises(Refused, match=word):
        save_rules(tmp_path / "model", rules)
