"""What runs on the device for each batch, as one graph: raw values are normalised and go through the network."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.float32}  # int8 is cut by OpenVINO
PRECISIONS = tuple(DTYPES)
RAW_DTYPES = ("uint8", "int16", "uint16")  # go to the device as they are; all else as float32


def as_raw(values: np.ndarray) -> torch.Tensor:
    """A file's values as the program takes them: in their own dtype where that has at most 16 bits."""
    return torch.from_numpy(values if values.dtype.name in RAW_DTYPES else values.astype(np.float32, copy=False))


class Coarse(nn.Module):
    """A network without its last upsampling, where it has one: its logits may be smaller than its input."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, batch_BCHW: torch.Tensor) -> torch.Tensor:
        return getattr(self.network, "coarse", self.network)(batch_BCHW)


class Program(nn.Module):
    """From raw values to logits, channels-last.

    Takes raw_BCHW, valid_BCHW (uint8, 1 where a value is valid; where it is not, the band's mean stands), and a factor
    and a shift for each band, 1 x C x 1 x 1, so that one compiled program serves every scene.
    """

    def __init__(self, network: nn.Module, precision: str):
        super().__init__()
        self.network = in_precision(Coarse(network), precision)
        self.dtype = DTYPES[precision]

    def forward(
        self, raw_BCHW: torch.Tensor, valid_BCHW: torch.Tensor, factor_1C11: torch.Tensor, shift_1C11: torch.Tensor
    ) -> torch.Tensor:
        batch_BCHW = (raw_BCHW.float() * factor_1C11 + shift_1C11) * valid_BCHW
        return self.network(batch_BCHW.to(self.dtype).contiguous(memory_format=torch.channels_last))


def in_precision(network: nn.Module, precision: str) -> nn.Module:
    """A copy of the network in that precision, channels-last; below fp32 with BatchNorm folded in first, in fp32.

    Folding after the cast, or not at all, doubles the classes that differ from fp32.
    """
    network = copy.deepcopy(network)
    if precision != "fp32":
        network = _folded(network).to(DTYPES[precision])
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _folded(network: nn.Module) -> nn.Module:
    try:
        return fuse(network, inplace=True)
    except torch.fx.proxy.TraceError:  # its control flow depends on data: it runs unfolded
        return network
