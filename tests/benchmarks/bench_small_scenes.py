"""Does one run over many small scenes cost little more than their pixels? 500 scenes against one scene of as many pixels.

    python tests/benchmarks/bench_small_scenes.py [--scenes 500] [--size 224] [--width 16]

Prints the wall time of each run from the job's own record, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline.imagery.bands import Band
from pipeline.models.bundle import ClassEntry, save_bundle
from pipeline.models.networks import build_network
from tests.benchmarks.machine import describe_machine
from tests.processes import job_command, run
from tests.toys import COLOURS, smooth_noise, wide_logits, write_scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--size", type=int, default=224, help="px a side of a small scene")
    parser.add_argument("--width", type=int, default=16, help="channels of the U-Net's first level")
    options = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        arguments = {"width": options.width, "depth": 4}
        save_bundle(
            folder / "bundle", wide_logits(build_network("unet", 3, 5, **arguments), 3, 5), architecture="unet", arguments=arguments,
            bands=[Band(f"band_{number}", mean=128.0, std=50.0) for number in (1, 2, 3)],
            classes=[ClassEntry(number, f"class {number}", COLOURS[number]) for number in range(5)],
            sample_CHW=torch.from_numpy(smooth_noise(3, (3, 128, 128))).float(), halo=32,
        )  # fmt: skip
        values_CHW = smooth_noise(1, (3, options.size, options.size))
        for number in range(options.scenes):
            write_scene(folder / "small" / f"scene-{number:04d}.tif", values_CHW)
        side = round(options.size * math.sqrt(options.scenes))
        write_scene(folder / "large" / "scene.tif", smooth_noise(2, (3, side, side)), tiled=True)
        megapixels = {"small": options.scenes * options.size**2 / 1e6, "large": side**2 / 1e6}
        seconds = {}
        for kind in ("large", "small"):
            done = run(job_command("segment_region", folder / kind, "--model", folder / "bundle", "--output", folder / f"out-{kind}"))
            assert done.returncode == 0, done.stderr
            record = json.loads(next((folder / f"out-{kind}" / "runs").glob("*.json")).read_text())
            work = sum(scene["worker_seconds"] for scene in record["scenes"])
            redundancy = record["scenes"][0]["plan"]["redundancy"]
            seconds[kind] = record["seconds"]
            print(
                f"{kind:6s} {len(record['scenes']):4d} scene(s) {megapixels[kind]:7.2f} MPix  {record['seconds']:7.1f} s wall,"
                f" {work:7.1f} s of workers in shards, redundant compute {redundancy:.2f}"
            )
        print(f"small / large: {seconds['small'] / seconds['large']:.2f} of the wall time, Ray's start included in both")


if __name__ == "__main__":
    main()
