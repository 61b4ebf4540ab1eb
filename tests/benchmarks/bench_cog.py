"""Is a COG joined from parts faster than made by GDAL's COG driver? One mask, both ways, from the time all parts are there.

    python tests/benchmarks/bench_cog.py [--size 16384] [--shard 4096]

Prints wall time, CPU time and MPix/s of writing the parts (overviews and compression included), of joining them, and of
GDAL's driver on one tiled GeoTIFF of the same mask, and the ratio of the last two.
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
from pipeline.inference.cog import Description, write_cog
from pipeline.models.layers import LAYERS
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
        began = now()
        for shard, path in parts:
            write_part(path, shard, plan, mask_HW[None, *shard.slices()])
        report("parts written", began, region)
        began = now()
        about = Description({}, ["class"])
        write_cog(parts, [0], folder / "joined.tif", kind=LAYERS["mask"], region=region, grid=plan.scene.grid, about=about)
        joined_s = report("parts joined", began, region)
        source = write_scene(
            folder / "source.tif", mask_HW[None], nodata=255, tiled=True, blockxsize=512, blockysize=512, compress="zstd", zstd_level=1
        )
        began = now()
        rasterio.shutil.copy(
            source, folder / "driver.tif", driver="COG", blocksize=512, compress="DEFLATE", overview_resampling="MODE",
            overviews="IGNORE_EXISTING", num_threads=1,
        )  # fmt: skip
        driver_s = report("GDAL's COG driver", began, region)
        sizes = [(folder / f"{made}.tif").stat().st_size / 2**20 for made in ("joined", "driver")]
        print(f"joined takes {driver_s / joined_s:.1f} times less CPU; {sizes[0]:.1f} MiB against {sizes[1]:.1f} MiB")


def patches(size: int, classes: int = 5, radius: float = 8) -> np.ndarray:
    """Rounded patches of classes, about `radius` px; the right edge goes on at the left, the lower at the upper one."""
    random = np.random.default_rng(0)
    frequencies = np.fft.rfftfreq(size)[None] ** 2 + np.fft.fftfreq(size)[:, None] ** 2
    smoothing = np.exp(-2 * (np.pi * radius) ** 2 * frequencies)
    fields = [np.fft.irfft2(np.fft.rfft2(random.normal(size=(size, size))) * smoothing, (size, size)) for _ in range(classes)]
    return np.argmax(fields, axis=0).astype(np.uint8)


def now() -> tuple[float, float]:
    """Wall and CPU seconds, of all threads."""
    return time.perf_counter(), time.process_time()


def report(what: str, began: tuple[float, float], region: Window) -> float:
    """Print a step's times and return its CPU seconds, which other work on the machine does not change."""
    wall_s, cpu_s = (stop - start for start, stop in zip(began, now(), strict=True))
    print(f"{what:18} {wall_s:7.2f} s, {cpu_s:6.2f} s of CPU: {region.pixels / cpu_s / 1e6:6.0f} MPix/s of one core")
    return cpu_s


if __name__ == "__main__":
    main()
