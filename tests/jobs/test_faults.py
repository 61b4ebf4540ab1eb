"""The main job under faults: whatever dies, hangs, fills up or changes, the next start does what is missing, to the same bytes.

All on one machine by itself, with an embedded Ray where that is possible, and on a cluster of two nodes.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio

from pipeline.models.bundle import Bundle
from tests.faults.ordered import Faults
from tests.jobs.test_segment_region import files_of, last_record, parts_of, read_mask, segment
from tests.processes import RAY, alive, all_ended, descendants, end_group, ray_head, run, start, submit, titled, two_nodes, wait_for
from tests.toys import smooth_noise, write_scene

SHARDS = 9
FIRST, POISON = "r00000c00000", "r00001c00001"
SLOW = {"every shard": {"sleep": 4.0}}  # four at a time: time to hit something
ROOT = os.geteuid() == 0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Stage:
    """A scene, what an undisturbed run makes of it, and a cluster whose processes do what `faults` orders.

    `nodes` are the processes that started the nodes of two; where there is but one, jobs may as well start a Ray of their own.
    """

    scene: Path
    bundle: Bundle
    expected: dict[str, bytes]
    faults: Faults
    cluster: dict[str, str]
    nodes: tuple[int, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """Of a job on two nodes, or with an embedded Ray."""
        return self.cluster if self.nodes else self.faults.environment

    def workers(self, job: subprocess.Popen[str]) -> list[int]:
        """The actors of a job that was started in this environment."""
        return [pid for top in self.nodes or (job.pid,) for pid in titled(descendants(top), "ray::Worker")]

    def command(self, out: Path, *more: object) -> list[object]:
        return segment(self.scene, self.bundle, out, "--shard", 512, *more)

    def same(self, out: Path) -> bool:
        return files_of(out) == self.expected

    def finish(self, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
        """Start the job on `out` undisturbed; it does what is missing, to the bytes that are expected, and leaves nothing else."""
        self.faults.order({})
        done_before = parts_of(out)
        done = run(self.command(out, *more), **self.cluster)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{SHARDS - len(done_before)} shard(s) to do" in done.stderr
        assert done_before.items() <= parts_of(out).items(), "what was finished was not done again"
        assert self.same(out) and not temporaries(out)
        return done


def temporaries(out: Path) -> list[Path]:
    return [path for path in out.rglob("*") if path.name.endswith(".tmp")]


def finals(out: Path) -> list[str]:
    return sorted(path.name for path in out.rglob("*") if path.name in ("mask.tif", "manifest.json", "item.json", "scene.parquet"))


@pytest.fixture(scope="module", params=["one node", "two nodes"])
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, exact_unet: Bundle) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("stage")
    scene = write_scene(folder / "scene.tif", smooth_noise(50, (3, 1400, 1300)))
    faults = Faults(tmp_path_factory.mktemp("faults"))
    with cluster_of(2 if request.param == "two nodes" else 1, **faults.environment) as (cluster, nodes):
        whole = Stage(scene, exact_unet, {}, faults, cluster | faults.environment, nodes)
        done = run(whole.command(folder / "out"), **whole.cluster)
        assert done.returncode == 0, done.stderr
        assert len(parts_of(folder / "out")) == SHARDS and not temporaries(folder / "out")
        yield replace(whole, expected=files_of(folder / "out"))


@contextmanager
def cluster_of(number: int, **more: str) -> Iterator[tuple[dict[str, str], tuple[int, ...]]]:
    """A cluster of one node or two, and the processes that started the nodes where they are two."""
    if number == 2:
        with two_nodes(**more) as two:
            yield two
    else:
        with ray_head(**more) as environment:
            yield environment, ()


def test_actors_killed_five_times(stage: Stage, tmp_path: Path):
    chance = random.Random(5)
    stage.faults.order(SLOW)
    job = start(stage.command(tmp_path), **stage.environment)
    killed = 0
    try:
        wait_for(lambda: parts_of(tmp_path), 120)
        while killed < 5 and job.poll() is None:
            time.sleep(chance.uniform(0.2, 3.0))
            if victims := stage.workers(job):
                os.kill(chance.choice(victims), signal.SIGKILL)
                killed += 1
        out, err = job.communicate(timeout=200)
    finally:
        end_group(job)
    assert killed == 5
    assert job.returncode == 0, out + err
    assert stage.same(tmp_path) and not temporaries(tmp_path)
    again = sum(count - 1 for count in last_record(tmp_path)["scenes"][0]["attempts"].values())
    assert 1 <= again <= 2 * killed  # those in flight, and no other


ENDINGS = {"SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT, "SIGKILL": signal.SIGKILL}


@pytest.mark.parametrize("how", ENDINGS)
def test_the_driver_is_ended(stage: Stage, tmp_path: Path, how: str):
    """An embedded Ray is ended with it; Ctrl-C reaches the whole group of a terminal's processes."""
    stage.faults.order(SLOW)
    job = start(stage.command(tmp_path), **stage.environment)
    others: list[int] = []
    try:
        wait_for(lambda: len(parts_of(tmp_path)) >= 3, 120)
        others = descendants(job.pid)
        gone = stage.workers(job) + titled(others, "--raylet_socket_name=")
        os.killpg(job.pid, ENDINGS[how]) if how == "Ctrl-C" else os.kill(job.pid, ENDINGS[how])
        out, err = job.communicate(timeout=60)
        wait_for(lambda: not alive(gone), 60)  # an actor may finish its shard before Ray ends it
    finally:
        end_group(job)
        for pid in alive(others):
            os.kill(pid, signal.SIGKILL)
    if how != "SIGKILL":
        assert job.returncode == 1
        assert err.strip().splitlines()[-1] == "interrupted: start the same command again to finish what is missing", err
        assert "Traceback" not in out + err
        assert last_record(tmp_path)["outcome"] == "interrupted"
    assert 3 <= len(parts_of(tmp_path)) < SHARDS and not finals(tmp_path)
    stage.finish(tmp_path)


