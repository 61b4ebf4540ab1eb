"""torchvision's segmentation networks, for any number of bands and without the auxiliary head."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

TORCHVISION_NAMES = (
    "fcn_resnet50",
    "fcn_resnet101",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
)


class TorchvisionSegmenter(nn.Module):
    """FCN, DeepLabV3 or LR-ASPP as torchvision has it, by its own name, with random weights."""

    def __init__(self, name: str, bands: int, classes: int):
        super().__init__()
        from torchvision.models import segmentation  # 3 s to import, which only these networks should cost

        self.network = segmentation.__dict__[name](weights=None, weights_backbone=None, num_classes=classes)
        if bands != 3:
            adapt_first_convolution(self.network.backbone, bands)

    @property
    def encoder(self) -> nn.Module:
        """The classification network that it is built on."""
        return self.network.backbone

    def coarse(self, batch_BCHW: torch.Tensor) -> torch.Tensor:
        """The logits before they are upsampled to the input's size."""
        features = self.network.backbone(batch_BCHW)
        return self.network.classifier(features.get("out", features))

    def forward(self, batch_BCHW: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(self.coarse(batch_BCHW), size=batch_BCHW.shape[-2:], mode="bilinear", align_corners=False)


def adapt_first_convolution(backbone: nn.Module, bands: int) -> None:
    """Replace, in place, the first convolution by a fresh one that takes `bands` channels."""
    path, first = next((path, module) for path, module in backbone.named_modules() if isinstance(module, nn.Conv2d))
    settings: Any = {"kernel_size": first.kernel_size, "stride": first.stride, "padding": first.padding, "bias": first.bias is not None}
    adapted = nn.Conv2d(bands, first.out_channels, **settings)
    parent, _, name = path.rpartition(".")
    setattr(backbone.get_submodule(parent), name, adapted)
