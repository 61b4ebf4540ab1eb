"""Rounds of random kills and faults on a small job: each must end with the bytes of an undisturbed run, and nothing else left.

    python tests/soak/soak_segment_region.py --rounds 200 --seed 1

A round starts the job on an OUT of its own, lets a few things go wrong at random moments, and then starts it undisturbed
until it is done. A round follows from the seed and its number, so `--seed 1 --first 17 --rounds 1` plays round 17 again, save for
what the machine does. Most rounds join one Ray that stays up; every fifth has an embedded one, and so a new one at each start.
Every third has its OUT in a bucket, whose store fails, too.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline.imagery.storage import Remote
from pipeline.models.random_bundle import save_random_bundle
from tests.faults.ordered import Faults
from tests.processes import alive, descendants, end_group, job_command, ray_head, start, titled
from tests.servers import Fault, Store, all_objects, object_store, put_bytes
from tests.toys import smooth_noise, write_scene

SHARDS = [f"r{row:05d}c{col:05d}" for row in range(3) for col in range(3)]
EMBEDDED_EVERY, BUCKET_EVERY = 5, 3
STARTS = 4  # undisturbed, until a round must be done; quarantined shards need a second one
PATIENCE_S = 240.0
ACTOR_S = 5.0  # after an actor is there, until it is killed
ENDINGS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
DEADLINES = {"LEAST_S": 10.0, "HOUR_S": 40.0, "TIMES": 1}
STORE_FAULTS = (500, 503, 429, "reset", "truncate", "lose", "delay")
LAST_WORDS = "masks, pictures and STAC items are in"


@dataclass(frozen=True)
class Soak:
    """What all rounds share."""

    folder: Path
    faults: Faults
    store: Store
    cluster: dict[str, str]
    usual_s: float = 10.0  # what an undisturbed run takes

    def command(self, out: object) -> list[object]:
        return job_command(
            "segment_region", self.folder / "scene.tif", "--model", self.folder / "model", "--output", out,
            "--precision", "fp32", "--shard", 512, "--save", "mask,confidence",
        )  # fmt: skip

    def begin(self, out: object, environment: dict[str, str]) -> subprocess.Popen[str]:
        return start(self.command(out), **environment)

    def order(self, inside: dict[str, Any], *of_store: Fault) -> None:
        """From now on this goes wrong, in the processes of a run and in the store, and nothing else."""
        self.faults.order(inside)
        self.store.fail(*of_store)


def main(arguments: Sequence[str] | None = None) -> int:
    """Play the rounds; returns 1 where one ended otherwise than it must."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the number of the first round")
    options = parser.parse_args(arguments)
    bad = 0
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        (folder / "faults").mkdir()
        faults = Faults(folder / "faults")
        write_scene(folder / "scene.tif", smooth_noise(options.seed, (3, 1100, 1070)))
        save_random_bundle(folder / "model", architecture="unet", arguments={"width": 4, "depth": 2}, bands=3, classes=4, seed=options.seed)
        with object_store() as store, ray_head(**faults.environment, **store.environment) as cluster:
            soak = Soak(folder, faults, store, cluster | faults.environment | store.environment)
            soak.order({})
            finish(soak, folder / "cold", soak.cluster)
            began = time.monotonic()
            finish(soak, folder / "undisturbed", soak.cluster)
            soak = replace(soak, usual_s=time.monotonic() - began)
            expected = files_of(soak, folder / "undisturbed")
            print(f"seed {options.seed}: an undisturbed run takes {soak.usual_s:.0f} s", flush=True)
            for number in range(options.first, options.first + options.rounds):
                bad += not play(soak, options.seed, number, expected)
    print(f"{options.rounds} rounds, {bad} ended otherwise than they must", flush=True)
    return int(bad > 0)


def play(soak: Soak, seed: int, number: int, expected: dict[str, bytes]) -> bool:
    """One round. Returns whether it ended as it must, and prints what went wrong on purpose and what came of it."""
    chance, began = random.Random(f"{seed} {number}"), time.monotonic()
    out: Path | Remote = soak.folder / f"round-{number}"
    environment, told = soak.cluster, list[str]()
    if number % EMBEDDED_EVERY == 0:
        environment = soak.faults.environment | soak.store.environment
        told.append("embedded")
    if number % BUCKET_EVERY == 0:
        out = Remote.parse(put_bytes(soak.store, b"", f"soak-{number}/exists")).parent / "out"
        told.append("bucket")
    try:
        for _ in range(chance.randint(1, 3)):
            told += disturb(soak, chance, out, environment)
            if told[-1] == "exit 0":
                break
        soak.order({})
        told.append(f"finished by start {finish(soak, out, environment)}")
        wrong = differences(files_of(soak, out), expected)
    except AssertionError as error:
        wrong = [str(error)]
    print(f"round {number}: {'; '.join(told)} ({time.monotonic() - began:.0f} s): {'; '.join(wrong) or 'same bytes'}", flush=True)
    return not wrong


