"""Polygons of a gigapixel mask, a real land-cover raster repeated: time and peak memory, beside GDAL's polygonize on all of it at once.

    python tests/benchmarks/bench_polygons.py [--megapixels 1074] [--width PX] [--zoom 4] [--min-area 5000] [--simplify 30]

The raster's 30 m pixels are drawn `--zoom` times as large, as a mask of 10 m or finer has them. Each step runs in a process of its own
and prints its wall time, CPU time, peak memory and polygons. GDAL is rasterio's `features.shapes` on the whole mask in memory,
4-connected, its polygons counted and dropped; ours are written with their areas, perimeters and bounding boxes. Ratios are of CPU
time, which other work on the machine does not change.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import rasterio
import rasterio.features
import shapely
from rasterio.transform import Affine
from rasterio.windows import Window

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline.imagery.catalogue import find_sources
from pipeline.models.bundle import NODATA, Bundle, load_bundle
from pipeline.results.polygons import PolygonOptions, write_polygons
from tests.benchmarks.machine import describe_machine
from tests.results.scenes import class_bundle, plan_of

ROOT = Path(__file__).parents[2]
STRIP = 512
CACHE_MIB = "64"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megapixels", type=int, default=1074)
    parser.add_argument("--width", type=int, help="px of a mask that is as high as it takes (default: a square)")
    parser.add_argument("--zoom", type=int, default=4, help="px a side of one of the raster's")
    parser.add_argument("--min-area", type=float, default=5000.0, help="m2 of the step that sieves; 0 leaves it out")
    parser.add_argument("--simplify", type=float, default=0.0, help="m of the step that simplifies; 0 leaves it out")
    parser.add_argument("--no-reference", action="store_true", help="leave GDAL out")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--scratch", type=Path, help="a folder with a byte a pixel to spare (default: TMPDIR)")
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(measured(*options.step)))
        return
    print(describe_machine())
    width = options.width or round(math.sqrt(options.megapixels * 1e6))
    height = round(options.megapixels * 1e6 / width)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        class_bundle(folder / "bundle", [f"class {number}" for number in range(9)])
        write_mask(options.data / "zion-landsat8" / "nlcd.tif", folder / "mask.tif", (height, width), options.zoom)
        steps = {} if options.no_reference else {"GDAL, whole": ("gdal", "0")}
        steps["strips"] = ("ours", "0,0")
        if options.min_area:
            steps[f"strips, --min-area {options.min_area:g}"] = ("ours", f"{options.min_area},0")
        if options.simplify:
            steps[f"strips, --simplify {options.simplify:g}"] = ("ours", f"0,{options.simplify}")
        reference_s = None
        for title, step in steps.items():
            command = [sys.executable, __file__, "--step", *step, str(folder)]
            environment = {**os.environ, "GDAL_CACHEMAX": CACHE_MIB}  # as an actor has it, else GDAL keeps all that it decodes
            found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
            reference_s = reference_s or found["cpu_s"]
            times = f"{found['wall_s']:7.1f} s, {found['cpu_s']:7.1f} s of CPU ({found['cpu_s'] / reference_s:.2f} x)"
            memory = f"{found['peak_mib']:6.0f} MiB ({found['before_mib']:.0f} before it began)"
            print(f"{title:26} {times}, {memory}, {found['polygons']} polygons, {found['vertices']} points", flush=True)


def write_mask(source: Path, target: Path, shape: tuple[int, int], zoom: int) -> None:
    """The raster, mirrored to the right and downward as often as it takes, as a tiled mask of that height and width in px."""
    high, wide = shape
    with rasterio.open(source) as dataset:
        tile_HW, crs, transform = dataset.read(1), dataset.crs, dataset.transform
    tile_HW = tile_HW.repeat(zoom, axis=0).repeat(zoom, axis=1)
    transform = transform * Affine.scale(1 / zoom)
    tile_HW = np.block([[tile_HW, tile_HW[:, ::-1]], [tile_HW[::-1], tile_HW[::-1, ::-1]]])
    rows_HW = np.tile(tile_HW, (1, -(-wide // tile_HW.shape[1])))[:, :wide]
    with rasterio.open(
        target, "w", driver="GTiff", dtype="uint8", nodata=NODATA, count=1, height=high, width=wide, crs=crs, transform=transform,
        tiled=True, blockxsize=STRIP, blockysize=STRIP, compress="deflate",
    ) as dataset:  # fmt: skip
        for row in range(0, high, STRIP):
            height = min(STRIP, high - row)
            dataset.write(rows_HW[np.arange(row, row + height) % len(rows_HW)], 1, window=Window(0, row, wide, height))


def measured(step: str, options: str, folder: str) -> dict[str, float]:
    """Run a step, and say what it took of this process."""
    path, bundle = Path(folder), load_bundle(f"{folder}/bundle")
    Path("/proc/self/clear_refs").write_text("5")  # imports have a higher peak than what stays of them
    before_mib = memory_mib("VmRSS")
    began = time.perf_counter(), time.process_time()
    counted = gdal(path) if step == "gdal" else ours(path, bundle, PolygonOptions(*map(float, options.split(","))))
    found = {
        "wall_s": time.perf_counter() - began[0], "cpu_s": time.process_time() - began[1],
        "before_mib": before_mib, "peak_mib": memory_mib("VmHWM"),
    }  # fmt: skip
    polygons, vertices = counted or count(path)
    return found | {"polygons": polygons, "vertices": vertices}


def memory_mib(what: str) -> float:
    """VmRSS, what this process has resident, or VmHWM, the most it had since that was reset."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1024


def gdal(folder: Path) -> tuple[int, int]:
    polygons = vertices = 0
    with rasterio.open(folder / "mask.tif") as dataset:
        mask_HW = dataset.read(1)
        for shape, _ in rasterio.features.shapes(mask_HW, mask=mask_HW != NODATA, transform=dataset.transform):
            polygons += 1
            vertices += sum(len(ring) for ring in shape["coordinates"])
    return polygons, vertices


def ours(folder: Path, bundle: Bundle, options: PolygonOptions) -> None:
    plan = plan_of(find_sources([str(folder / "mask.tif")])[0], bundle)
    rows = [{"area_m2": plan.region.pixels * 30.0**2}]
    write_polygons(folder / "polygons.parquet", plan, bundle, folder, "0", rows, options)


def count(folder: Path) -> tuple[int, int]:
    """The polygons in the file that was written, and their points; the last of each ring is its first again."""
    file = pq.ParquetFile(folder / "polygons.parquet", pre_buffer=False)
    points = 0
    for group in file.iter_batches(columns=["geometry"], use_threads=False):
        points += int(shapely.get_num_coordinates(shapely.from_wkb(group["geometry"].to_numpy(zero_copy_only=False))).sum())
    return file.metadata.num_rows, points


if __name__ == "__main__":
    main()
