"""FCN over VGG-16 and AlexNet: published sizes, and its enlargements are bilinear interpolation before training."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch.nn import functional

from pipeline.models.networks import build_network
from pipeline.models.networks.fcn import bilinear_twofold

SMALL = {"width": 4, "hidden": 16}


@pytest.mark.parametrize(
    ("name", "millions"),
    [("fcn32s_vgg16", 134.5), ("fcn16s_vgg16", 134.5), ("fcn8s_vgg16", 134.5), ("fcn32s_alexnet", 57)],  # table 1 of the paper
)
def test_parameters_are_as_published(name: str, millions: float):
    with torch.device("meta"):
        network = build_network(name, 3, 21)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.002)


@pytest.mark.parametrize(("name", "stride"), [("fcn32s_vgg16", 32), ("fcn16s_vgg16", 16), ("fcn8s_vgg16", 8), ("fcn32s_alexnet", 32)])
def test_coarse_logits_are_those_that_forward_interpolates(name: str, stride: int):
    network = build_network(name, 4, 3, **SMALL)
    batch_BCHW = torch.randn(2, 4, 64, 96)
    with torch.inference_mode():
        coarse_BKhw = network.coarse(batch_BCHW)
        assert coarse_BKhw.shape == (2, 3, 64 // stride, 96 // stride)
        expected = functional.interpolate(coarse_BKhw, scale_factor=stride, mode="bilinear", align_corners=False)
        torch.testing.assert_close(network(batch_BCHW), expected)


def test_the_learned_enlargement_begins_as_bilinear_interpolation():
    maps_BCHW = torch.randn(1, 3, 6, 7)
    with torch.inference_mode():
        ours = bilinear_twofold(3)(maps_BCHW)
    expected = functional.interpolate(maps_BCHW, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(ours[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])  # at the border it sees zeros


def test_each_map_of_the_encoder_has_a_say():
    network = build_network("fcn8s_vgg16", 3, 2, **SMALL)
    assert [score.in_channels for score in network.scores] == [16, 32, 16]  # hidden, pool4, pool3
    assert len(build_network("fcn32s_vgg16", 3, 2, **SMALL).scores) == 1


@pytest.mark.parametrize(("name", "theirs", "first", "second"), [("fcn8s_vgg16", "vgg16", 0, 3), ("fcn32s_alexnet", "alexnet", 1, 4)])
def test_fully_connected_layers_have_torchvisions_names_and_sizes(name: str, theirs: str, first: int, second: int):
    with torch.device("meta"):
        classifier, ours = torchvision.models.__dict__[theirs](weights=None).classifier, build_network(name, 3, 2).encoder.classifier
    for place in (first, second):
        assert ours[place].weight.shape[0] == classifier[place].weight.shape[0]
        assert ours[place].weight[0].numel() == classifier[place].weight.shape[1]
