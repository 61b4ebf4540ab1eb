"""SegNet (Badrinarayanan, Kendall and Cipolla 2017, arXiv 1511.00561): the decoder puts each value where the pooling took it from."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from pipeline.models.networks.vgg import VGG16_STAGES, Backbone, convolution, vgg16_features


class SegNet(nn.Module):
    """SegNet over VGG-16: pooling indices, not features, are carried to the decoder.

    The first stage has `width` channels (the paper's 64). Height and width of the input are multiples of 32. An index is
    a choice between values that may be nearly equal, so rounding can move it: what differs between two precisions, or two
    orders of summation, is seldom but not always small.
    """

    def __init__(self, bands: int, classes: int, width: int = 64):
        super().__init__()
        if min(bands, classes, width) < 1:
            raise ValueError(f"need bands, classes, width >= 1, got {bands}, {classes}, {width}")
        self.encoder = Backbone(vgg16_features(bands, width, norm=True))
        self.stages = nn.ModuleList()
        finer = [1, *(multiple for multiple, _ in VGG16_STAGES[:-1])]
        for (multiple, convolutions), after in zip(VGG16_STAGES[::-1], finer[::-1], strict=True):
            widths = [multiple * width] * convolutions + [after * width]
            layers = [layer for pair in pairwise(widths) for layer in convolution(*pair, norm=True)]
            self.stages.append(nn.Sequential(*layers))
        self.stages[-1] = nn.Sequential(*layers[:3])  # the last convolution is the head
        self.head = nn.Conv2d(width, classes, 3, padding=1)

    def forward(self, batch_BCHW: torch.Tensor) -> torch.Tensor:
        features, places = batch_BCHW, []
        for layer in self.encoder.features:
            if isinstance(layer, nn.MaxPool2d):
                features, place = pool_with_places(features)
                places.append(place)
            else:
                features = layer(features)
        for stage in self.stages:
            features = stage(unpool(features, places.pop()))
        return self.head(features)


def pool_with_places(features_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The maximum of each 2 x 2 window, B x C x h x w, and where it was: B x C x 4 x h x w, 1 at the first maximum, else 0.

    What `max_pool2d(..., return_indices=True)` gives, in operations that every engine has in every precision: OpenVINO
    cannot unpool by index, and an index as a number is 8 bytes where a place is four small ones.
    """
    pooled = nn.functional.max_pool2d(features_BCHW, 2)
    free, places = torch.ones_like(pooled), []
    for row, col in ((0, 0), (0, 1), (1, 0)):
        here = free * (features_BCHW[:, :, row::2, col::2] == pooled).to(pooled.dtype)
        free = free - here
        places.append(here)
    return pooled, torch.stack([*places, free], dim=2)


def unpool(features_BChw: torch.Tensor, place_BC4hw: torch.Tensor) -> torch.Tensor:
    """Each value at its place in a 2 x 2 window of zeros, as `max_unpool2d`: B x C x 2h x 2w.

    A product, not a choice: a NaN spreads over its whole window, so that `receptive`, which finds by NaNs what an output depends
    on, counts all four pixels, each of which holds the value or not as the window's inputs decide.
    """
    return nn.functional.pixel_shuffle((features_BChw[:, :, None] * place_BC4hw).flatten(1, 2), 2)
