"""How many pixels differ between a tiled mask and a whole-image forward pass, for each network and setting?

    python tests/benchmarks/bench_exact.py [--size 1000] [--network LABEL ...]

fp32. `ambiguous` are pixels whose two highest logits in the reference are within 1e-3 of each other.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import rasterio
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline.imagery.bands import Band
from pipeline.inference.plan import Settings
from pipeline.inference.segment import segment_scene
from pipeline.models.bundle import ClassEntry, save_bundle
from pipeline.models.networks import build_network
from tests.benchmarks.machine import describe_machine
from tests.toys import COLOURS, smooth_noise, whole_numbers, wide_logits, write_scene

NETWORKS = {
    "identity": ("identity", {}),
    "unet width 8 depth 3": ("unet", {"width": 8, "depth": 3}),
    "unet width 16 depth 4": ("unet", {"width": 16, "depth": 4}),
    "fcn_resnet50": ("fcn_resnet50", {}),
    "segnet width 8": ("segnet", {"width": 8}),
    "fcn8s_vgg16 width 8": ("fcn8s_vgg16", {"width": 8, "hidden": 64}),
    "fc_densenet56 growth 4": ("fc_densenet56", {"first": 8, "growth": 4}),
    "unet_resnet18": ("unet_resnet18", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", action="append", choices=NETWORKS, help="only this one (may be repeated)")
    parser.add_argument("--size", type=int, default=1000, help="px a side of the scene, less 3 rows and 11 columns")
    options = parser.parse_args()
    print(describe_machine())
    values_CHW = smooth_noise(1, (3, options.size - 3, options.size - 11))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scene = write_scene(folder / "scene.tif", values_CHW)
        for label, (architecture, arguments) in NETWORKS.items():
            if options.network and label not in options.network:
                continue
            for weights in ("random", "whole numbers") if architecture != "identity" else ("none",):
                compare(label, architecture, arguments, weights, scene, values_CHW, folder / f"{label}-{weights}")


def compare(
    label: str, architecture: str, arguments: dict[str, int], weights: str, scene: Path, values_CHW: np.ndarray, folder: Path
) -> None:
    torch.manual_seed(0)
    network = build_network(architecture, 3, 5, **arguments)
    if weights == "random":
        network = wide_logits(network, 3, 5)
    elif weights == "whole numbers":
        network = whole_numbers(network, 1) if architecture != "fcn_resnet50" else whole_numbers(network, 2, signs=(1.0, -1.0))
    mean, std = (128.0, 50.0) if weights == "random" else (0.0, 61.0 if weights == "none" else 1.0)
    bundle = save_bundle(
        folder, network, architecture=architecture, arguments=arguments, sample_CHW=torch.from_numpy(values_CHW[:, :128, :128]).float(),
        bands=[Band(f"band_{number}", mean=mean, std=std) for number in (1, 2, 3)],
        classes=[ClassEntry(number, f"class {number}", COLOURS[number]) for number in range(5)],
    )  # fmt: skip
    stride, halo = bundle.reach.stride, bundle.reach.exact_halo
    assert halo is not None
    height, width = values_CHW.shape[1:]
    padded = torch.zeros(1, 3, -(-height // stride) * stride, -(-width // stride) * stride)
    padded[0, :, :height, :width] = (torch.from_numpy(values_CHW).float() - mean) / std
    with torch.inference_mode():
        logits_KHW = network(padded)[0, :, :height, :width]
    highest = logits_KHW.topk(2, dim=0).values
    ambiguous_HW = (highest[0] - highest[1] < 1e-3).numpy()
    expected_HW = logits_KHW.argmax(0).numpy()
    for tile, shard in ((2 * halo + 256, 512), (2 * halo + 64, 512), ("auto", "auto")):
        if architecture == "fcn_resnet50" and tile == 2 * halo + 64:
            continue  # 32 times redundant
        settings = Settings(precision="fp32", tile=tile, halo="exact", shard=shard)
        segment_scene(scene, folder, folder / "mask.tif", settings=settings)
        with rasterio.open(folder / "mask.tif") as dataset:
            differing_HW = dataset.read(1) != expected_HW
        print(
            f"{label:22s} weights {weights:13s} halo {halo:3d}  tile {tile!s:5s} shard {shard!s:5s}"
            f"  differing {differing_HW.sum():3d} of {height * width}, not ambiguous {(differing_HW & ~ambiguous_HW).sum()}"
            f"  ambiguous {ambiguous_HW.sum()}",
            flush=True,
        )


if __name__ == "__main__":
    main()
