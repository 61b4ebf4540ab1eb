"""FC-DenseNet, "the one hundred layers tiramisu" (Jegou, Drozdzal, Vazquez, Romero and Bengio 2017, arXiv 1611.09326)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

FC_DENSENETS = {  # table 1 of the paper: layers of each block down, of the one at the bottom, and new maps a layer
    "fc_densenet56": ((4, 4, 4, 4, 4), 4, 12),
    "fc_densenet67": ((5, 5, 5, 5, 5), 5, 16),
    "fc_densenet103": ((4, 5, 7, 10, 12), 15, 16),
}


class FCDenseNet(nn.Module):
    """FC-DenseNet (Jegou et al. 2017): dense blocks on the way down and up, few parameters, much memory.

    Upwards only a block's new maps go on, so that the maps do not multiply. `first` is the channels of the first
    convolution, `growth` the new maps a layer (as the paper has it if 0). Height and width are multiples of 32.
    """

    def __init__(self, name: str, bands: int, classes: int, first: int = 48, growth: int = 0, dropout: float = 0.2):
        super().__init__()
        if min(bands, classes, first) < 1 or growth < 0:
            raise ValueError(f"need bands, classes, first >= 1 and growth >= 0, got {bands}, {classes}, {first}, {growth}")
        down, bottom, usual = FC_DENSENETS[name]
        growth = growth or usual
        self.first = nn.Conv2d(bands, first, 3, padding=1)
        self.down, self.shrink, self.enlarge, self.up = (nn.ModuleList() for _ in range(4))
        channels, skips = first, []
        for layers in down:
            self.down.append(DenseBlock(channels, growth, layers, dropout))
            channels += layers * growth
            skips.append(channels)
            self.shrink.append(nn.Sequential(*layer(channels, channels, 1, dropout), nn.MaxPool2d(2)))
        self.bottom = DenseBlock(channels, growth, bottom, dropout)
        channels = bottom * growth
        for layers in reversed(down):
            self.enlarge.append(nn.ConvTranspose2d(channels, channels, 3, stride=2, padding=1, output_padding=1))
            self.up.append(DenseBlock(channels + skips.pop(), growth, layers, dropout))
            before, channels = channels, layers * growth
        self.head = nn.Conv2d(before + first + 2 * channels, classes, 1)  # the last block's input too: skip, enlarged and new maps
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")

    @property
    def encoder(self) -> nn.ModuleDict:
        """The way down, with the names that its parts have in the network."""
        return nn.ModuleDict({"first": self.first, "down": self.down, "shrink": self.shrink, "bottom": self.bottom})

    def forward(self, batch_BCHW: torch.Tensor) -> torch.Tensor:
        features, skips = self.first(batch_BCHW), []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            skips.append(torch.cat([features, block(features)], dim=1))
            features = shrink(skips[-1])
        new = self.bottom(features)
        for enlarge, block in zip(self.enlarge, self.up, strict=True):
            features = torch.cat([enlarge(new), skips.pop()], dim=1)
            new = block(features)
        return self.head(torch.cat([features, new], dim=1))


class DenseBlock(nn.Module):
    """Layers that each see the input and all new maps before them; gives the new maps only."""

    def __init__(self, channels: int, growth: int, layers: int, dropout: float):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(*layer(channels + done * growth, growth, 3, dropout)) for done in range(layers))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        maps = [features]
        for dense_layer in self.layers:
            maps.append(dense_layer(torch.cat(maps, dim=1)))
        return torch.cat(maps[1:], dim=1)


def layer(channels_in: int, channels_out: int, kernel: int, dropout: float) -> Sequence[nn.Module]:
    """BatchNorm, ReLU, convolution, dropout."""
    return (
        nn.BatchNorm2d(channels_in), nn.ReLU(inplace=True),
        nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2), nn.Dropout(dropout),
    )  # fmt: skip
