"""A network trained a little on the demo's scene, and that scene at any size: what benchmarks need for realistic logits.

    python tests/benchmarks/trained.py [--architecture fcn_resnet50] [--side 2048]

Both are made once and kept under `.bench/`, which git ignores; the bundle takes some minutes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline.imagery import storage
from pipeline.models.engine import choose_device
from pipeline.training.datasets import LabelledScene, open_labelled
from pipeline.training.fit import fit
from pipeline.training.loop import Recipe
from pipeline.training.prepare import Request, prepare

PROJECT = Path(__file__).parents[2]
CACHE = PROJECT / ".bench"
ZION = PROJECT / "jobs" / "demo" / "zion"
ARGUMENTS: dict[str, dict[str, Any]] = {"unet": {"width": 64, "depth": 4}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--architecture", default="fcn_resnet50")
    parser.add_argument("--side", type=int, default=2048, help="px")
    options = parser.parse_args()
    print(demo_scene(options.side))
    print(trained_bundle(options.architecture))


def trained_bundle(architecture: str = "fcn_resnet50") -> Path:
    """A bundle of that network, trained on the demo's scene west of its test columns; its metrics say how well."""
    folder = CACHE / "bundles" / architecture
    if not (folder / "model.json").exists():
        recipe = Recipe(epochs=60, window=(128, 128), learning_rate=1e-3, precision="bf16")
        asked = Request(
            architecture, [str(ZION / "item.json")], folder, recipe, ARGUMENTS.get(architecture, {}), labels=str(ZION / "nlcd.tif"),
            classes=str(ZION / "classes.json"), validation=["768:888"], test=["936:1128"], augment="none",
        )  # fmt: skip
        fit(prepare(asked), torch.device(choose_device()))
    return folder


def demo_scene(side: int) -> Path:
    """The demo's bands in one GeoTIFF of `side` px square, mirrored at its edges as often as it takes, with no pixel missing."""
    target = CACHE / "scenes" / f"zion-{side}.tif"
    if target.exists():
        return target
    labelled = _labelled()
    files, grid = labelled.scene.bands, labelled.scene.grid
    block = labelled.read(grid.window)
    margin = 0  # elevation, on its own grid, is missing along the edges
    while not block.valid_CHW[:, margin : grid.height - margin, margin : grid.width - margin].all():
        margin += 1
    scale, offset = (np.array([getattr(file, name) for file in files])[:, None, None] for name in ("scale", "offset"))
    raw_CHW = np.rint((block.physical_CHW - offset) / scale).astype(np.uint16)
    raw_CHW = raw_CHW[:, margin : grid.height - margin, margin : grid.width - margin]
    height, width = raw_CHW.shape[1:]
    raw_CHW = np.pad(raw_CHW, ((0, 0), (0, max(0, side - height)), (0, max(0, side - width))), mode="symmetric")
    profile = {
        "driver": "GTiff", "count": len(files), "height": side, "width": side, "dtype": "uint16", "crs": grid.rasterio_crs,
        "transform": grid.affine, "tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate",
    }  # fmt: skip
    finished = storage.temporary(target.parent, target.name)
    with rasterio.open(finished, "w", **profile) as dataset:
        dataset.write(raw_CHW[:, :side, :side])
        dataset.scales, dataset.offsets = [file.scale for file in files], [file.offset for file in files]
        dataset.descriptions = [file.name for file in files]
    storage.publish(finished, target)
    return target


def _labelled() -> LabelledScene:
    return open_labelled(str(ZION / "item.json"), labels=str(ZION / "nlcd.tif"), classes=str(ZION / "classes.json"))[0]


if __name__ == "__main__":
    main()
