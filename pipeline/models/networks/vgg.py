"""The convolutions of VGG-16 and AlexNet, named as in torchvision, so that weights of its classifiers fit."""

from __future__ import annotations

import torch
from torch import nn

VGG16_STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))  # channels in multiples of the first stage's, convolutions


class Backbone(nn.Module):
    """`features` as torchvision numbers them, and `classifier`: the fully connected layers as convolutions, or none.

    Gives the feature map after each pooling, finest first, the last one through the classifier.
    """

    def __init__(self, features: nn.Sequential, classifier: nn.Sequential | None = None):
        super().__init__()
        self.features = features
        self.classifier = classifier if classifier is not None else nn.Sequential()

    def forward(self, batch_BCHW: torch.Tensor) -> list[torch.Tensor]:
        features, pooled = batch_BCHW, []
        for layer in self.features:
            features = layer(features)
            if isinstance(layer, nn.MaxPool2d):
                pooled.append(features)
        return [*pooled[:-1], self.classifier(pooled[-1])]


def vgg16_features(bands: int, width: int, *, norm: bool) -> nn.Sequential:
    """VGG-16 down to its fifth pooling (Simonyan and Zisserman 2014, arXiv 1409.1556); `norm`: with BatchNorm.

    The first stage has `width` channels (the paper's 64), the last two 8 times as many; height and width are halved 5 times.
    """
    layers: list[nn.Module] = []
    before = bands
    for multiple, convolutions in VGG16_STAGES:
        for _ in range(convolutions):
            layers += convolution(before, multiple * width, norm=norm)
            before = multiple * width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def convolution(channels_in: int, channels_out: int, *, norm: bool) -> list[nn.Module]:
    """A 3 x 3 convolution, BatchNorm where asked for, ReLU."""
    layer = nn.Conv2d(channels_in, channels_out, 3, padding=1)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return [layer, *([nn.BatchNorm2d(channels_out)] if norm else []), nn.ReLU(inplace=True)]


def alexnet_features(bands: int, width: int) -> nn.Sequential:
    """AlexNet down to its third pooling, as torchvision has it (Krizhevsky 2014, arXiv 1404.5997), padded to strides of 4 and 2.

    torchvision pads the first convolution with 2 and no pooling, so that its feature maps are no whole fraction of the image;
    with 4 and 1 they are: sizes are halved or quartered without rest. `width` is the first layer's channels, 64.
    """
    return nn.Sequential(
        nn.Conv2d(bands, width, 11, stride=4, padding=4), nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Conv2d(width, 3 * width, 5, padding=2), nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Conv2d(3 * width, 6 * width, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(6 * width, 4 * width, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(4 * width, 4 * width, 3, padding=1), nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    )  # fmt: skip
