"""How does it grow? With actors, with shards to dispatch, with the scene's size, with the number of scenes.

    python tests/benchmarks/bench_scaling.py [--parts actors dispatch memory scenes] [--side 4096] [--gigapixels 0.1 1 10]

actors: one scene with 1 and with 2 actors, useful pixels a second from the first shard's begin to publication.
dispatch: shards a second that the driver hands to 64 pretend actors, which do nothing, and takes back.
memory and scenes: bench_memory.py and bench_small_scenes.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.machine import describe_machine
from tests.benchmarks.trained import demo_scene

PROJECT = Path(__file__).parents[2]
MODEL = PROJECT / "jobs" / "demo" / "model"
PRETEND, SHARDS = 64, 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", default=["actors", "dispatch", "memory", "scenes"])
    parser.add_argument("--side", type=int, default=8192, help="px a side of the scene for actors")
    parser.add_argument("--gigapixels", nargs="+", default=["0.1", "1", "10"])
    options = parser.parse_args()
    print(describe_machine(), flush=True)
    here = Path(__file__).parent
    if "actors" in options.parts:
        scale_actors(demo_scene(options.side))
    if "dispatch" in options.parts:
        scale_dispatch()
    if "memory" in options.parts:
        subprocess.run([sys.executable, here / "bench_memory.py", "--gigapixels", *options.gigapixels], check=True)
    if "scenes" in options.parts:
        subprocess.run([sys.executable, here / "bench_small_scenes.py"], check=True)


def scale_actors(scene: Path) -> None:
    """Print the rate of the demo's model with one and with two actors."""
    rates = []
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as out:
            words = ["--model", MODEL, "--output", out, "--workers", str(workers), "--shard", "1024"]
            command = [sys.executable, "jobs/segment_region.py", scene, *words]
            subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
            record = json.loads(next(Path(out, "runs").glob("*.json")).read_text())
        pixels = record["mpix_per_s"] * record["seconds"]
        rates.append(pixels / record["seconds_of_shards"])
        start_s = record["seconds_to_first_shard"]
        print(f"{workers} actor(s): {rates[-1]:.3f} MPix/s, {record['seconds_of_shards']:.1f} s after {start_s:.1f} s of start", flush=True)
    print(f"2 against 1: {rates[1] / rates[0]:.2f}")


class Pretend:
    """An actor that does nothing."""

    def ready(self) -> None:
        return None

    def segment(self, *_: Any) -> int:
        return 0


def scale_dispatch() -> None:
    """Print how many shards a second go through the driver's loop, with a plan by reference, as in a run."""
    from cluster.environment import secure_embedded_ray

    secure_embedded_ray()
    import ray

    from cluster.actors import Actors
    from cluster.dispatch import Task, dispatch
    from cluster.session import ray_session
    from pipeline.geometry.windows import Window

    with ray_session():
        crew = Actors(ray.remote(Pretend).options(num_cpus=0.01).remote, "nothing", lambda: PRETEND)
        plan = ray.put({"scene": "x" * 4000})
        queue = deque(Task("segment", (plan, Window(0, number, 512, 512), "ledger", False), counted=True) for number in range(SHARDS))
        began = time.perf_counter()
        done = sum(outcome.failure is None for outcome in dispatch(queue, crew, deadline_s=lambda _: 600.0))
        seconds = time.perf_counter() - began
    print(f"dispatch: {done} shards to {PRETEND} pretend actors in {seconds:.1f} s, {done / seconds:.0f} shards/s", flush=True)


if __name__ == "__main__":
    main()
