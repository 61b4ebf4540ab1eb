"""What the peers' scripts share: their command line, the network that bench_peers exported, and the line they print.

These scripts run in the peers' own environment, without Tilewright.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import rasterio
import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.models.segmentation import fcn_resnet50


def parser(what: str | None, tile: int) -> argparse.ArgumentParser:
    """scene.tif, the folder of the exported network, output.tif, and the peer's own `tile` in px."""
    words = argparse.ArgumentParser(description=what)
    words.add_argument("scene", type=Path)
    words.add_argument("network", type=Path, help="a folder with weights.safetensors and network.json")
    words.add_argument("output", type=Path)
    words.add_argument("--tile", type=int, default=tile, help="px (default %(default)s)")
    return words


class Network(nn.Module):
    """torchvision's fcn_resnet50 in eval mode, fp32: batch_BCHW of normalised values in, logits_BKHW out."""

    def __init__(self, folder: Path):
        super().__init__()
        about = json.loads((folder / "network.json").read_text())
        bands, self.classes = about["bands"], about["classes"]
        self.fcn = fcn_resnet50(weights=None, weights_backbone=None, num_classes=self.classes)
        self.fcn.backbone.conv1 = nn.Conv2d(bands, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.fcn.load_state_dict(load_file(folder / "weights.safetensors"))
        self.mean_CHW, self.std_CHW = (np.array(about[name], np.float32)[:, None, None] for name in ("mean", "std"))
        self.eval()

    def forward(self, batch_BCHW: torch.Tensor) -> torch.Tensor:
        return self.fcn(batch_BCHW)["out"]

    def normalise(self, values_CHW: np.ndarray) -> np.ndarray:
        """(value - mean) / std of each band of the file's values, float32."""
        return (values_CHW.astype(np.float32) - self.mean_CHW) / self.std_CHW


def read_whole(scene: Path, network: Network) -> tuple[torch.Tensor, dict]:
    """The whole scene in memory, normalised, 1 x C x H x W, and its profile."""
    with rasterio.open(scene) as dataset:
        return torch.from_numpy(network.normalise(dataset.read()))[None], dataset.profile


def write_mask(path: Path, mask_HW: np.ndarray, profile: dict) -> None:
    """Write the mask as rasterio's users do: the scene's profile with one band of uint8."""
    with rasterio.open(path, "w", **{**profile, "count": 1, "dtype": "uint8"}) as dataset:
        dataset.write(mask_HW.astype(np.uint8), 1)


def clock() -> tuple[float, float]:
    """Seconds of the wall and of this process on all cores; their differences count."""
    return time.perf_counter(), time.process_time()


def report(package: str, began: tuple[float, float]) -> None:
    """Print one JSON line: seconds since `began`, of the wall and of the CPU, torch's threads, and the peer's version."""
    seconds, cpu_seconds = (now - then for now, then in zip(clock(), began, strict=True))
    peer = f"{package} {version(package)}"
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "threads": torch.get_num_threads(), "peer": peer}))