def disturb(soak: Soak, chance: random.Random, out: Path | Remote, environment: dict[str, str]) -> list[str]:
    """Start the job and let something go wrong; returns what. It may end of itself, be ended, or have another one beside it."""
    orders, of_store = ordered(chance), ordered_of_store(chance) if isinstance(out, Remote) else []
    soak.order(orders, *of_store)
    jobs = [soak.begin(out, environment) for _ in range(chance.choice((1, 1, 1, 2)))]
    top = [int(environment["HEAD_PID"])] if "HEAD_PID" in environment else [job.pid for job in jobs]
    faults = [f"{how} at {where}" for where, how in orders.items() if where != "deadlines"]
    faults += [f"{fault.kind} every {fault.every} requests" for fault in of_store]
    told = [f"{len(jobs)} driver(s), {', '.join(faults) or 'no fault'}"]
    try:
        for _ in range(chance.randint(0, 4)):
            pause(jobs, soak.usual_s, until=lambda: workers(top))
            pause(jobs, chance.uniform(0, ACTOR_S))
            if victims := workers(top):
                os.kill(chance.choice(victims), signal.SIGKILL)
                told.append("actor killed")
        pause(jobs, chance.uniform(0, soak.usual_s))
        for job in jobs:
            ending = chance.choice(ENDINGS)
            if job.poll() is None and chance.random() < 0.7:
                os.killpg(job.pid, ending) if ending == signal.SIGINT else os.kill(job.pid, ending)
                told.append(f"driver {ending.name}")
            told.append(f"exit {ended(job)}")
    finally:
        others = [pid for job in jobs for pid in descendants(job.pid)]
        for job in jobs:
            end_group(job)
        for pid in alive(others):
            os.kill(pid, signal.SIGKILL)
    return told


def workers(top: list[int]) -> list[int]:
    """The actors that these processes started."""
    return [pid for one in top for pid in titled(descendants(one), "ray::Worker")]


def pause(jobs: list[subprocess.Popen[str]], seconds: float, until: Callable[[], object] = lambda: False) -> None:
    """Wait so long, or until something happens, or all jobs have ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not until() and any(job.poll() is None for job in jobs):
        time.sleep(0.1)


def ordered(chance: random.Random) -> dict[str, Any]:
    """What goes wrong inside the processes, if anything."""
    orders: dict[str, Any] = {"every shard": {"sleep": chance.choice((0.0, 1.0, 2.0))}, "publish": {"sleep": chance.choice((0.0, 1.0))}}
    for shard in chance.sample(SHARDS, chance.choice((0, 0, 1, 2))):
        how = chance.choice(("die", "raise", "hang", "stop"))
        orders[shard] = {how: "EIO" if how == "raise" else True, "times": chance.choice((1, 1, 2, 5))}
    if chance.random() < 0.2:
        orders["publish"] = {"die": True, "times": 1}
    return orders | {"deadlines": DEADLINES}


def ordered_of_store(chance: random.Random) -> list[Fault]:
    """What the store does wrong, if anything."""
    kinds = chance.sample(STORE_FAULTS, chance.choice((0, 1, 2, 3)))
    return [Fault(kind, "PUT|POST" if kind == "lose" else ".*", every=chance.randint(7, 23), seconds=0.5) for kind in kinds]


def ended(job: subprocess.Popen[str]) -> int:
    """The exit code of a job. Raises AssertionError, with what it said last, where it hangs or dies with a traceback.

    Signals may end Python itself before a job has said anything, and after its last words.
    """
    try:
        said, error = job.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"hangs for {PATIENCE_S:.0f} s") from None
    ends = [0, 1, 3, -signal.SIGKILL]
    if not said + error or LAST_WORDS in said:
        ends += [-signal.SIGTERM, -signal.SIGINT]
    if job.returncode == -signal.SIGINT and not said and "importlib" in error and error.rstrip().endswith("KeyboardInterrupt"):
        return job.returncode  # Python's own words, while it still loads the job's modules
    if "Traceback" in said + error or job.returncode not in ends:
        raise AssertionError(f"exit {job.returncode}: {' '.join(error.split())[-1500:]}")
    return job.returncode


def finish(soak: Soak, out: Path | Remote, environment: dict[str, str]) -> int:
    """Start the job until it is done; returns how often that was."""
    for number in range(1, STARTS + 1):
        job = soak.begin(out, environment)
        try:
            if ended(job) == 0:
                return number
        finally:
            end_group(job)
    raise AssertionError(f"not done after {STARTS} undisturbed starts")


def files_of(soak: Soak, out: Path | Remote) -> dict[str, bytes]:
    """All files of an OUT but run records, traces and manifests, which tell one run from another; temporary ones included."""
    if isinstance(out, Remote):
        objects = all_objects(soak.store, out.bucket).items()
        files = {key.removeprefix("out/"): content for key, content in objects if key.startswith("out/")}
    else:
        files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if not name.startswith(("runs/2", "traces")) and "manifest.json" not in name}


def differences(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """What is there and must not be, is missing, or is not the same."""
    wrong = [f"{name} is left" for name in sorted(found.keys() - expected.keys())]
    wrong += [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    return wrong + [f"{name} differs" for name in sorted(found.keys() & expected.keys()) if found[name] != expected[name]]


if __name__ == "__main__":
    sys.exit(main())
