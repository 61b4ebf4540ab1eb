"""U-Net (Ronneberger, Fischer and Brox 2015, arXiv 1505.04597), with padded convolutions and BatchNorm."""

from __future__ import annotations

import torch
from torch import nn


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015): `depth` halvings, and a decoder with skip connections.

    The first level has `width` channels, each level below twice as many. Height and width of the input must be
    multiples of 2 ** depth, which is the network's stride. `dropout` acts on the deepest features, in training only.
    """

    def __init__(self, bands: int, classes: int, width: int = 64, depth: int = 4, dropout: float = 0.0):
        super().__init__()
        if min(bands, classes, width) < 1 or not 1 <= depth <= 6:
            raise ValueError(f"need bands, classes, width >= 1 and depth in 1..6, got {bands}, {classes}, {width}, {depth}")
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            double_convolution(before, after) for before, after in zip([bands, *widths[:-2]], widths[:-1], strict=True)
        )
        self.bottom = nn.Sequential(double_convolution(widths[-2], widths[-1]), nn.Dropout2d(dropout))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(below, level, kernel_size=2, stride=2) for below, level in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.merge = nn.ModuleList(double_convolution(2 * level, level) for level in widths[-2::-1])
        self.head = nn.Conv2d(width, classes, kernel_size=1)

    @property
    def encoder(self) -> nn.ModuleDict:
        """The way down, with the names that its parts have in the network."""
        return nn.ModuleDict({"down": self.down, "bottom": self.bottom})

    def forward(self, batch_BCHW: torch.Tensor) -> torch.Tensor:
        features, skips = batch_BCHW, []
        for block in self.down:
            features = block(features)
            skips.append(features)
            features = nn.functional.max_pool2d(features, 2)
        features = self.bottom(features)
        for enlarge, block in zip(self.up, self.merge, strict=True):
            features = block(torch.cat([skips.pop(), enlarge(features)], dim=1))
        return self.head(features)


def double_convolution(channels_in: int, channels_out: int) -> nn.Sequential:
    """Two 3 x 3 convolutions, each with BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )
