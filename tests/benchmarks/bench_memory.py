"""Does memory grow with the scene? The demo scene repeated to 0.05, 0.5 and 10 gigapixels, through a pass-through network.

    python tests/benchmarks/bench_memory.py [--gigapixels 0.05 0.5 10]

Prints the peak resident memory of driver and actors (VmHWM), what the plan had computed for an actor, and the wall time.
The repeated scene is a virtual raster over one file, so that 10 gigapixels need no disk.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path

import rasterio
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline.imagery.bands import Band
from pipeline.models.bundle import ClassEntry, save_bundle
from pipeline.models.networks import build_network
from tests.benchmarks.machine import describe_machine
from tests.processes import descendants, end_group, job_command, start, titled
from tests.toys import COLOURS

RED = Path(__file__).parents[2] / "jobs" / "demo" / "zion" / "landsat_b4.tif"
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gigapixels", type=float, nargs="+", default=[0.05, 0.5, 10.0])
    options = parser.parse_args()
    print(describe_machine())
    print("gigapixels    size          driver   actor (largest)   computed for an actor   wall")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_bundle(
            folder / "bundle", build_network("identity", 1, 7), architecture="identity", arguments={}, bands=[Band("red", std=4000.0)],
            classes=[ClassEntry(number, f"class {number}", COLOURS[number]) for number in range(7)], sample_CHW=torch.zeros(1, 64, 64),
        )  # fmt: skip
        for gigapixels in options.gigapixels:
            scene = repeat(RED, round(math.sqrt(gigapixels * 1e9)), folder / f"scene-{gigapixels:g}.vrt")
            began = time.monotonic()
            driver, actor, record = watch(scene, folder / "bundle", folder / f"out-{gigapixels:g}")
            with rasterio.open(scene) as dataset:
                size = f"{dataset.height} x {dataset.width}"
            computed = record["scenes"][0]["plan"]["memory_bytes"]
            print(
                f"{gigapixels:8.2f}   {size:15s} {driver / MIB:6.0f} MiB {actor / MIB:10.0f} MiB {computed / MIB:18.0f} MiB"
                f" {time.monotonic() - began:12.0f} s",
                flush=True,
            )


def repeat(file: Path, side: int, target: Path) -> Path:
    """A virtual raster of `side` px square that repeats the first band of `file`."""
    with rasterio.open(file) as dataset:
        height, width, wkt = dataset.height, dataset.width, dataset.crs.to_wkt().replace("&", "&amp;").replace("<", "&lt;")
        transform, nodata = ", ".join(map(str, dataset.transform.to_gdal())), dataset.nodata
    sources = []
    for row in range(0, side, height):
        for col in range(0, side, width):
            size = f'xSize="{min(width, side - col)}" ySize="{min(height, side - row)}"'
            sources.append(
                f'<SimpleSource><SourceFilename relativeToVRT="0" shared="1">{file}</SourceFilename><SourceBand>1</SourceBand>'
                f'<SourceProperties RasterXSize="{width}" RasterYSize="{height}" DataType="UInt16" BlockXSize="{width}" BlockYSize="3"/>'
                f'<SrcRect xOff="0" yOff="0" {size}/><DstRect xOff="{col}" yOff="{row}" {size}/></SimpleSource>'
            )
    target.write_text(
        f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}"><SRS>{wkt}</SRS><GeoTransform>{transform}</GeoTransform>'
        f'<VRTRasterBand dataType="UInt16" band="1"><NoDataValue>{nodata}</NoDataValue>{"".join(sources)}</VRTRasterBand></VRTDataset>'
    )
    return target


def watch(scene: Path, bundle: Path, out: Path) -> tuple[int, int, dict]:
    """Run the job and return the peak memory of its driver and of its largest actor, and its record."""
    log = out.with_suffix(".log")
    job = start(
        ["sh", "-c", 'exec "$@" >"$0" 2>&1', log, *job_command("segment_region", scene, "--allow-vrt", "--model", bundle, "--output", out)]
    )
    driver = actor = 0
    try:
        while job.poll() is None:
            driver = max(driver, peak_bytes(job.pid))
            actor = max([actor, *(peak_bytes(pid) for pid in titled(descendants(job.pid), "ray::Worker"))])
            time.sleep(0.5)
    finally:
        end_group(job)
    assert job.returncode == 0, log.read_text()[-2000:]
    return driver, actor, json.loads(next((out / "runs").glob("*.json")).read_text())


def peak_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


if __name__ == "__main__":
    main()
