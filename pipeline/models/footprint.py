"""How much memory a network's activations take, counted once when its bundle is made."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

PROBE = 256  # px


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive while it is entered, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


@torch.inference_mode()
def activation_bytes_per_pixel(network: nn.Module, bands: int) -> int:
    """Peak bytes that a forward pass in fp32 holds for each input pixel, logits included, from a probe of 256 px square.

    A pass in 16 bits holds half of it.
    """
    probe_BCHW = torch.zeros(1, bands, PROBE, PROBE).contiguous(memory_format=torch.channels_last)
    with _LiveBytes() as bytes_held:
        network(probe_BCHW)
    return -(-bytes_held.peak // PROBE**2)
