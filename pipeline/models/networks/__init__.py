"""Segmentation networks by the field's names: batch_BCHW float32 in, logits_BKHW of the same height and width out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from pipeline.errors import Refused
from pipeline.models.networks.fc_densenet import FC_DENSENETS, FCDenseNet
from pipeline.models.networks.fcn import fcn_alexnet, fcn_vgg16
from pipeline.models.networks.identity import Identity
from pipeline.models.networks.index_rules import IndexRules
from pipeline.models.networks.logistic import logistic_regression
from pipeline.models.networks.segnet import SegNet
from pipeline.models.networks.smp_zoo import (
    DEEPLABV3PLUS_ENCODERS,
    FPN_ENCODERS,
    SEGFORMER_WIDTHS,
    UNET_ENCODERS,
    deeplabv3plus_on,
    fpn_on,
    segformer_on,
    unet_on,
)
from pipeline.models.networks.torchvision_zoo import TORCHVISION_NAMES, TorchvisionSegmenter
from pipeline.models.networks.unet import UNet

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "identity": Identity,
    "logistic_regression": logistic_regression,
    "segnet": SegNet,
    "fcn32s_alexnet": fcn_alexnet,
    **{f"fcn{finest}s_vgg16": partial(fcn_vgg16, finest) for finest in (32, 16, 8)},
    **{name: partial(FCDenseNet, name) for name in FC_DENSENETS},
    **{name: partial(TorchvisionSegmenter, name) for name in TORCHVISION_NAMES},
    **{f"unet_{encoder}": partial(unet_on, encoder) for encoder in UNET_ENCODERS},
    **{f"deeplabv3plus_{encoder}": partial(deeplabv3plus_on, encoder) for encoder in DEEPLABV3PLUS_ENCODERS},
    **{f"fpn_{encoder}": partial(fpn_on, encoder) for encoder in FPN_ENCODERS},
    **{f"segformer_{size}": partial(segformer_on, size) for size in SEGFORMER_WIDTHS},
}
MADE = ARCHITECTURES | {"index_rules": IndexRules}  # and what is never trained


def build_network(architecture: str, bands: int, classes: int, **arguments: Any) -> nn.Module:
    """The network of that name, with fresh weights, in eval mode.

    Raises Refused for a name that is not on the list, or arguments the architecture does not have.
    """
    if architecture not in MADE:
        raise Refused(f"no architecture {architecture!r}; there are {', '.join(sorted(ARCHITECTURES))}")
    try:
        return MADE[architecture](bands=bands, classes=classes, **arguments).eval()
    except (TypeError, ValueError) as error:
        raise Refused(f"architecture {architecture} does not take these arguments: {error}") from None
