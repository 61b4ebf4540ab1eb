"""The zoo as `--list` prints it: what is kept is what measuring gives, and every member is a bundle that every engine runs alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.geometry.windows import Window
from pipeline.imagery.reader import Pixels
from pipeline.models import random_bundle, zoo
from pipeline.models.bundle import load_bundle
from pipeline.models.engine import Engine, Execution, Scaling
from pipeline.models.forward import missing
from pipeline.models.networks import ARCHITECTURES
from pipeline.models.receptive import Reach
from tests.toys import smooth_noise

CHEAP = ("identity", "logistic_regression", "segformer_b0", "lraspp_mobilenet_v3_large", "fpn_resnet18")
SMALL = {"width": 8, "hidden": 32, "first": 8, "growth": 4, "depth": 2}  # where an architecture has such an argument
RUN = ("fcn8s_vgg16", "fc_densenet56", "deeplabv3plus_mobilenet_v2", "segformer_b0")


@pytest.mark.parametrize("name", CHEAP)
def test_what_is_kept_is_what_measuring_gives(name: str):
    """All of them: tests/benchmarks/bench_zoo.py."""
    kept = {member.name: member.measured for member in zoo.members()}
    assert zoo.measure(name) == kept[name]


def test_every_architecture_is_listed_with_a_sentence_and_its_arguments():
    listed = {member.name: member for member in zoo.members()}
    assert set(listed) == set(ARCHITECTURES)
    assert all(member.sentence.endswith(".") for member in listed.values())
    assert listed["unet"].arguments == {"width": 64, "depth": 4, "dropout": 0.0}
    assert listed["fcn8s_vgg16"].arguments == {"width": 64, "hidden": 4096, "dropout": 0.5}
    lines = zoo.table()
    assert all(any(line.startswith(f"{name} ") for line in lines) for name in ARCHITECTURES)
    assert all("none: " in line for line in lines if line.startswith(("segformer", "deeplabv3")))


def test_operations_are_counted_twice_a_multiplication_with_addition():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(8, 5, 1))
    assert zoo.gflop_per_megapixel(network, 3) == pytest.approx(2 * (3 * 8 * 9 + 8 * 5 / 4) / 1000, abs=1e-3)


def test_the_receptive_field_is_a_block_and_a_halo_on_either_side():
    assert zoo.Measured(0, 16, 96, None, 0.0).receptive_field == 208
    assert zoo.Measured(0, 16, None, "attention", 0.0).receptive_field is None


@pytest.mark.parametrize("name", RUN)
def test_every_engine_runs_it_alike(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Saved and loaded again; fp32 and bf16, by PyTorch and OpenVINO, the reach as it is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = {member.name: member for member in zoo.members()}[name]
    monkeypatch.setattr("pipeline.models.bundle.find_reach", lambda *_: Reach(*kept.measured[1:4]))
    arguments = {argument: SMALL[argument] for argument in kept.arguments if argument in SMALL}
    random_bundle.save_random_bundle(tmp_path / "bundle", architecture=name, arguments=arguments, bands=4, classes=3)
    bundle = load_bundle(tmp_path / "bundle")
    tile, whole = Pixels(smooth_noise(1, (4, 96, 160)), None), Window(0, 0, 96, 160)
    scaling = Scaling((1 / 50,) * 4, (-128 / 50,) * 4)
    ids = {}
    for engine in ("eager", "openvino"):
        for precision in ("fp32", "bf16"):
            if not missing(engine, "cpu"):
                ids[engine, precision] = Engine(bundle, "cpu", Execution(engine, precision))([tile], [whole], scaling, 1)[0]
    reference = ids["eager", "fp32"]
    assert reference.shape == (1, 96, 160) and reference.max() < 3
    for (engine, precision), mask in ids.items():
        assert (mask != reference).mean() <= (0.001 if precision == "fp32" else 0.1), (engine, precision)
    with torch.inference_mode():
        assert np.isfinite(bundle.selftest()[1].numpy()).all()
