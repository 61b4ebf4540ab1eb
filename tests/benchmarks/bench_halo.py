"""How much context does a tile need? Pixels whose class differs from that of the exact halo, against the halo.

    python tests/benchmarks/bench_halo.py [--architectures fcn_resnet50 demo] [--side 1024] [--core 256]

fp32. Tiles with a core of `--core` px, cut as a plan cuts them, against one pass over the whole scene; beside it the compute
that a halo costs, at this core and at one of 2048 px. The last line of each network shifts the tiles off its stride, by half
of it, at the exact halo.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import rasterio
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline.geometry.windows import Span, spans
from pipeline.models.bundle import Bundle, load_bundle, normalise
from tests.benchmarks.machine import describe_machine
from tests.benchmarks.trained import demo_scene, trained_bundle

DEMO = Path(__file__).parents[2] / "jobs" / "demo" / "model"
HALOS = (0, 8, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--architectures", nargs="+", default=["demo", "fcn_resnet50"])
    parser.add_argument("--side", type=int, default=1024, help="px a side of the scene")
    parser.add_argument("--core", type=int, default=256, help="px")
    options = parser.parse_args()
    print(describe_machine())
    for architecture in options.architectures:
        bundle = load_bundle(DEMO if architecture == "demo" else trained_bundle(architecture))
        show(bundle, demo_scene(options.side), options.core)


def show(bundle: Bundle, scene: Path, core: int) -> None:
    """Print the table of one network."""
    stride, exact = bundle.reach.stride, bundle.reach.exact_halo
    assert exact is not None, "a network that is never exact has no exact halo"
    network = bundle.network()
    with rasterio.open(scene) as dataset:
        scale, offset = np.array(dataset.scales)[:, None, None], np.array(dataset.offsets)[:, None, None]
        image_CHW = normalise(torch.from_numpy((dataset.read() * scale + offset).astype(np.float32))[None], bundle.bands)[0]
    whole_HW = classify(network, image_CHW)
    print(f"{bundle.architecture}: stride {stride}, exact halo {exact}, auto halo {bundle.halo}; core {core} px, {whole_HW.size} px")
    for halo in sorted({halo for halo in HALOS if halo < exact and halo % stride == 0} | {exact}):
        differing = float((tiled(network, image_CHW, core, halo, 0) != whole_HW).mean())
        costs = [(1 + 2 * halo / side) ** 2 for side in (core, 2048)]
        print(f"  halo {halo:4d}  differing {differing:9.2e}  compute {costs[0]:6.2f} x, at 2048 px {costs[1]:5.2f} x", flush=True)
    if stride > 1:
        shifted = float((tiled(network, image_CHW, core, exact + stride, stride) != whole_HW).mean())
        print(f"  halo {exact:4d}  differing {shifted:9.2e}  with tiles {stride // 2} px off the stride")


@torch.inference_mode()
def classify(network: torch.nn.Module, image_CHW: torch.Tensor) -> np.ndarray:
    """Class ids of one pass."""
    return network(image_CHW[None])[0].argmax(0).to(torch.uint8).numpy()


def tiled(network: torch.nn.Module, image_CHW: torch.Tensor, core: int, halo: int, off: int) -> np.ndarray:
    """Class ids tile by tile; with `off`, the stride, tiles away from the edges are moved by half of it, and smaller by it."""
    height, width = image_CHW.shape[1:]
    ids_HW = np.empty((height, width), np.uint8)
    for read_rows, core_rows in spans(Span(0, height), height, core + 2 * halo, halo):
        for read_cols, core_cols in spans(Span(0, width), width, core + 2 * halo, halo):
            top, bottom = _moved(read_rows, height, off)
            left, right = _moved(read_cols, width, off)
            tile_HW = classify(network, image_CHW[:, top:bottom, left:right])
            ids_HW[slice(*core_rows), slice(*core_cols)] = tile_HW[
                core_rows.start - top : core_rows.stop - top, core_cols.start - left : core_cols.stop - left
            ]
    return ids_HW


def _moved(read: Span, length: int, off: int) -> tuple[int, int]:
    inside = read.start > 0 and read.stop < length
    return (read.start + off // 2, read.stop - off // 2) if inside else (read.start, read.stop)


if __name__ == "__main__":
    main()
