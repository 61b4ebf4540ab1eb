"""VGG-16 and AlexNet as backbones: torchvision's classifiers are the oracle."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from pipeline.models.networks.vgg import Backbone, alexnet_features, vgg16_features


@pytest.mark.parametrize(("norm", "name"), [(False, "vgg16"), (True, "vgg16_bn")])
def test_vgg16_has_torchvisions_names_and_shapes(norm: bool, name: str):
    with torch.device("meta"):
        theirs = torchvision.models.__dict__[name](weights=None).features.state_dict()
        ours = vgg16_features(3, 64, norm=norm).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    if not norm:
        assert sum(value.numel() for value in ours.values()) == 14_714_688  # the published 14.7 M


def test_vgg16_with_torchvisions_weights_gives_its_features():
    theirs = torchvision.models.vgg.make_layers([4, 4, "M", 8, 8, "M", 16, 16, 16, "M", 32, 32, 32, "M", 32, 32, 32, "M"])
    ours = Backbone(vgg16_features(3, 4, norm=False))
    ours.features.load_state_dict(theirs.state_dict())
    batch_BCHW = torch.randn(2, 3, 96, 64)
    torch.testing.assert_close(ours(batch_BCHW)[-1], theirs(batch_BCHW), rtol=0, atol=0)


def test_alexnet_has_torchvisions_names_and_shapes_and_layers():
    with torch.device("meta"):
        theirs, ours = torchvision.models.alexnet(weights=None).features, alexnet_features(3, 64)
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }
    for one, other in zip(ours, theirs, strict=True):
        assert type(one) is type(other)
        if isinstance(one, nn.Conv2d | nn.MaxPool2d):
            assert (one.kernel_size, one.stride) == (other.kernel_size, other.stride)


def test_alexnet_gives_torchvisions_features_where_padding_lines_up():
    """Ours pads the convolution by 2 more and each pooling by 1: torchvision's sees the same after a border of as many pixels."""
    ours, theirs = alexnet_features(3, 2)[:1], torchvision.models.alexnet(weights=None).features[:1]
    theirs[0] = nn.Conv2d(3, 2, 11, stride=4, padding=2)
    theirs.load_state_dict(ours.state_dict())
    batch_BCHW = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours(batch_BCHW)[..., :15, :15], theirs(nn.functional.pad(batch_BCHW, (2, 0, 2, 0)))[..., :15, :15])


@pytest.mark.parametrize("features", [vgg16_features(2, 2, norm=True), alexnet_features(2, 2)])
def test_the_last_map_is_a_32nd_of_the_image(features: nn.Sequential):
    assert Backbone(features)(torch.zeros(1, 2, 64, 96))[-1].shape[-2:] == (2, 3)
