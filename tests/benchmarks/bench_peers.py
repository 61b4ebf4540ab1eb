"""How much faster than its peers, and how near to the truth? One trained network and scene, reading and writing included.

    python tests/benchmarks/bench_peers.py [--side 2048] [--repeats 1]

MONAI, torchgeo, geoai and TerraTorch run as their users run them (eager fp32, their own tile and overlap where they have one),
each in a process of its own, in an environment that this command makes under `.bench/` (about 7 GB). Their seconds leave out
imports and making the network; Tilewright's include loading its model, and the second ratio leaves that out. `differing` are
pixels whose class is not that of one fp32 forward pass over the whole scene. The first run trains the network: some minutes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline.inference.plan import Settings, memory_allotted
from pipeline.inference.segment import segment_scene
from pipeline.models.bundle import Bundle, load_bundle, normalise
from tests.benchmarks.machine import describe_machine
from tests.benchmarks.trained import CACHE, demo_scene, trained_bundle

SCRIPTS = Path(__file__).parent / "peers"
PEERS = (
    ("MONAI, gaussian, overlap 0.25", ["run_monai.py"]),
    ("torchgeo, stride 448", ["run_torchgeo.py", "--stride", "448"]),
    ("torchgeo, no overlap", ["run_torchgeo.py"]),
    ("geoai, predict_geotiff", ["run_geoai.py"]),
    ("TerraTorch, tiled_inference", ["run_terratorch.py"]),
)
SMALL = 64  # px a side: a scene that takes no longer than loading the model


class Result(NamedTuple):
    """`cpu_seconds` are those of all cores; `load` the seconds, out of `seconds`, that making the model ready takes."""

    seconds: float
    cpu_seconds: float
    note: str
    load: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--side", type=int, default=2048, help="px a side of the scene, a multiple of 8")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each, of which the fastest counts")
    options = parser.parse_args()
    python, bundle, scene = peers_python(), load_bundle(trained_bundle("fcn_resnet50")), demo_scene(options.side)
    print(f"{describe_machine()}\n{bundle.architecture}, {options.side} x {options.side} px, {len(bundle.bands)} bands", flush=True)
    expected_HW = fresh(whole_mask, scene, bundle)
    with tempfile.TemporaryDirectory() as name:
        network, output = export(bundle, scene, Path(name, "network")), Path(name, "mask.tif")
        peers = [
            row(label, best(options.repeats, run_peer, python, command, scene, network, output), output, expected_HW)
            for label, command in PEERS
        ]
        fastest = min(result.seconds for result in peers)
        print(f"against the fastest of them, {fastest:.1f} s:")
        for precision in ("auto", "fp32"):
            result = best(options.repeats, run_ours, scene, bundle, output, precision)
            row(f"Tilewright, {precision}", result, output, expected_HW, fastest)


def peers_python() -> Path:
    """The interpreter of the peers' environment, made anew where its requirements changed."""
    folder, wanted = CACHE / "peers-venv", SCRIPTS / "requirements.txt"
    python, made_from = folder / "bin" / "python", folder / "made-from.txt"
    if not made_from.exists() or made_from.read_text() != wanted.read_text():
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "--clear", "--python", sys.executable, folder], check=True)
        subprocess.run([*uv, "pip", "install", "--quiet", "--python", python, "-r", wanted], check=True)
        made_from.write_text(wanted.read_text())
    return python


def export(bundle: Bundle, scene: Path, folder: Path) -> Path:
    """What a peer's script needs of the bundle: torchvision's own state dict, and the scaling in the file's values."""
    folder.mkdir()
    prefix = "network."
    weights = {name.removeprefix(prefix): tensor.contiguous() for name, tensor in bundle.network().state_dict().items()}
    save_file(weights, folder / "weights.safetensors")
    with rasterio.open(scene) as dataset:
        scaling = list(zip(bundle.bands, dataset.scales, dataset.offsets, strict=True))
    about = {
        "bands": len(bundle.bands),
        "classes": len(bundle.classes),
        "mean": [(band.mean - offset) / scale for band, scale, offset in scaling],
        "std": [band.std / scale for band, scale, _ in scaling],
    }
    (folder / "network.json").write_text(json.dumps(about))
    return folder


