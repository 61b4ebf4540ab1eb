"""`make cluster`: a head and two workers that take jobs, and of which nothing is left when they are stopped."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster import local
from cluster.local import parse, read_known, shares
from cluster.processes import alive, descendants, seen
from pipeline.models.bundle import Bundle
from tests.faults.ordered import Faults
from tests.jobs.test_segment_region import last_record, parts_of
from tests.processes import RAY, all_ended, end_group, run, start, titled, wait_for
from tests.toys import smooth_noise, write_scene


def command(what: str, folder: Path) -> list[object]:
    return [sys.executable, "-m", "cluster.local", what, folder]


def sourced(file: Path) -> dict[str, str]:
    """What a shell has once it has sourced the file, in another environment than this."""
    names = "RAY_ADDRESS RAY_API_SERVER_ADDRESS RAY_AUTH_MODE RAY_AUTH_TOKEN"
    shell = f'. {shlex.quote(str(file))}; for name in {names}; do eval echo "\\$$name"; done; command -v ray; command -v python'
    done = subprocess.run(["sh", "-c", shell], check=True, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    *values, ray, python = done.stdout.splitlines()
    assert ray == RAY and Path(python).parent == Path(RAY).parent
    return dict(zip(names.split(), values, strict=True))


@dataclass(frozen=True)
class Running:
    """A cluster that `start` has started, what it said, and what its users have in their environment."""

    folder: Path
    said: str
    environment: dict[str, str]
    faults: Faults
    scene: Path
    bundle: Bundle

    def submit(self, *words: object) -> subprocess.Popen[str]:
        return start([sys.executable, "-m", "cluster.submit", *words], **self.environment)

    def segment(self, out: Path, *more: object) -> list[object]:
        job = ["python", "jobs/segment_region.py", self.scene, "--model", self.bundle.path, "--output", out]
        return ["--", *job, "--precision", "fp32", "--shard", 512, *more]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, exact_unet: Bundle) -> Iterator[Running]:
    folder, scenes = tmp_path_factory.mktemp("cluster") / "state", tmp_path_factory.mktemp("scenes")
    scene = write_scene(scenes / "scene.tif", smooth_noise(50, (3, 1400, 1300)))
    faults = Faults(tmp_path_factory.mktemp("faults"))
    try:
        done = run(command("start", folder), **faults.environment)
        assert done.returncode == 0, done.stderr
        yield Running(folder, done.stdout, sourced(folder / "environment"), faults, scene, exact_unet)
    finally:
        run(command("stop", folder))


def test_it_says_how_it_is_used_and_who_may(cluster: Running):
    assert "python -m cluster.submit -- python jobs/segment_region.py" in cluster.said and "python -m cluster.local stop" in cluster.said
    assert (cluster.folder / "environment").stat().st_mode & 0o777 == 0o600 and cluster.folder.stat().st_mode & 0o777 == 0o700
    assert len(cluster.environment["RAY_AUTH_TOKEN"]) == 64 and cluster.environment["RAY_AUTH_TOKEN"] not in cluster.said
    known = read_known(cluster.folder)
    assert known
    environ = Path(f"/proc/{known[1][0].pid}/environ").read_text()
    assert "RAY_AUTH_MODE=token" in environ and "RAY_USAGE_STATS_ENABLED=0" in environ


def test_a_second_start_says_that_it_is_running(cluster: Running):
    before = read_known(cluster.folder)
    again = run(command("start", cluster.folder))
    assert again.returncode == 0 and again.stderr == "the cluster is running already\n" and again.stdout == cluster.said
    assert read_known(cluster.folder) == before


@pytest.mark.slow
def test_a_job_is_stopped_and_started_again(cluster: Running, tmp_path: Path):
    """By `ray job stop`: it says its last words. The next start does what is missing, on both workers."""
    cluster.faults.order({"every shard": {"sleep": 4.0}})
    job = cluster.submit("--submission-id", "stopped", *cluster.segment(tmp_path))
    try:
        wait_for(lambda: parts_of(tmp_path), 120)
        assert run([RAY, "job", "stop", "--no-wait", "stopped"], **cluster.environment).returncode == 0
        out, err = job.communicate(timeout=60)
    finally:
        end_group(job)
    assert job.returncode == 1 and err.splitlines()[-1] == "error: job stopped was stopped"
    assert "interrupted: start the same command again" in out and last_record(tmp_path)["outcome"] == "interrupted"
    left = parts_of(tmp_path)
    cluster.faults.order({})
    again, failed = cluster.submit(*cluster.segment(tmp_path)), cluster.submit("--", "sh", "-c", "echo last words; exit 3")
    used = cluster.submit("--submission-id", "stopped", "--", "true")
    (out, err), (words, failed_err), (_, used_err) = all_ended([again, failed, used])
    assert again.returncode == 0, out + err
    shards = f"{9 - len(left)} shard(s) to do, {sum(shares(len(os.sched_getaffinity(0))))} worker(s)"
    assert shards in out and f"progress {9 - len(left)}/{9 - len(left)} shards" in out and "\r" not in out
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]
    assert failed.returncode == 3 and "last words" in words and failed_err.splitlines()[-1].endswith("ended with exit code 3")
    assert used.returncode == 2 and "--submission-id stopped: was used on this cluster before" in used_err


@pytest.mark.parametrize("token", ["0" * 64, None])
def test_a_wrong_token_is_one_line(cluster: Running, tmp_path: Path, token: str | None):
    wrong = {name: value for name, value in cluster.environment.items() if name != "RAY_AUTH_TOKEN"}
    done = run(
        [sys.executable, "-m", "cluster.submit", *cluster.segment(tmp_path)],
        HOME=str(tmp_path),
        **wrong,
        **({"RAY_AUTH_TOKEN": token} if token else {}),
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "set RAY_AUTH_MODE=token and the cluster's RAY_AUTH_TOKEN" in line


def test_nothing_is_left_of_it(cluster: Running):
    """Last, since it ends the cluster of this module; a process that only has a number of one of its processes is not touched."""
    known = read_known(cluster.folder)
    assert known
    session, processes = known
    everyone = [pid for process in processes for pid in (process.pid, *descendants(process.pid))]
    other = start(["sleep", "100"])
    try:
        mine = seen(other.pid)
        assert mine
        content = json.loads((cluster.folder / "processes.json").read_text())
        content["processes"].append([mine.pid, mine.began - 1])
        (cluster.folder / "processes.json").write_text(json.dumps(content))
        done = run(command("stop", cluster.folder))
        assert done.returncode == 0, done.stderr
        wait_for(lambda: not alive(everyone), 10)
        assert other.poll() is None
    finally:
        end_group(other)
    assert not cluster.folder.exists() and not Path(session).exists()
    again = run(command("stop", cluster.folder))
    assert again.returncode == 0 and again.stderr == "no cluster is running\n"


def test_nothing_is_left_of_one_that_is_interrupted_while_it_starts(tmp_path: Path):
    folder = tmp_path / "state"
    with beginning(folder) as (starting, everyone):
        known = read_known(folder)
        starting.send_signal(signal.SIGINT)
        err = starting.communicate(timeout=60)[1]
        assert starting.returncode == 1 and err.splitlines()[-1] == "interrupted: nothing of the cluster is left"
        wait_for(lambda: not alive(everyone), 10)
    assert not folder.exists() and known and not Path(known[0]).exists()


def test_what_a_killed_start_has_left_is_ended(tmp_path: Path):
    folder = tmp_path / "state"
    with beginning(folder) as (starting, everyone):
        starting.kill()
        starting.communicate()
        assert alive(everyone)
        assert run(command("stop", folder)).returncode == 0
        wait_for(lambda: not alive(everyone), 10)
    assert not folder.exists()


@contextmanager
def beginning(folder: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A cluster that has its first raylet; and all processes of it so far, which do not outlive the test."""
    starting = start(command("start", folder))
    everyone: list[int] = []
    try:
        wait_for(lambda: titled(descendants(starting.pid), "--raylet_socket_name="), 60)
        everyone = descendants(starting.pid)
        yield starting, everyone
    finally:
        end_group(starting)
        for pid in alive(everyone):
            os.kill(pid, signal.SIGKILL)


def test_a_folder_keeps_what_is_not_of_the_cluster(tmp_path: Path):
    (tmp_path / "mine.txt").touch()
    assert run(command("stop", tmp_path)).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_two_do_not_start_at_once(tmp_path: Path):
    with local.alone(tmp_path / "state"):
        done = run(command("start", tmp_path / "state"))
    assert done.returncode == 2 and "another process is starting or stopping this cluster" in done.stderr


def test_the_workers_share_the_cores():
    assert [shares(cores) for cores in (1, 2, 5, 8)] == [[1, 1], [1, 1], [3, 2], [4, 4]]
    assert parse(["start"]).folder == local.PROJECT / ".cluster"
