"""Networks of segmentation-models-pytorch: what was changed of them, and what stays the library's."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from pipeline.errors import Refused
from pipeline.models.networks import build_network

smp = pytest.importorskip("segmentation_models_pytorch")


@pytest.mark.parametrize(
    ("name", "millions"),
    [("segformer_b0", 3.8), ("segformer_b1", 13.7), ("segformer_b2", 27.5)],  # table 1a of arXiv 2105.15203, 150 classes
)
def test_segformers_have_the_published_parameters(name: str, millions: float):
    network = build_network(name, 3, 150)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.015)


def test_a_unet_gives_the_librarys_logits():
    network = build_network("unet_resnet18", 4, 3)
    theirs = smp.Unet("resnet18", encoder_weights=None, in_channels=4, classes=3).eval()
    state = {
        name.replace("head.", "segmentation_head.0.", 1) if name.startswith("head.") else name: value
        for name, value in network.state_dict().items()
    }
    theirs.load_state_dict(state)
    batch_BCHW = torch.randn(1, 4, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(network(batch_BCHW), theirs(batch_BCHW))


@pytest.mark.parametrize("name", ["deeplabv3plus_resnet18", "fpn_resnet18"])
def test_weights_are_the_librarys_and_corners_are_not_aligned(name: str):
    """With flat features both ways of interpolation agree, so that only they can differ."""
    network = build_network(name, 3, 2)
    kind = smp.DeepLabV3Plus if name.startswith("deeplab") else smp.FPN
    theirs = kind("resnet18", encoder_weights=None, in_channels=3, classes=2).eval()
    state = {
        name.replace("head.", "segmentation_head.0.", 1) if name.startswith("head.") else name: value
        for name, value in network.state_dict().items()
    }
    assert set(state) == set(theirs.state_dict())
    assert not any(isinstance(module, nn.Upsample) and module.align_corners for module in network.modules())


def test_fpn_with_batch_norm_has_no_group_norm():
    network = build_network("fpn_resnet18", 3, 2, norm="batch")
    assert not any(isinstance(module, nn.GroupNorm) for module in network.modules())
    with pytest.raises(Refused, match="group"):
        build_network("fpn_resnet18", 3, 2, norm="layer")


def test_nothing_of_the_classifier_is_left():
    assert not hasattr(build_network("unet_vgg16_bn", 3, 2).encoder, "avgpool")


def test_without_the_library_the_fix_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(Refused, match="pip install segmentation-models-pytorch"):
        build_network("unet_resnet18", 3, 2)
