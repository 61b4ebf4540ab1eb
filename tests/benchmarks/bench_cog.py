"""Is a COG joined from parts faster than made by GDAL's COG driver? One mask, both ways, from the time all parts are there.

    python tests/benchmarks/bench_cog.py [--size 16384] [--shard 4096]

Prints the MPix/s of writing the parts (overviews and compression included), of joining them, and of GDAL's driver on one
tiled GeoTIFF of the same mask, and the ratio of the last two.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio.shutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline.geometry.windows import Window
from pipeline.inference.cog import write_cog
from tests.benchmarks.machine import describe_machine
from tests.inference.test_part import plan_of_parts, write_part
from tests.toys import write_scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=16384, help="px a side of the mask")
    parser.add_argument("--shard", type=int, default=4096, help="px a side of a part")
    options = parser.parse_args()
    print(describe_machine())
    region = Window(0, 0, options.size, options.size)
    plan = plan_of_parts(region, options.shard)
    mask_HW = np.tile(patches(2048), [-(-options.size // 2048)] * 2)[: options.size, : options.size]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = [(shard, folder / f"{plan.shard_name(shard)}.part") for shard in plan.shards()]
        began = time.perf_counter()
        for shard, path in parts:
            write_part(path, shard, plan, mask_HW[None, *shard.slices()])
        report("parts written", began, region)
        began = time.perf_counter()
        write_cog(parts, [0], folder / "joined.tif", region=region, grid=plan.scene.grid, tags={}, names=["class"])
        joined_s = report("parts joined", began, region)
        source = write_scene(
            folder / "source.tif", mask_HW[None], nodata=255, tiled=True, blockxsize=512, blockysize=512, compress="zstd", zstd_level=1
        )
        began = time.perf_counter()
        rasterio.shutil.copy(
            source, folder / "driver.tif", driver="COG", blocksize=512, compress="DEFLATE", overview_resampling="MODE",
            overviews="IGNORE_EXISTING", num_threads=1,
        )  # fmt: skip
        driver_s = report("GDAL's COG driver", began, region)
        sizes = [(folder / f"{made}.tif").stat().st_size / 2**20 for made in ("joined", "driver")]
        print(f"joined is {driver_s / joined_s:.1f} times as fast; {sizes[0]:.1f} MiB against {sizes[1]:.1f} MiB")


def patches(size: int, classes: int = 5, radius: float = 8) -> np.ndarray:
    """Rounded patches of classes, about `radius` px; the right edge goes on at the left, the lower at the upper one."""
    random = np.random.default_rng(0)
    frequencies = np.fft.rfftfreq(size)[None] ** 2 + np.fft.fftfreq(size)[:, None] ** 2
    smoothing = np.exp(-2 * (np.pi * radius) ** 2 * frequencies)
    fields = [np.fft.irfft2(np.fft.rfft2(random.normal(size=(size, size))) * smoothing, (size, size)) for _ in range(classes)]
    return np.argmax(fields, axis=0).astype(np.uint8)


def report(what: str, began: float, region: Window) -> float:
    seconds = time.perf_counter() - began
    print(f"{what:18} {seconds:7.2f} s {region.pixels / seconds / 1e6:8.0f} MPix/s")
    return seconds


if __name__ == "__main__":
    main()
