"""A network in parts of its channels gives what the whole one gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.models import forward, wide
from pipeline.models.bundle import Bundle
from pipeline.models.wide import in_parts

openvino = pytest.importorskip("openvino")
from openvino import opset13 as opset  # noqa: E402

RANDOM = np.random.default_rng(0)
RAW_1CHW = RANDOM.random((1, 8, 12, 10)).astype(np.float32)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch):
    """What 64 channels are to these networks, 1024 are to real ones."""
    monkeypatch.setattr(wide, "WIDE", 64)
    monkeypatch.setattr(wide, "PART", 32)


def convolution(x: Any, channels: int, side: int = 1, *, bits8: bool = False, axes: int = 4) -> Any:
    """With its bias, of `axes` axes."""
    weights = RANDOM.normal(0, 0.1, (channels, x.get_output_partial_shape(0)[1].get_length(), side, side)).astype(np.float32)
    most = np.abs(weights).max((1, 2, 3), keepdims=True)
    cut = opset.fake_quantize(opset.constant(weights), -most, most, -most, most, 255) if bits8 else opset.constant(weights)
    bias = RANDOM.normal(0, 0.1, (1, channels, 1, 1)).astype(np.float32)
    padding = [side // 2] * 2
    return opset.add(opset.convolution(x, cut, [1, 1], padding, padding, [1, 1]), opset.constant(bias.reshape(bias.shape[4 - axes :])))


def in_8_bits(x: Any) -> Any:
    low, high = (np.full((1, 1, 1, 1), value, np.float32) for value in (0, 2))
    return opset.fake_quantize(x, low, high, low, high, 256)


def taken(x: Any) -> Any:
    """By a convolution of 3 x 3 and, after a pooling, which parts do not go through, by one of 1 x 1."""
    pooled = opset.avg_pool(x, [1, 1], [1, 1], [1, 1], [3, 3], exclude_pad=True)
    return opset.add(convolution(x, 6, 3), convolution(pooled, 6))


def block(x: Any) -> Any:
    """A residual block of 100 channels: 32, 32, 32 and 4."""
    return opset.relu(opset.add(convolution(opset.relu(convolution(x, 16)), 100), convolution(x, 100)))


NETWORKS = {
    "a block": lambda x: taken(block(x)),
    "two blocks": lambda x: taken(block(block(x))),
    "a block in 8 bits": lambda x: taken(in_8_bits(block(in_8_bits(x)))),
    "weights in 8 bits": lambda x: taken(in_8_bits(opset.relu(convolution(in_8_bits(x), 96, bits8=True)))),
    "scaled": lambda x: taken(opset.multiply(convolution(x, 96), opset.constant(RANDOM.random((1, 96, 1, 1)).astype(np.float32)))),
    "the end": lambda x: convolution(x, 96),
    "a bias of three axes": lambda x: taken(opset.relu(convolution(x, 96, axes=3))),
    "a sum with what is whole": lambda x: taken(opset.add(convolution(x, 96), opset.relu(convolution(x, 96, 3)))),
    "a sum with one channel": lambda x: taken(opset.add(convolution(x, 96), convolution(x, 1))),
}


def outputs(model: Any, *inputs: np.ndarray) -> np.ndarray:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return openvino.Core().compile_model(model, "CPU", settings)(inputs)[0]


def shapes(model: Any) -> list[Sequence[int]]:
    """Of the weights of all convolutions."""
    return [tuple(op.input_value(1).get_shape()) for op in model.get_ordered_ops() if op.get_type_name() == "Convolution"]


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_parts_give_what_the_whole_gives(name: str, quantised: bool):
    x = opset.parameter([1, 8, -1, -1], np.float32)
    model = openvino.Model([NETWORKS[name](x)], [x])
    expected = outputs(model, RAW_1CHW)
    in_parts(model, quantised)
    assert all(len(weights) == 4 and (weights[2] > 1 or weights[0] <= 32) for weights in shapes(model))
    step = 2 / 255 if "8 bits" in name else 0  # a sum in another order may fall on the other side of a step of 8 bits
    found = outputs(model, RAW_1CHW)
    assert found.shape == expected.shape and (np.abs(found - expected) > 1e-4 + 2 * step).mean() == 0


def test_convolutions_add_up_what_parts_give_but_1_x_1_in_8_bits():
    def cut(quantised: bool) -> list[Sequence[int]]:
        x = opset.parameter([1, 8, -1, -1], np.float32)
        y = opset.relu(convolution(x, 96))
        model = openvino.Model([opset.add(convolution(y, 6), convolution(y, 6, 3))], [x])
        in_parts(model, quantised)
        return sorted(shapes(model))

    given = [(32, 8, 1, 1)] * 3
    assert cut(False) == sorted([*given, *[(6, 32, 1, 1)] * 3, *[(6, 32, 3, 3)] * 3])
    assert cut(True) == sorted([*given, (6, 96, 1, 1), *[(6, 32, 3, 3)] * 3])


def test_a_network_without_wide_activations_stays():
    x = opset.parameter([1, 8, -1, -1], np.float32)
    model = openvino.Model([convolution(opset.relu(convolution(x, 64)), 96, 3)], [x])
    before = [op.get_friendly_name() for op in model.get_ordered_ops()]
    in_parts(model, quantised=False)
    assert [op.get_friendly_name() for op in model.get_ordered_ops()] == before


def test_a_resnet(make_bundle, monkeypatch: pytest.MonkeyPatch):
    """As it is converted: of its last three blocks all activations of 2048 channels are in four parts."""
    monkeypatch.undo()
    bundle = make_bundle("fcn_resnet50", bands=3, classes=5)
    model = forward._convert(bundle)
    inputs = [RANDOM.integers(0, 255, (1, 3, 64, 64)).astype(np.float32), np.ones((1, 3, 64, 64), np.uint8)]
    inputs += [np.full((1, 3, 1, 1), 1 / 50, np.float32), np.full((1, 3, 1, 1), -2.5, np.float32)]
    expected = outputs(model, *inputs)
    in_parts(model, quantised=False)
    assert sum(weights == (512, 512, 1, 1) for weights in shapes(model)) == 3 * 4 + 2 * 4
    assert sum(weights == (512, 1024, 1, 1) for weights in shapes(model)) == 4 + 1
    assert sum(weights == (512, 512, 3, 3) for weights in shapes(model)) == 3 + 4
    assert not any(2048 in weights for weights in shapes(model))
    found = outputs(model, *inputs)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_an_engine_runs_it(unet: Bundle, monkeypatch: pytest.MonkeyPatch):
    """In bf16; fp32, the reference, stays whole."""
    pytest.importorskip("nncf")
    seen: list[bool] = []
    monkeypatch.setattr(forward, "in_parts", lambda model, quantised: (seen.append(quantised), in_parts(model, quantised)))
    for precision in ("fp32", "bf16"):
        run = forward.build_forward(unet, "cpu", "openvino", precision)
        logits = run(torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64, dtype=torch.uint8), *[torch.ones(1, 3, 1, 1)] * 2)
        assert torch.isfinite(logits).all()
    assert seen == [False]