def run_peer(python: Path, command: Sequence[str], scene: Path, network: Path, output: Path) -> Result:
    """One run of a peer's script."""
    script, *extra = command
    words = [python, SCRIPTS / script, scene, network, output, *extra]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script}: {done.stderr[-2000:]}")
    said = json.loads(done.stdout.splitlines()[-1])
    return Result(said["seconds"], said["cpu_seconds"], f"{said['peer']}, {said['threads']} threads")


def run_ours(scene: Path, bundle: Bundle, output: Path, precision: str) -> Result:
    """One run of Tilewright in a new process; the shortest of three over a scene of no size tells what loading the model takes."""
    settings, small = Settings(precision=precision), output.with_name("small.tif")
    load = min(fresh(_segment, demo_scene(SMALL), bundle.path, small, settings)[0] for _ in range(3))
    seconds, cpu_seconds = fresh(_segment, scene, bundle.path, output, settings)
    return Result(seconds, cpu_seconds, f"of which {load:.1f} s to load the model", load)


def _segment(scene: Path, bundle: str, output: Path, settings: Settings) -> tuple[float, float]:
    began = time.perf_counter(), time.process_time()
    segment_scene(scene, bundle, output, settings=settings)
    return time.perf_counter() - began[0], time.process_time() - began[1]


def whole_mask(scene: Path, bundle: Bundle) -> np.ndarray:
    """The classes of one fp32 forward pass over the scene, or over as much of its upper left as memory holds.

    Where that is not the whole scene, the rows and columns that could see its cut edge are left out.
    """
    with rasterio.open(scene) as dataset:
        raw_CHW, scale, offset = dataset.read(), np.array(dataset.scales), np.array(dataset.offsets)
    stride, side = bundle.reach.stride, raw_CHW.shape[1]
    held = int((memory_allotted() / 2 / bundle.activation_bytes_per_pixel) ** 0.5) // stride * stride
    physical_CHW = (raw_CHW[:, :held, :held] * scale[:, None, None] + offset[:, None, None]).astype(np.float32)
    with torch.inference_mode():
        logits_BKHW = bundle.network()(normalise(torch.from_numpy(physical_CHW)[None], bundle.bands))
    known = side if held >= side else held - (bundle.reach.exact_halo or bundle.halo)
    return logits_BKHW[0, :, :known, :known].argmax(0).to(torch.uint8).numpy()


def fresh(work: Callable[..., Any], *arguments: Any) -> Any:
    """`work` of the arguments in a new process, so that nothing is loaded or warm."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def best(repeats: int, work: Callable[..., Result], *arguments: Any) -> Result:
    """The fastest of several runs."""
    return min((work(*arguments) for _ in range(repeats)), key=lambda result: result.seconds)


def row(label: str, result: Result, output: Path, expected_HW: np.ndarray, fastest: float | None = None) -> Result:
    """Print a line of the table, and return its result."""
    with rasterio.open(output) as dataset:
        mask_HW, pixels = dataset.read(1), dataset.width * dataset.height
    differing = (mask_HW[: expected_HW.shape[0], : expected_HW.shape[1]] != expected_HW).mean()
    ratio = "" if fastest is None else f"{fastest / result.seconds:5.2f} x, {fastest / (result.seconds - result.load):5.2f} x  "
    print(
        f"{label:30s} {result.seconds:7.1f} s  {result.cpu_seconds:7.1f} s CPU  {pixels / 1e6 / result.seconds:6.3f} MPix/s"
        f"  differing {differing:8.4%}  {ratio}({result.note})", flush=True,
    )  # fmt: skip
    output.unlink()
    return result


if __name__ == "__main__":
    main()
