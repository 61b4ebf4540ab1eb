"""What does a scene cost in requests to an object store? A COG of 10980 x 10980 px, segmented from and to a bucket.

    python tests/benchmarks/bench_requests.py [--size 10980] [--bands 4] [--workers 2]

Prints the requests that one run makes, by what they are for. The store is moto behind the tests' proxy, which counts.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import rasterio.shutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline.models.random_bundle import save_random_bundle
from tests.benchmarks.machine import describe_machine
from tests.processes import end_group, job_command, start
from tests.servers import object_store, put_bytes, put_file
from tests.toys import smooth_noise, write_scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=10980, help="px a side")
    parser.add_argument("--bands", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as name, object_store() as store:
        folder = Path(name)
        save_random_bundle(folder / "bundle", architecture="unet", arguments={"width": 4, "depth": 2}, bands=options.bands, classes=5)
        piece_CHW = smooth_noise(1, (options.bands, 1024, 1024), high=10_000)
        times = -(-options.size // 1024)
        values_CHW = np.tile(piece_CHW, (1, times, times))[:, : options.size, : options.size]
        raw = write_scene(folder / "raw.tif", values_CHW, tiled=True, bigtiff="IF_SAFER")
        rasterio.shutil.copy(raw, folder / "scene.tif", driver="COG", compress="DEFLATE", num_threads="ALL_CPUS")
        size = (folder / "scene.tif").stat().st_size
        scene = put_file(store, folder / "scene.tif", "bench/scene.tif")
        put_bytes(store, b"", "bench/exists")
        store.calm()
        command = job_command(
            "segment_region", scene, "--model", folder / "bundle", "--output", "s3://bench/out", "--precision", "fp32",
            "--workers", options.workers,
        )  # fmt: skip
        job = start(command, **store.environment)
        try:
            _, error = job.communicate(timeout=3600)  # all bytes go through a proxy in Python
        finally:
            end_group(job)
        assert job.returncode == 0, error
        requests = Counter((method, "the scene" if "scene.tif" in path else "OUT") for method, path in store.requests)
        parts = sum(method == "PUT" and ".part" in path for method, path in store.requests)
        print(f"{options.size} x {options.size} px, {options.bands} bands, {size / 2**20:.0f} MiB; {parts} shards")
        for (method, what), count in sorted(requests.items()):
            print(f"{method:7s}{what:10s} {count:6d}")
        gets = requests["GET", "the scene"]
        print(f"{gets} GETs of the scene: one for {options.size**2 / gets / 1e6:.2f} MPix, {size / gets / 2**20:.2f} MiB of the file")


if __name__ == "__main__":
    main()
