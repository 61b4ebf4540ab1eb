"""Segmentation networks by the field's names: batch_BCHW float32 in, logits_BKHW of the same height and width out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from pipeline.errors import Refused
from pipeline.models.networks.identity import Identity
from pipeline.models.networks.logistic import logistic_regression
from pipeline.models.networks.torchvision_zoo import TORCHVISION_NAMES, TorchvisionSegmenter
from pipeline.models.networks.unet import UNet

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "identity": Identity,
    "logistic_regression": logistic_regression,
    **{name: partial(TorchvisionSegmenter, name) for name in TORCHVISION_NAMES},
}


def build_network(architecture: str, bands: int, classes: int, **arguments: Any) -> nn.Module:
    """The network of that name, with fresh weights, in eval mode.

    Raises Refused for a name that is not on the list, or arguments the architecture does not have.
    """
    if architecture not in ARCHITECTURES:
        raise Refused(f"no architecture {architecture!r}; there are {', '.join(sorted(ARCHITECTURES))}")
    try:
        return ARCHITECTURES[architecture](bands=bands, classes=classes, **arguments).eval()
    except (TypeError, ValueError) as error:
        raise Refused(f"architecture {architecture} does not take these arguments: {error}") from None
