"""Joining a cluster: what is refused before work begins, and what is known of its nodes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from pipeline.errors import Refused
from pipeline.models.bundle import Bundle
from tests.processes import job_command, ray_head, ray_node, run
from tests.toys import smooth_noise, write_scene

LOOK = """
import json, sys
from cluster.environment import secure_embedded_ray
secure_embedded_ray()
from cluster.session import check_paths, find_device, ray_session
from pipeline.errors import Refused
with ray_session() as nodes:
    device = find_device(nodes)
    print(len(nodes), sum(node.cpus for node in nodes), device.kind, device.description)
    try:
        check_paths(nodes, sys.argv[1:-1], sys.argv[-1])
        print("all paths are there")
    except Refused as error:
        print("refused:", error)
"""


def test_a_cluster_that_cannot_be_joined_is_refused_in_one_line(unet: Bundle, tmp_path: Path):
    scene = write_scene(tmp_path / "scene.tif", smooth_noise(1, (3, 60, 60)))
    command = job_command("segment_region", scene, "--model", unet.path, "--output", tmp_path / "out")
    done = run(command, RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == 2, done.stderr
    assert "error: cannot join Ray at 127.0.0.1:1" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_job_that_is_told_to_end_while_ray_starts_can_say_so(monkeypatch: pytest.MonkeyPatch):
    """Ray puts its own handler in the place of the job's as it starts, which ends the process without a word."""
    import ray

    from cluster.session import ray_session

    def start(**_: object) -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), ray_session():
        pass
    assert signal.getsignal(signal.SIGTERM) is before


def test_two_nodes_and_paths_that_one_does_not_see(ray_cluster: dict[str, str], tmp_path: Path):
    """Two nodes of one machine see the same files, so the path that is missing is missing on both; the node is named."""
    here = tmp_path / "scene.tif"
    here.touch()
    with ray_node(ray_cluster, "--num-cpus=1"):
        there = run([sys.executable, "-c", LOOK, here, tmp_path / "new" / "out"], **ray_cluster).stdout
        assert there.startswith("2 3 cpu ") and "all paths are there" in there
        missing = run([sys.executable, "-c", LOOK, here, tmp_path / "gone.tif", tmp_path], **ray_cluster).stdout
        assert f"refused: {tmp_path / 'gone.tif'}: node " in missing and "use a folder that all nodes share" in missing


def test_an_embedded_ray_that_is_slow_to_start_is_tried_again(monkeypatch: pytest.MonkeyPatch):
    """As Ray says it: with the base class of exceptions."""
    from cluster import session

    tried: list[str] = []

    def init(address: str, **_: object) -> None:
        tried.append(address)
        if len(tried) != succeeds:
            raise Exception("The current node timed out\nduring startup.")

    monkeypatch.setattr(session.ray, "init", init)
    succeeds = session.STARTS
    session._init("local", {})
    assert len(tried) == session.STARTS
    succeeds = 0
    with pytest.raises(RuntimeError, match="Ray did not start on this machine in 3 tries: The current node timed out during startup"):
        session._init("local", {})
    tried.clear()
    with pytest.raises(Refused, match=r"cannot join Ray at 127\.0\.0\.1:1: The current node timed out during startup"):
        session._init("127.0.0.1:1", {})
    assert len(tried) == 1


def test_an_embedded_ray_has_a_token_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    from cluster.environment import secure_embedded_ray

    os.environ.pop("RAY_ADDRESS", None)
    tokens = set()
    for _ in range(2):
        secure_embedded_ray()
        assert os.environ["RAY_AUTH_MODE"] == "token" and os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
        tokens.add(os.environ["RAY_AUTH_TOKEN"])
    assert len(tokens) == 2 and all(len(token) == 64 for token in tokens)
    os.environ["RAY_AUTH_TOKEN"] = "the user's"
    os.environ["RAY_ADDRESS"] = "127.0.0.1:6379"
    secure_embedded_ray()
    assert os.environ["RAY_AUTH_TOKEN"] == "the user's"  # a cluster is joined with the token its user has set


def test_a_cluster_of_another_version_is_refused_in_one_line(ray_cluster: dict[str, str], unet, tmp_path: Path):
    """This process says that it is an older Ray; what it is told comes from Ray itself."""
    from tests.toys import smooth_noise, write_scene

    scene = write_scene(tmp_path / "scene.tif", smooth_noise(1, (3, 60, 60)))
    code = "import sys, ray; ray.__version__ = '2.55.1'; from jobs.segment_region import main; sys.exit(main(sys.argv[1:]))"
    done = run([sys.executable, "-c", code, scene, "--model", unet.path, "--output", tmp_path / "out"], **ray_cluster)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"cannot join Ray at {ray_cluster['RAY_ADDRESS']}: Version mismatch: " in line and "Ray: 2.55.1" in line
    assert "use the cluster's versions here, or submit the job: python -m cluster.submit" in line and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_gpu_that_is_not_there_is_refused(unet: Bundle, tmp_path: Path):
    scene = write_scene(tmp_path / "scene.tif", smooth_noise(3, (3, 64, 64)))
    for gpus, said in (("1", "this machine has 0 GPUs"), ("1.5", "must be a part of 1, or a whole number"), ("-1", "must be a part of 1")):
        done = run(job_command("segment_region", scene, "--model", unet.path, "--output", tmp_path / "out", "--gpus-per-worker", gpus))
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith(f"error: --gpus-per-worker {gpus}: {said}")
    assert not (tmp_path / "out").exists()


def test_a_cluster_without_workers_is_asked_for_one_and_then_refused():
    code = (
        "import cluster.session as session\nfrom pipeline.errors import Refused\nsession.NODE_TIMEOUT_S, session.TELL_EVERY_S = 3.0, 1.0\n"
        "with session.ray_session() as nodes:\n    assert not any(node.cpus for node in nodes)\n"
        "    try:\n        session.find_device(nodes)\n    except Refused as refusal:\n        print(refusal)\n"
    )
    with ray_head(0) as environment:
        done = run([sys.executable, "-c", code], **environment)
    assert done.stdout.strip() == "the cluster has no node with cores or GPUs for workers, and none came within 3 s", done.stderr
    assert "waiting for a node, for up to 3 s: the cluster has no node with cores" in done.stderr