def test_a_submitted_job_is_stopped(stage: Stage, tmp_path: Path):
    stage.faults.order({"every shard": {"sleep": 10.0}})  # `ray job stop` itself takes seconds
    submitted = submit([*stage.command(tmp_path)], "--no-wait", "--submission-id", f"stop-{os.getpid()}", **stage.cluster)
    assert submitted.returncode == 0, submitted.stderr
    wait_for(lambda: len(parts_of(tmp_path)) >= 3, 120)
    stopped = run([RAY, "job", "stop", f"stop-{os.getpid()}"], **stage.cluster)
    assert stopped.returncode == 0, stopped.stderr
    logs = run([RAY, "job", "logs", f"stop-{os.getpid()}"], **stage.cluster).stdout
    assert last_record(tmp_path)["outcome"] == "interrupted"
    assert "interrupted: start the same command again" in logs
    stage.finish(tmp_path)


def test_the_head_is_killed(stage: Stage, tmp_path: Path):
    """All of Ray on that machine dies at once. The driver that is left publishes nothing more, ends before Ray ends it, and says why.

    Of two nodes, workers are left, which finish what they hold.
    """
    stage.faults.order(SLOW)
    with cluster_of(len(stage.nodes) or 1, **stage.faults.environment) as (environment, _):
        job = start(stage.command(tmp_path), **environment, **stage.faults.environment)
        try:
            wait_for(lambda: len(parts_of(tmp_path)) >= 3, 120)
            stage.faults.order({"every shard": {"sleep": 100.0}})
            for pid in [*descendants(int(environment["HEAD_PID"])), int(environment["HEAD_PID"])]:
                os.kill(pid, signal.SIGKILL)
            began = time.monotonic()
            left = parts_of(tmp_path)
            out, err = job.communicate(timeout=120)
            print(f"the driver ended after {time.monotonic() - began:.0f} s with {job.returncode}:\n{out}\n{err}")
        finally:
            end_group(job)
    assert job.returncode == 1
    assert re.search(r"error: Ray's head at \S+ has not answered for \d+ s .*; start the same command again", err.splitlines()[-1]), err
    assert last_record(tmp_path)["outcome"] == "error" and "head" in last_record(tmp_path)["reason"]
    assert left.items() <= parts_of(tmp_path).items() and len(parts_of(tmp_path)) < SHARDS and not finals(tmp_path)
    assert stage.nodes or parts_of(tmp_path) == left
    stage.finish(tmp_path)


def test_poison_is_quarantined(stage: Stage, tmp_path: Path):
    stage.faults.order({POISON: {"die": True, "times": 1000}})
    done = run(stage.command(tmp_path), **stage.cluster)
    assert done.returncode == 3, done.stderr
    assert stage.faults.times(POISON) == 3
    assert len(parts_of(tmp_path)) == SHARDS - 1 and finals(tmp_path) == []
    record = last_record(tmp_path)
    (failed,) = record["scenes"][0]["failed_windows"]
    assert (failed["row"], failed["col"], failed["height"], failed["width"]) == (512, 512, 512, 512)
    assert "3 attempts" in failed["reason"] and record["outcome"] == "failed on data"
    assert "failed window row 512 col 512" in done.stdout
    partial_HW = read_mask(tmp_path / "scenes" / "scene" / "mask.partial.tif")
    assert (partial_HW[512:1024, 512:1024] == 255).all()
    assert (partial_HW == 255).sum() == 512 * 512
    stage.finish(tmp_path)
    assert not (tmp_path / "scenes" / "scene" / "mask.partial.tif").exists()


