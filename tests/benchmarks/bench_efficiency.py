"""How near is a whole job, file to file, to the bare network on data in memory?

    python tests/benchmarks/bench_efficiency.py [--architecture fcn_resnet50] [--side 10240] [--precision auto]

The bare network has the same engine and precision, the tile at which it is fastest, no halo, a process a worker, and neither
up-samples nor classifies. The job reads, normalises, infers, takes the arg-max, stitches, compresses, and writes a COG, in two
workers (one a GPU) on Ray, or in this process where Ray is not installed; its time is from the first shard's begin to the
scene's publication, and the start is shown beside it. Useful pixels are those of the scene. The bare network is measured
after the job. The trace of the job is kept in `.bench/`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import rasterio
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline.geometry.windows import ceil_to
from pipeline.imagery.catalogue import find_sources
from pipeline.imagery.raster import open_scene
from pipeline.imagery.region import Region
from pipeline.inference.cog import write_layer
from pipeline.inference.plan import QUANTISED, Resources, Settings, make_plan, memory_allotted
from pipeline.inference.segment import segment_shards
from pipeline.inference.stages import totals
from pipeline.inference.trial import prepare_trial
from pipeline.models import allocator
from pipeline.models.bundle import load_bundle
from pipeline.models.engine import Execution, choose_device, describe_device
from pipeline.models.forward import build_forward
from tests.benchmarks.machine import describe_machine
from tests.benchmarks.trained import CACHE, demo_scene, trained_bundle

PROJECT = Path(__file__).parents[2]
TILES = (512, 1024, 2048)
BARE_S = 12.0  # at least, for each tile size
SMALL = 0.02  # a tile size that is slower than the best by less is as good


class Job(NamedTuple):
    """One run of the job: `stages` are seconds of all workers, `plan` what was decided."""

    pixels: int
    start_s: float
    work_s: float
    stages: Mapping[str, float]
    workers: int
    plan: Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--architecture", default="fcn_resnet50", help="or demo: the demo's own U-Net")
    parser.add_argument("--side", type=int, default=10240, help="px a side of the scene")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--halo", default="auto")
    options = parser.parse_args()
    demo = options.architecture == "demo"
    bundle, scene = PROJECT / "jobs" / "demo" / "model" if demo else trained_bundle(options.architecture), demo_scene(options.side)
    print(f"{describe_machine()}\n{options.architecture}, {options.side} x {options.side} px", flush=True)
    run = on_ray if importlib.util.find_spec("ray") else in_process
    with tempfile.TemporaryDirectory() as name:
        settings = ["--precision", options.precision, "--halo", options.halo]
        run(bundle, demo_scene(1024), Path(name, "warm"), settings)
        job = run(bundle, scene, Path(name, "out"), settings)
        network = Path(name, "out", QUANTISED)
        execution = Execution(job.plan["engine"], job.plan["precision"], str(network) if job.plan["precision"] == "int8" else None)
        bare = bare_rates(bundle, execution, job.workers)
    report(job, bare)


def report(job: Job, bare: Mapping[int, float]) -> None:
    """Print the table."""
    tile, best = max(bare.items(), key=lambda item: item[1])
    plan, rate = job.plan, job.pixels / job.work_s
    redundancy, whole = plan["redundancy"], job.work_s * job.workers
    print(f"plan: tile {plan['tile']}, halo {plan['halo']}, shard {plan['shard']}; {plan['choice']}")
    print("bare network, MPix/s of all workers: " + ", ".join(f"{rate / 1e6:.3f} at {side} px" for side, rate in bare.items()))
    print(f"job: {rate / 1e6:.3f} useful MPix/s, {job.work_s:.1f} s with {job.workers} workers, after {job.start_s:.1f} s of start")
    print(f"efficiency {rate / best:.3f} of the bare network at {tile} px; redundancy {redundancy:.3f} allows {1 / redundancy:.3f}:")
    print(f"  {rate * redundancy / best:.3f} of what it allows")
    print("share of the workers' time: " + ", ".join(f"{stage} {seconds / whole:.1%}" for stage, seconds in job.stages.items()))
    print("  wait is the device's, for a tile; read, write and publish run beside it; turn is a shard that waits for another")


def on_ray(bundle: Path, scene: Path, out: Path, settings: list[str]) -> Job:
    """The job as a user starts it; what it says of itself is in its run record."""
    command = [sys.executable, "jobs/segment_region.py", scene, "--model", bundle, "--output", out, *settings]
    subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
    (path,) = (out / "runs").glob("*.json")
    record = json.loads(path.read_text())
    shutil.copy(out / "traces" / path.name, CACHE / "efficiency.trace.json")
    (work,) = record["scenes"]
    pixels = load_pixels(scene)
    return Job(
        pixels, record["seconds_to_first_shard"], record["seconds_of_shards"], work["stage_seconds"], record["workers"], work["plan"]
    )


def in_process(bundle: Path, scene: Path, out: Path, settings: list[str]) -> Job:
    """The same without Ray."""
    began = time.time()
    allocator.keep_freed_memory()
    model = load_bundle(bundle)
    opened = open_scene(find_sources([str(scene)])[0], model.bands)
    region, kind = Region(opened.grid.window), choose_device()
    workers = 1 if kind == "cuda" else len(os.sched_getaffinity(0))
    asked = dict(zip(settings[::2], settings[1::2], strict=True))
    out.mkdir()
    trial = prepare_trial(model, kind, asked["--precision"], [(opened, region)], workers=workers)
    choice = trial.choose()
    choice.keep(out / QUANTISED)
    halo = int(asked["--halo"]) if asked["--halo"].isdigit() else asked["--halo"]
    wanted = Settings(precision=asked["--precision"], halo=halo)  # type: ignore[arg-type]
    resources = Resources(describe_device(kind), memory_allotted() // workers, workers)
    plan = make_plan(opened, region, model, wanted, batch="auto", choice=choice, resources=resources)
    results = segment_shards(plan, model, kind, out, workers)
    first = min(span.began for result in results for span in result.spans)
    write_layer(
        "mask", [(shard, out / f"{plan.shard_name(shard)}.part") for shard in plan.shards()], out / "mask.tif", plan, model, input_id=""
    )
    stages = totals(span for result in results for span in result.spans)
    about = {name: getattr(plan, name) for name in ("precision", "engine", "tile", "halo", "shard", "choice", "redundancy")}
    return Job(region.window.pixels, first - began, time.time() - first, stages, workers, about)


def load_pixels(scene: Path) -> int:
    """How many pixels a scene has."""
    with rasterio.open(scene) as dataset:
        return dataset.width * dataset.height


def bare_rates(bundle: Path, execution: Execution, workers: int) -> dict[int, float]:
    """Pixels a second of `workers` processes at once, for each tile size."""
    context = multiprocessing.get_context("spawn")
    before = dict(os.environ)
    os.environ |= allocator.ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
    try:
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            return {tile: sum(pool.map(_bare_rate, *zip(*[(bundle, execution, tile)] * workers, strict=True))) for tile in TILES}
    finally:
        os.environ.clear()
        os.environ.update(before)


@torch.inference_mode()
def _bare_rate(path: Path, execution: Execution, tile: int) -> float:
    torch.set_num_threads(1)
    bundle, device = load_bundle(path), choose_device()
    side, bands = ceil_to(tile, bundle.reach.stride), len(bundle.bands)
    forward = build_forward(bundle, device, execution.engine, execution.precision, execution.network)
    inputs = (torch.randint(0, 9000, (1, bands, side, side), dtype=torch.int16), torch.ones(1, bands, side, side, dtype=torch.uint8))
    inputs = (*inputs, torch.full((1, bands, 1, 1), 1e-3), torch.zeros(1, bands, 1, 1))
    inputs = tuple(tensor.to(device) for tensor in inputs)
    forward(*inputs)
    passes, began = 0, time.perf_counter()
    while time.perf_counter() - began < BARE_S or passes < 2:
        forward(*inputs)
        if device == "cuda":
            torch.cuda.synchronize()
        passes += 1
    return passes * side * side / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
