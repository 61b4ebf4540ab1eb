"""Clusters of two nodes that lose one: its raylet is killed, or it is cut off and goes on by itself. The other one finishes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pipeline.models.bundle import Bundle
from tests.cluster.autoscaled import autoscaling
from tests.faults.ordered import Faults
from tests.jobs.test_faults import Stage
from tests.jobs.test_segment_region import files_of, last_record, parts_of
from tests.processes import alive, descendants, end_group, ray_head, ray_node, run, start, titled, wait_for
from tests.toys import smooth_noise, write_scene

NOTICED_S = 120  # within which Ray tells that a node is gone; 57 s were seen for a cut link
PLUGGED = os.geteuid() == 0 and shutil.which("ip") is not None

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, exact_unet: Bundle, ray_cluster: dict[str, str]) -> Stage:
    """A scene of nine shards; what goes wrong does so in the processes of both nodes."""
    folder = tmp_path_factory.mktemp("nodes")
    scene = write_scene(folder / "scene.tif", smooth_noise(60, (3, 1400, 1300)))
    whole = Stage(scene, exact_unet, {}, Faults(tmp_path_factory.mktemp("faults")), ray_cluster)
    assert run(whole.command(folder / "out"), **ray_cluster).returncode == 0
    return replace(whole, expected=files_of(folder / "out"))


@contextmanager
def head_and_node(
    faults: Faults, ip: str = "127.0.0.1", *options: str, within: tuple[str, ...] = ()
) -> Iterator[tuple[dict[str, str], int]]:
    """A head and a second node, of a core each. Yields the environment of users, and the process that started the second node."""
    with (
        ray_head(1, ip, **faults.environment) as environment,
        ray_node(environment, "--num-cpus=1", *options, within=within, **faults.environment) as node,
    ):
        yield environment | faults.environment, node.pid


def test_a_raylet_is_killed(stage: Stage, tmp_path: Path):
    stage.faults.order({"every shard": {"sleep": 4.0}})
    with head_and_node(stage.faults) as (environment, node):
        job = start(stage.command(tmp_path), **environment)
        try:
            wait_for(lambda: len(parts_of(tmp_path)) >= 3, 120)
            assert titled(descendants(node), "ray::Worker"), "it has a worker"
            for raylet in titled(descendants(node), "--raylet_socket_name="):
                os.kill(raylet, signal.SIGKILL)
            out, err = job.communicate(timeout=NOTICED_S + 60)
        finally:
            end_group(job)
    assert job.returncode == 0, out + err
    assert last_record(tmp_path)["workers"] == 2 and last_record(tmp_path)["scenes"][0]["attempts"]
    assert files_of(tmp_path) == stage.expected
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.parametrize("workers", [["--workers", 2], []])
def test_a_node_that_joins_in_mid_run_gets_work(stage: Stage, tmp_path: Path, workers: list[object]):
    stage.faults.order({"every shard": {"sleep": 12.0}})
    with ray_head(1, **stage.faults.environment) as environment:
        job = start([*stage.command(tmp_path), *workers], **environment, **stage.faults.environment)
        try:
            wait_for(lambda: parts_of(tmp_path), 120)
            with ray_node(environment, "--num-cpus=1", **stage.faults.environment) as node:
                wait_for(lambda: titled(descendants(node.pid), "ray::Worker"), 120)
                out, err = job.communicate(timeout=200)
        finally:
            end_group(job)
    assert job.returncode == 0, out + err
    assert files_of(tmp_path) == stage.expected
    (log,) = (tmp_path / "runs").glob("*.jsonl")
    done = [line for line in map(json.loads, log.read_text().splitlines()) if line["event"] == "shard done"]
    assert len({line["worker"].split()[1] for line in done}) == 2, "both have worked"


def test_an_autoscaler_starts_nodes_as_shards_wait_and_lets_them_go(stage: Stage, tmp_path: Path):
    """From none: one for the first shards, more once it is known that these take long; none that would have nothing to do."""
    stage.faults.order({"every shard": {"sleep": 10.0}, "deadlines": {"GROW_S": 10.0}})
    with autoscaling(tmp_path, most=5, **stage.faults.environment) as environment:
        out, head = tmp_path / "out", int(environment["HEAD_PID"])

        def raylets() -> int:
            return len(titled(descendants(head), "--raylet_socket_name="))

        wait_for(lambda: raylets() == 1, 60)
        job = start(stage.command(out), **environment, **stage.faults.environment)
        seen = set()
        try:
            while job.poll() is None:
                seen.add(raylets())
                time.sleep(0.5)
            said, err = job.communicate()
        finally:
            end_group(job)
        print(seen, err)
        assert job.returncode == 0, said + err
        wait_for(lambda: raylets() == 1, 120)
    assert seen >= {1, 2} and 3 <= max(seen) <= 5, "nodes, with the head"
    assert files_of(out) == stage.expected


@dataclass(frozen=True)
class Wire:
    """A network namespace and the link from it to this one."""

    name: str
    here: str
    there: str

    @property
    def inside(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.name)

    def cut(self) -> None:
        ip("link", "set", self.name, "down")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def wire() -> Iterator[Wire]:
    """The link's end here has the namespace's name; both have addresses of a range of their own."""
    number = os.getpid() % 250
    plugged = Wire(f"tilew{os.getpid() % 10_000}", f"10.77.{number}.1", f"10.77.{number}.2")
    ip("netns", "add", plugged.name)
    try:
        ip("link", "add", plugged.name, "type", "veth", "peer", "name", "eth0", "netns", plugged.name)
        for where, end, address in ((("-n", plugged.name), "eth0", plugged.there), ((), plugged.name, plugged.here)):
            ip(*where, "address", "add", f"{address}/24", "dev", end)
            ip(*where, "link", "set", end, "up")
        ip("-n", plugged.name, "link", "set", "lo", "up")
        yield plugged
    finally:
        subprocess.run(["ip", "link", "delete", plugged.name], check=False, capture_output=True)
        ip("netns", "delete", plugged.name)


@pytest.mark.skipif(not PLUGGED, reason="only root cuts a network namespace off")
@pytest.mark.parametrize("when", ["shards", "publication"])
def test_a_node_is_cut_off(stage: Stage, tmp_path: Path, wire: Wire, when: str):
    """It sees OUT as before, and goes on writing; the driver begins anew elsewhere what it does not hear of any more."""
    stage.faults.order({"every shard": {"sleep": 4.0}, "publish": {"sleep": 20.0, "times": 9}})
    with head_and_node(stage.faults, wire.here, f"--node-ip-address={wire.there}", within=wire.inside) as (environment, node):
        job = start(stage.command(tmp_path), **environment)
        try:
            wait_for(lambda: len(parts_of(tmp_path)) >= 3, 120)
            away = titled(descendants(node), "ray::Worker")
            assert away, "it has a worker"
            if when == "publication":
                wait_for(lambda: publishes_among(stage.faults, away), 120, every=0.5)
            stage.faults.order({})
            wire.cut()
            began = time.monotonic()
            out, err = job.communicate(timeout=NOTICED_S + 60)
            print(f"ended {time.monotonic() - began:.0f} s after the cut:\n{out}\n{err}")
            manifest = next(tmp_path.glob("scenes/*/parts/*/manifest.json"))
            made = manifest.stat().st_mtime_ns
        finally:
            end_group(job)
    assert job.returncode == 0, out + err
    assert last_record(tmp_path)["workers"] == 2
    assert files_of(tmp_path) == stage.expected
    assert manifest.stat().st_mtime_ns == made
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]


def publishes_among(faults: Faults, pids: list[int]) -> bool:
    """Whether one of these processes is about to publish; if another one is, it is killed, so that one of these comes next."""
    mark = faults.folder / "publish"
    if not mark.exists():
        return False
    last = int(mark.read_text().split()[-1])
    if last in pids:
        return True
    if alive([last]):
        os.kill(last, signal.SIGKILL)
    return False