@pytest.mark.parametrize("how", ["hang", "stop"])
def test_a_shard_that_hangs_is_begun_again(stage: Stage, tmp_path: Path, how: str):
    """In a system call that never returns, or as a process that answers nothing at all; and no other actor is there."""
    stage.faults.order({POISON: {how: True, "times": 1}, "deadlines": {"LEAST_S": 8.0, "HOUR_S": 30.0, "TIMES": 1}})
    done = run(stage.command(tmp_path, "--workers", 1), **stage.cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    assert stage.faults.times(POISON) == 1
    assert last_record(tmp_path)["scenes"][0]["attempts"][POISON] == 2
    assert stage.same(tmp_path) and not temporaries(tmp_path)


@pytest.mark.parametrize("how", ["hang", "stop"])
def test_a_shard_that_two_actors_do(stage: Stage, tmp_path: Path, how: str):
    """One hangs long before its deadline; when nothing else is left, the other one does the shard, too, and the run ends with it."""
    stage.faults.order({FIRST: {how: True, "times": 1}})
    done = run(stage.command(tmp_path), **stage.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert stage.faults.times(FIRST) == 1
    assert not last_record(tmp_path)["scenes"][0]["attempts"], "none failed"
    assert stage.same(tmp_path) and not temporaries(tmp_path)


def test_two_drivers_on_one_out(stage: Stage, tmp_path: Path):
    """Each with a Ray or a node of its own, and different batches, which may differ: the first one's plan holds."""
    stage.faults.order({"every shard": {"sleep": 0.3}, "publish": {"sleep": 2.0}})
    first = ["--workers", 1] if stage.nodes else []
    jobs = [start(stage.command(tmp_path, *more), **stage.environment) for more in (first, ["--workers", 1, "--batch", 2])]
    said = all_ended(jobs)
    assert [job.returncode for job in jobs] == [0, 0], said
    losers = [out for out, _ in said if "another run finished this scene first" in out or "were done already" in out]
    assert len(losers) == 1, said
    (plan,) = tmp_path.glob("scenes/*/parts/*/plan.json")
    found, name = files_of(tmp_path), str(plan.relative_to(tmp_path))
    assert found.pop(name) and found == {other: content for other, content in stage.expected.items() if other != name}
    assert json.loads(plan.read_text())["batch"] in (1, 2) and not temporaries(tmp_path)


def test_the_same_job_submitted_twice_at_once(stage: Stage, tmp_path: Path):
    """They share a cluster with room for both."""
    stage.faults.order({"every shard": {"sleep": 0.3}})
    command = [RAY, "job", "submit", "--working-dir", ".", "--", "python", *stage.command(tmp_path, "--workers", 1)[1:]]
    jobs = [start(command, **stage.cluster) for _ in range(2)]
    said = all_ended(jobs)
    assert [job.returncode for job in jobs] == [0, 0], said
    assert len([out for out, _ in said if "another run finished this scene first" in out]) == 1, said
    assert stage.same(tmp_path) and not temporaries(tmp_path)


def test_an_input_that_changes_while_it_is_read(stage: Stage, tmp_path: Path):
    """Nothing of a mixture is published; the next start does it anew, and one that goes back to what it was is published again."""
    scene = Path(shutil.copy2(stage.scene, tmp_path / "scene.tif"))
    out, results = tmp_path / "out", tmp_path / "out" / "scenes" / "scene"
    command = segment(scene, stage.bundle, out, "--shard", 512)
    stage.faults.order(SLOW)
    job = start(command, **stage.cluster)
    try:
        wait_for(lambda: len(parts_of(out)) >= 2, 120)
        write_scene(scene, smooth_noise(51, (3, 1400, 1300)))  # in place: whoever reads it now reads both
        _, err = job.communicate(timeout=120)
    finally:
        end_group(job)
    assert job.returncode == 3, err
    failure = last_record(out)["scenes"][0]["failure"]
    assert failure and "changed while it was read" in failure
    assert not finals(out) and len(parts_of(out)) < SHARDS
    (of_first,) = results.glob("parts/*")

    stage.faults.order({})
    assert run(command, **stage.cluster).returncode == 0
    second_HW = read_mask(results / "mask.tif")
    assert sorted(parts_of(out)) == sorted(path.name for path in results.glob(f"parts/{input_id(results)}/r*.part"))
    assert run(segment(scene, stage.bundle, tmp_path / "alone", "--shard", 512), **stage.cluster).returncode == 0
    np.testing.assert_array_equal(second_HW, read_mask(tmp_path / "alone" / "scenes" / "scene" / "mask.tif"))

    shutil.copy2(stage.scene, scene)  # as it was, its time included
    assert run(command, **stage.cluster).returncode == 0
    assert input_id(results) == of_first.name
    with rasterio.open(results / "mask.tif") as mask:
        first_HW = mask.read(1)
    expected = stage.expected["scenes/scene/mask.tif"]
    (tmp_path / "expected.tif").write_bytes(expected)
    np.testing.assert_array_equal(first_HW, read_mask(tmp_path / "expected.tif"))
    assert not temporaries(out)


def input_id(results: Path) -> str:
    with rasterio.open(results / "mask.tif") as mask:
        return mask.tags()["INPUT_ID"]


LOOK = """
import hashlib, io, json, pathlib, sys
import pyarrow.parquet as pq, rasterio
from PIL import Image
print("ready", flush=True)
out, stop = map(pathlib.Path, sys.argv[1:])
scene, looks, seen = out / "scenes" / "scene", 0, {}

def see(what, input_id, content):
    seen.setdefault(what + " " + input_id, set()).add(hashlib.sha256(content).hexdigest())

while not stop.exists():
    for layer in ("mask", "confidence"):
        with rasterio.open(scene / (layer + ".tif")) as dataset:
            see(layer, dataset.tags()["INPUT_ID"], dataset.read().tobytes())
    table = pq.read_table(out / "results" / "areas" / "scene.parquet")
    see("table", table["input_id"][0].as_py(), str(table.to_pylist()).encode())
    item = (scene / "item.json").read_bytes()
    see("item", json.loads(item)["properties"]["tilewright:input_id"], item)
    picture = (scene / "quicklook.png").read_bytes()
    with Image.open(io.BytesIO(picture)) as image:
        image.load()
        see("picture", image.text["input_id"], picture)
    looks += 1
print(json.dumps({"looks": looks, "seen": {name: sorted(hashes) for name, hashes in seen.items()}}))
"""


def test_a_reader_while_a_scene_is_replaced(stage: Stage, tmp_path: Path):
    """Each file opens as the old or the new one, whole, and its input_id tells which."""
    scene = Path(shutil.copy2(stage.scene, tmp_path / "scene.tif"))
    out, results = tmp_path / "out", tmp_path / "out" / "scenes" / "scene"
    stage.faults.order({})
    command = segment(scene, stage.bundle, out, "--save", "mask,confidence")
    assert run(command, **stage.cluster).returncode == 0
    before = input_id(results)
    reader = start([sys.executable, "-c", LOOK, out, tmp_path / "stop"])
    try:
        assert reader.stdout and reader.stdout.readline() == "ready\n"
        write_scene(scene, smooth_noise(52, (3, 1400, 1300)))
        assert run(command, **stage.cluster).returncode == 0
        (tmp_path / "stop").touch()
        said, err = reader.communicate(timeout=60)
    finally:
        end_group(reader)
    assert reader.returncode == 0, err
    answer = json.loads(said)
    after = input_id(results)
    assert after != before and answer["looks"] > 20
    files = ("mask", "confidence", "table", "item", "picture")
    assert set(answer["seen"]) == {f"{what} {version}" for what in files for version in (before, after)}
    assert all(len(hashes) == 1 for hashes in answer["seen"].values())


@pytest.mark.skipif(not ROOT, reason="only root mounts a small disk")
def test_a_disk_that_fills_up(stage: Stage, tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tilewright-test", disk], check=True)
    try:
        stage.faults.order(SLOW)
        job = start(stage.command(disk / "out"), **stage.cluster)
        try:
            wait_for(lambda: len(parts_of(disk / "out")) >= 3, 120)
            free = shutil.disk_usage(disk).free
            with (disk / "ballast").open("wb", buffering=0) as ballast:
                ballast.write(bytes(free))  # or as many as there is room for still: the job goes on writing
            out, err = job.communicate(timeout=120)
        finally:
            end_group(job)
        assert job.returncode == 1, out + err
        assert "No space left on device" in err.splitlines()[-1] and "start the same command again" in err and "Traceback" not in err
        assert 3 <= len(parts_of(disk / "out")) < SHARDS and not finals(disk / "out")
        (disk / "ballast").unlink()
        stage.finish(disk / "out")
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_permission_lost_in_mid_run(stage: Stage, tmp_path: Path):
    """Root gives up the right to write where it may not, in the driver and in all that it or a node starts."""
    out, dropped = tmp_path / "out", "-dac_override,-dac_read_search"
    humble = ["setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}"] if ROOT else []
    stage.faults.order(SLOW)
    with two_nodes(within=humble, **stage.faults.environment) if stage.nodes else nullcontext(({}, ())) as (cluster, _):
        job = start([*humble, *stage.command(out)], **cluster, **stage.faults.environment)
        folder = None
        try:
            wait_for(lambda: len(parts_of(out)) >= 3 or job.poll() is not None, 120)
            assert job.poll() is None, job.communicate()
            folder = next(out.glob("scenes/scene/parts/*"))
            folder.chmod(0o555)
            said, err = job.communicate(timeout=120)
        finally:
            end_group(job)
            if folder:
                folder.chmod(0o777)
    assert job.returncode == 1, said + err
    assert "Permission denied" in err.splitlines()[-1] and "start the same command again" in err and "Traceback" not in err
    assert 3 <= len(parts_of(out)) < SHARDS and not finals(out)
    stage.finish(out)


def test_rays_memory_killer(stage: Stage, tmp_path: Path):
    """An actor that grows beyond what the node may use is killed by Ray, and no other does its shard; that is begun again."""
    import psutil

    if stage.nodes:
        pytest.skip("both nodes see the memory of one machine: each would kill, for what one takes")
    memory = psutil.virtual_memory()
    room, grown = 3 * 2**30, 5 * 2**10
    if memory.available < 8 * 2**30:
        pytest.skip("less than 8 GiB are free")
    stage.faults.order({POISON: {"grow": grown, "times": 1}})
    limits = {
        "RAY_memory_usage_threshold": f"{(memory.total - memory.available + room) / memory.total:.3f}",
        "RAY_memory_monitor_refresh_ms": "100",
    }
    done = run(stage.command(tmp_path, "--workers", 1), **stage.faults.environment, **limits)
    assert done.returncode == 0, done.stdout + done.stderr
    assert stage.faults.times(POISON) == 1
    assert last_record(tmp_path)["scenes"][0]["attempts"][POISON] >= 2
    assert stage.same(tmp_path)


def test_values_that_overflow_the_network_are_named_nodata(stage: Stage, tmp_path: Path):
    values_CHW = smooth_noise(53, (3, 700, 900)).astype(np.float32)
    values_CHW[:, 600:620, 700:730] = 3e38
    scene = write_scene(tmp_path / "scene.tif", values_CHW)
    stage.faults.order({})
    command = segment(scene, stage.bundle, tmp_path / "out", "--shard", 512, "--tile", 256)
    for _ in range(2):  # it is tried again, and fails again
        done = run(command, **stage.cluster)
        assert done.returncode == 3, done.stderr
        assert "1 shard(s) to do" in done.stderr or "4 shard(s) to do" in done.stderr
        windows = last_record(tmp_path / "out")["scenes"][0]["failed_windows"]
        assert windows and all("not finite" in window["reason"] for window in windows)
        partial_HW = read_mask(tmp_path / "out" / "scenes" / "scene" / "mask.partial.tif")
        named_HW = np.zeros(partial_HW.shape, bool)
        for window in windows:
            named_HW[window["row"] : window["row"] + window["height"], window["col"] : window["col"] + window["width"]] = True
        assert named_HW[600:620, 700:730].all() and named_HW.mean() < 0.5
        np.testing.assert_array_equal(partial_HW == 255, named_HW)
        assert not finals(tmp_path / "out")


def test_clock_jumps(stage: Stage, tmp_path: Path):
    """By ten years, to and fro, each time that a process looks at its clock; and a run that goes on where a later one stopped."""
    stage.faults.order({"clock": 3e8} | SLOW)
    job = start(stage.command(tmp_path), **stage.environment)
    try:
        wait_for(lambda: len(parts_of(tmp_path)) >= 3, 120)
        os.kill(job.pid, signal.SIGKILL)
        job.communicate(timeout=60)
    finally:
        end_group(job)
    stage.faults.order({"clock": 3e8})
    done = run(stage.command(tmp_path), **stage.environment)
    assert done.returncode == 0, done.stderr
    assert stage.same(tmp_path) and not temporaries(tmp_path)
    years = {name[:4] for name in os.listdir(tmp_path / "runs")}
    assert len(pq.read_table(tmp_path / "results" / "areas" / "scene.parquet")) == 5
    print(f"years of the runs: {sorted(years)}")
