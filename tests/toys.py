"""Toy scenes and networks that the tests of several rooms share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.transform import Affine
from torch import nn

from pipeline.models.bundle import Target

PROJECT = Path(__file__).parents[1]
SHARED = PROJECT.parent / "shared"
HEIGHT = Target("canopy height", "m", mean=14.3, std=7.1, low=1.5, high=30.25)
COLOURS = ["#1b7837", "#d9b365", "#f5f5f5", "#c51b7d", "#2166ac", "#fdae61", "#762a83"]
UTM = {"crs": "EPSG:32612", "transform": Affine(30.0, 0.0, 301905.0, 0.0, -30.0, 4154085.0)}


def write_scene(path: Path, values_CHW: np.ndarray, **profile: object) -> Path:
    """A GeoTIFF of the array, in UTM at 30 m unless said otherwise; `descriptions` names its bands."""
    names = profile.pop("descriptions", None)
    settings = {"driver": "GTiff", **UTM, **profile}
    count, height, width = values_CHW.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", count=count, height=height, width=width, dtype=values_CHW.dtype, **settings) as dataset:
        dataset.write(values_CHW)
        for number, name in enumerate(names or [], 1):
            dataset.set_band_description(number, name)
    return path


def smooth_noise(seed: int, shape_CHW: tuple[int, int, int], high: int = 255) -> np.ndarray:
    """Textured uint8 or uint16 values at several scales, so that a network's classes vary over the scene."""
    random = np.random.default_rng(seed)
    count, height, width = shape_CHW
    total = np.zeros(shape_CHW)
    for step in (1, 4, 16, 64):
        coarse = random.normal(size=(count, -(-height // step) + 1, -(-width // step) + 1))
        total += np.kron(coarse, np.ones((1, step, step)))[:, :height, :width]
    scaled = (total - total.min()) / (total.max() - total.min()) * high
    return scaled.astype(np.uint8 if high < 256 else np.uint16)


def wide_logits(network: nn.Module, bands: int, seed: int, wide: float = 10) -> nn.Module:
    """Random weights whose classes vary from pixel to pixel with margins far above fp32 rounding; `wide` is the spread of a logit."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    head = [module for module in network.modules() if isinstance(module, nn.Conv2d)][-1]
    values_CHW = torch.from_numpy(smooth_noise(seed, (bands, 256, 256)).astype(np.float32))
    with torch.inference_mode():
        logits_KHW = network((values_CHW - 128)[None] / 50)[0]
        spread = logits_KHW.std(dim=(1, 2)).clamp(min=1e-6)
    with torch.no_grad():
        head.weight *= (wide / spread).reshape(-1, 1, 1, 1)
        head.bias.copy_(-logits_KHW.mean(dim=(1, 2)) * wide / spread + head.bias * wide / spread)
    return network


def whole_numbers(network: nn.Module, seed: int, signs: Sequence[float] = (1.0, -1.0, 1.0)) -> nn.Module:
    """Weights for which fp32 is exact: whole numbers stay whole numbers, so every order of summation gives the same logits.

    Each filter adds or subtracts a few of its taps, `signs`; BatchNorm does nothing; the classes' biases differ by eighths, so that
    no two logits of a pixel are equal.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(1 - module.eps)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            out_first = module.weight if isinstance(module, nn.Conv2d) else module.weight.transpose(0, 1)
            with torch.no_grad():
                out_first.zero_()
                for filter_taps in out_first:
                    chosen = torch.randperm(filter_taps.numel(), generator=generator)[: len(signs)]
                    filter_taps[torch.unravel_index(chosen, filter_taps.shape)] = torch.tensor(signs)
                if module.bias is not None:
                    module.bias.zero_()
    head = [module for module in network.modules() if isinstance(module, nn.Conv2d)][-1]
    with torch.no_grad():
        head.bias.copy_(torch.arange(len(head.bias)) / 8)
    return network
