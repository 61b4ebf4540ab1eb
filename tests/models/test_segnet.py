"""SegNet: torch's own pooling by index is the oracle, in every precision; and every engine can run it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline.errors import Refused
from pipeline.geometry.windows import Window
from pipeline.imagery.reader import Pixels
from pipeline.models.engine import Engine, Execution, Scaling
from pipeline.models.forward import missing
from pipeline.models.networks import build_network
from pipeline.models.networks.segnet import pool_with_places, unpool
from tests.conftest import MakeBundle
from tests.toys import smooth_noise

UNIT = Scaling((1 / 50,) * 3, (-128 / 50,) * 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ties", [False, True])
def test_pooling_and_unpooling_are_torchs_own(dtype: torch.dtype, ties: bool):
    torch.manual_seed(0)
    batch_BCHW = (torch.randint(0, 3, (2, 5, 8, 12)) if ties else torch.randn(2, 5, 8, 12)).to(dtype)
    pooled, place = pool_with_places(batch_BCHW)
    expected, indices = functional.max_pool2d(batch_BCHW, 2, return_indices=True)
    assert torch.equal(pooled, expected)
    values = torch.randn(pooled.shape).to(dtype)
    assert torch.equal(unpool(values, place), functional.max_unpool2d(values, indices, 2))


def test_a_nan_in_a_window_marks_all_of_it():
    """So that `find_reach` counts each pixel to which the value might have gone."""
    batch_BCHW = torch.randn(1, 1, 4, 4)
    batch_BCHW[..., 1, 0] = torch.nan
    pooled, place = pool_with_places(batch_BCHW)
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[:2, :2] = True
    assert torch.equal(unpool(pooled, place)[0, 0].isnan(), expected)


def test_the_network_is_the_papers():
    """The same weights in layers of torch's own, in the paper's order."""
    torch.manual_seed(0)
    network = build_network("segnet", 3, 4, width=4)
    batch_BCHW = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        features, kept = batch_BCHW, []
        for layer in network.encoder.features:
            if isinstance(layer, nn.MaxPool2d):
                features, indices = functional.max_pool2d(features, 2, return_indices=True)
                kept.append(indices)
            else:
                features = layer(features)
        for stage in network.stages:
            features = stage(functional.max_unpool2d(features, kept.pop(), 2))
        assert torch.equal(network(batch_BCHW), network.head(features))


def test_parameters_are_as_published():
    with torch.device("meta"):
        network = build_network("segnet", 3, 11)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(29.45, abs=0.05)  # table 6 of the paper
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == 26


def test_gradients_are_torchs_own():
    batch_BCHW = torch.randn(1, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    pooled, place = pool_with_places(batch_BCHW)
    (unpool(pooled.square(), place) * weights).sum().backward()
    ours = batch_BCHW.grad.clone()
    batch_BCHW.grad = None
    pooled, indices = functional.max_pool2d(batch_BCHW, 2, return_indices=True)
    (functional.max_unpool2d(pooled.square(), indices, 2) * weights).sum().backward()
    torch.testing.assert_close(ours, batch_BCHW.grad)


def test_pooling_and_unpooling_compile():
    if lack := missing("compiled", "cpu"):
        pytest.skip(lack)
    batch_BCHW = torch.randn(2, 5, 8, 12).bfloat16()
    compiled = torch.compile(lambda batch_BCHW: unpool(*pool_with_places(batch_BCHW)), fullgraph=True)
    assert torch.equal(compiled(batch_BCHW), unpool(*pool_with_places(batch_BCHW)))


@pytest.mark.parametrize(("engine", "precision"), [("openvino", "fp32"), ("openvino", "bf16")])
def test_openvino_runs_it(make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, precision: str):
    """Against PyTorch as it is in the same precision: rounding alone moves the indices of 10 % of these random classes."""
    if lack := missing(engine, "cpu"):
        pytest.skip(lack)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = make_bundle("segnet", width=4)
    tile, whole = Pixels(smooth_noise(1, (3, 96, 128)), None), Window(0, 0, 96, 128)
    reference, ids = (
        Engine(bundle, "cpu", Execution(one, precision))([tile], [whole], UNIT, 1)[0] for one in ("eager", engine)
    )  # fmt: skip
    assert len(np.unique(reference)) > 2 and (ids != reference).mean() <= (0.001 if precision == "fp32" else 0.02)


def test_widths_that_cannot_be_are_refused():
    with pytest.raises(Refused, match="width"):
        build_network("segnet", 3, 2, width=0)
