"""Fully convolutional networks over VGG-16 and AlexNet (Long, Shelhamer and Darrell 2015, arXiv 1411.4038).

The paper pads the image with 100 px and crops; here every layer is padded so that its map is a whole fraction of the
image, so that a tile's offset is a multiple of the stride and the logits do not depend on the tile's size.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from pipeline.models.networks.vgg import Backbone, alexnet_features, vgg16_features


class FCN(nn.Module):
    """Scores of the coarsest map, enlarged twofold and summed with those of the finer ones, down to a stride of `finest` px.

    `channels` are those of the maps that the encoder gives, finest first, each half as large as the one before. The
    twofold enlargements are learned and begin as bilinear interpolation, the last one is fixed, as in the paper.
    """

    def __init__(self, encoder: Backbone, channels: tuple[int, ...], classes: int, finest: int):
        super().__init__()
        self.encoder = encoder
        self.skips = int(math.log2(32 // finest))
        taken = channels[::-1][: self.skips + 1]  # coarsest first
        self.scores = nn.ModuleList(nn.Conv2d(channel, classes, 1) for channel in taken)
        self.enlarge = nn.ModuleList(bilinear_twofold(classes) for _ in range(self.skips))

    def coarse(self, batch_BCHW: torch.Tensor) -> torch.Tensor:
        """The logits before they are upsampled to the input's size."""
        maps = self.encoder(batch_BCHW)[::-1]
        logits = self.scores[0](maps[0])
        for level in range(self.skips):
            logits = self.enlarge[level](logits) + self.scores[level + 1](maps[level + 1])
        return logits

    def forward(self, batch_BCHW: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(self.coarse(batch_BCHW), size=batch_BCHW.shape[-2:], mode="bilinear", align_corners=False)


def fcn_vgg16(finest: int, bands: int, classes: int, width: int = 64, hidden: int = 4096, dropout: float = 0.5) -> FCN:
    """FCN over VGG-16 (Long et al. 2015): its scores every 32 px, refined by the finer maps in 16s and 8s."""
    _check(width, hidden, classes)
    classifier = nn.Sequential(
        nn.Conv2d(8 * width, hidden, 7, padding=3), nn.ReLU(inplace=True), nn.Dropout(dropout),
        nn.Conv2d(hidden, hidden, 1), nn.ReLU(inplace=True), nn.Dropout(dropout),
    )  # fmt: skip
    encoder = Backbone(vgg16_features(bands, width, norm=False), classifier)
    return FCN(encoder, (width, 2 * width, 4 * width, 8 * width, hidden), classes, finest)


def fcn_alexnet(bands: int, classes: int, width: int = 64, hidden: int = 4096, dropout: float = 0.5) -> FCN:
    """FCN over AlexNet (Long et al. 2015): its scores every 32 px; quick, and coarse."""
    _check(width, hidden, classes)
    classifier = nn.Sequential(
        nn.Sequential(nn.Dropout(dropout), nn.ZeroPad2d((2, 3, 2, 3))), nn.Conv2d(4 * width, hidden, 6), nn.ReLU(inplace=True),
        nn.Dropout(dropout), nn.Conv2d(hidden, hidden, 1), nn.ReLU(inplace=True),
    )  # fmt: skip
    return FCN(Backbone(alexnet_features(bands, width), classifier), (hidden,), classes, 32)


def bilinear_twofold(channels: int) -> nn.ConvTranspose2d:
    """A transposed convolution that doubles height and width and begins as bilinear interpolation of each channel."""
    layer = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False)
    taps_4 = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        layer.weight.zero_()
        for channel in range(channels):
            layer.weight[channel, channel] = torch.outer(taps_4, taps_4)
    return layer


def _check(width: int, hidden: int, classes: int) -> None:
    if min(width, hidden, classes) < 1:
        raise ValueError(f"need width, hidden and classes of at least 1, got {width}, {hidden}, {classes}")
