"""A network in the number format that its device computes fastest in."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

PRECISIONS = ("fp32", "bf16")


def in_precision(network: nn.Module, precision: str) -> nn.Module:
    """A copy of the network in that precision, channels-last; below fp32 with BatchNorm folded in first, in fp32.

    Folding after the cast, or not at all, doubles the classes that differ from fp32.
    """
    network = copy.deepcopy(network)
    if precision != "fp32":
        network = _folded(network).bfloat16()
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _folded(network: nn.Module) -> nn.Module:
    try:
        return fuse(network)
    except torch.fx.proxy.TraceError:  # its control flow depends on data: it runs unfolded
        return network
