"""A network trained a little on the demo's scene, and that scene at any size: what benchmarks need for realistic logits.

    python tests/benchmarks/trained.py [--architecture fcn_resnet50] [--side 2048]

Both are made once and kept under `.bench/`, which git ignores; the bundle takes some minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from torch import nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline.geometry.windows import Span, Window
from pipeline.imagery import storage
from pipeline.models.bundle import save_bundle
from pipeline.models.networks import build_network
from pipeline.models.receptive import find_reach
from pipeline.training.augmentation import random_batches
from pipeline.training.classes import IGNORE, read_classes
from pipeline.training.datasets import LabelledScene, measure_bands, open_labelled
from pipeline.training.evaluation import context_px, evaluate
from pipeline.training.fit import auto_halo

PROJECT = Path(__file__).parents[2]
CACHE = PROJECT / ".bench"
ZION = PROJECT / "jobs" / "demo" / "zion"
ARGUMENTS: dict[str, dict[str, Any]] = {"unet": {"width": 64, "depth": 4}}
TEST = Span(936, 1128)  # columns held out, as for the demo's own model
STEPS, BATCH, WINDOW, LEARNING_RATE = 480, 8, 128, 1e-3
SAMPLE = Window(200, 200, 512, 512)  # of the training block, for the self-test


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
    if (folder / "model.json").exists():
        return folder
    began, labelled, arguments = time.monotonic(), _labelled(), ARGUMENTS.get(architecture, {})
    classes = [item.entry for item in labelled.classes]
    torch.manual_seed(0)
    network = build_network(architecture, len(labelled.bands), len(classes), **arguments)
    reach = find_reach(network, len(labelled.bands))
    context = context_px(reach)
    block = labelled.read(Span(0, TEST.start - context))
    held_out = labelled.read(TEST, context=context, stride=reach.stride)
    bands = measure_bands(block, labelled.bands)
    image_CHW = block.normalised(bands)
    _train(network, image_CHW, block.labels_HW)
    with torch.autocast("cpu", torch.bfloat16):
        scores = evaluate(network, held_out.normalised(bands), held_out.labels_HW, reach, len(classes))
    print(
        f"{architecture}: accuracy {scores.accuracy:.3f}, mean IoU {scores.mean_iou:.3f} on columns {TEST.start} to {TEST.stop}", flush=True
    )
    halo, tried = auto_halo(network, image_CHW, reach)
    save_bundle(
        folder, network, architecture=architecture, arguments=arguments, bands=bands, classes=classes, halo=halo,
        sample_CHW=torch.from_numpy(block.physical_CHW[:, *SAMPLE.slices()]), resolution_m=30.0,
        metrics={"test": scores.to_json([entry.name for entry in classes]), "changed_share_at_halo": tried},
        provenance={"steps": STEPS, "batch": BATCH, "window": WINDOW, "seconds": round(time.monotonic() - began)},
    )  # fmt: skip
    return folder


def _train(network: nn.Module, image_CHW: torch.Tensor, labels_HW: np.ndarray) -> None:
    """Train the network in place, in bf16 autocast."""
    network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=STEPS)
    batches = random_batches(image_CHW, labels_HW, window=WINDOW, batch=BATCH, seed=0, turn=False)
    began = time.monotonic()
    for step in range(1, STEPS + 1):
        batch_BCHW, labels_BHW = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            logits_BKHW = network(batch_BCHW.contiguous(memory_format=torch.channels_last))
        loss = cross_entropy(logits_BKHW.float(), labels_BHW, ignore_index=IGNORE)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 20 == 0:
            print(f"step {step} of {STEPS}, loss {loss.item():.3f}, {time.monotonic() - began:.0f} s", flush=True)
    network.eval()


def demo_scene(side: int) -> Path:
    """The demo's bands in one GeoTIFF of `side` px square, mirrored at its edges as often as it takes, with no pixel missing."""
    target = CACHE / "scenes" / f"zion-{side}.tif"
    if target.exists():
        return target
    labelled = _labelled()
    files, grid = labelled.scene.bands[:-1], labelled.scene.grid
    block = labelled.read(Span(0, grid.width))
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
    return open_labelled(str(ZION / "item.json"), str(ZION / "nlcd.tif"), read_classes(ZION / "classes.json"))


if __name__ == "__main__":
    main()
