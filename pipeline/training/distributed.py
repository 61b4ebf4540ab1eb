"""Several processes that train one network: sums over all of them, and BatchNorm over the whole batch.

Without torch.distributed's process group there is one process, and everything here does nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed.nn.functional as differentiable
from torch import distributed, nn


def world() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if world() > 1 else 0


def summed(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of the processes' tensors, in each of them."""
    if world() > 1:
        tensor = tensor.clone()
        distributed.all_reduce(tensor)
    return tensor


def gathered(value: Any) -> list[Any]:
    """Every process's value, in order of rank."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    distributed.all_gather_object(values, value)
    return values


class WholeBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that normalises by the whole batch of all processes; torch's own SyncBatchNorm does so on GPUs only."""

    def forward(self, batch_BCHW: torch.Tensor) -> torch.Tensor:
        if not self.training or world() == 1 or self.running_mean is None or self.running_var is None:
            return super().forward(batch_BCHW)
        wide = batch_BCHW.float()
        count = wide.new_full((1,), wide.numel() / wide.shape[1])
        sums = differentiable.all_reduce(torch.cat([wide.sum(dim=(0, 2, 3)), wide.square().sum(dim=(0, 2, 3)), count]))
        count, sums = sums[-1], sums[:-1]
        mean, square = (sums / count).chunk(2)
        var = (square - mean.square()).clamp(min=0)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr, operator]
            momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)  # type: ignore[arg-type]
            self.running_mean.lerp_(mean.detach(), momentum)
            self.running_var.lerp_(var.detach() * count / (count - 1), momentum)
        factor = (var + self.eps).rsqrt() * self.weight
        shift = self.bias - mean * factor
        return (wide * factor[:, None, None] + shift[:, None, None]).to(batch_BCHW.dtype)


def normalise_over_all(network: nn.Module) -> nn.Module:
    """In place where there are several processes: BatchNorm over the batch of all of them. Returns the network."""
    if world() == 1:
        return network
    if next(network.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = WholeBatchNorm2d
    return network
