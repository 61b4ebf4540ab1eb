"""Training on Ray Train: whatever dies, the end is the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.models.bundle import load_bundle
from pipeline.training.fit import fit
from tests.cluster.autoscaled import autoscaling
from tests.processes import alive, descendants, end_group, job_command, ray_head, ray_node, run, start, titled, wait_for
from tests.training.labelled import RECIPE, TEST, UNET, VALIDATION, small_halo, training, write_pair

LONG = replace(RECIPE, epochs=12, batch=4)


def words(folder: Path, epochs: int, *more: object) -> list[object]:
    """The job's command for what `training` describes."""
    return job_command(
        "train_model", "--architecture", "unet", *(f"--argument={name}={value}" for name, value in UNET.items()),
        "--data", folder / "scene.tif", "--labels", folder / "labels.tif", "--classes", folder / "classes.json",
        "--validation", f"{VALIDATION.start}:{VALIDATION.stop}", "--test", f"{TEST.start}:{TEST.stop}", "--epochs", epochs,
        "--batch", LONG.batch, "--window", 16, "--seed", LONG.seed, "--augment", LONG.augment, "--output", folder / "bundle", *more,
    )  # fmt: skip


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    write_pair(tmp_path)
    (tmp_path / "classes.json").write_text(
        '[{"name": "dark", "color": "#000000", "values": [0]}, {"name": "bright", "color": "#FFFFFF", "values": [1, 2]}]'
    )
    return tmp_path


def undisturbed(folder: Path, epochs: int) -> dict[str, torch.Tensor]:
    """The weights that the same training gives in one process, without Ray."""
    alone = folder / "alone"
    write_pair(alone)
    with small_halo():
        fit(training(alone, replace(LONG, epochs=epochs)), torch.device("cpu"))
    return load_file(alone / "bundle" / "weights.safetensors")


def epochs_done(folder: Path) -> int:
    table = folder / "bundle.run" / "epochs.csv"
    return len(table.read_text().splitlines()) - 1 if table.exists() else 0


def assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """What the number of threads, and of workers, may change: the last bits."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_nodes_are_waited_for(pair: Path) -> None:
    """An autoscaler has none at first, and is asked for as many as the training needs at once."""
    with autoscaling(pair, most=3) as environment:
        done = run(words(pair, 1, "--workers", 2), **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    provenance = load_bundle(pair / "bundle").provenance
    assert provenance["workers"] == 2 and provenance["recipe"]["precision"] == "fp32"


@pytest.mark.timeout(900)  # Ray Train starts three times: 188 s were seen beside other tests
@pytest.mark.slow
def test_a_worker_and_the_driver_are_killed_and_the_end_is_the_same(pair: Path) -> None:
    """The worker is replaced and goes on after the last epoch; the same command goes on after the driver has died."""
    job = start(words(pair, LONG.epochs))
    try:
        wait_for(lambda: epochs_done(pair) >= 2 or job.poll() is not None, 200)
        worker = titled(descendants(job.pid), "RayTrainWorker")
        assert worker, job.communicate()[1] if job.poll() is not None else "no worker"
        os.kill(worker[0], signal.SIGKILL)
        before = epochs_done(pair)
        wait_for(lambda: epochs_done(pair) >= before + 2 or job.poll() is not None, 200)
        assert job.poll() is None
    finally:
        end_group(job)
    assert epochs_done(pair) < LONG.epochs
    assert load_bundle(pair / "bundle").metrics["interrupted_after_epoch"] <= epochs_done(pair)
    other = run([*words(pair, LONG.epochs), "--learning-rate", "0.1"])
    assert other.returncode == 2 and "with another recipe learning_rate" in other.stderr
    again = run(words(pair, LONG.epochs))
    assert again.returncode == 0, again.stderr
    assert "it goes on" in again.stdout and epochs_done(pair) == LONG.epochs
    bundle = load_bundle(pair / "bundle")
    assert "interrupted_after_epoch" not in bundle.metrics and bundle.provenance["epochs"] == LONG.epochs
    assert_near(load_file(pair / "bundle" / "weights.safetensors"), undisturbed(pair, LONG.epochs))
    assert not (pair / "bundle.run" / "checkpoints").exists()
    finished: subprocess.CompletedProcess[str] = run(words(pair, LONG.epochs))
    assert finished.returncode == 2 and "holds a bundle already" in finished.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_is_killed_and_another_takes_its_place(pair: Path) -> None:
    """Two workers, one on each node; the training waits for the new node and goes on after the last epoch."""
    with ray_head(cpus=1) as environment, ExitStack() as stack:
        with ray_node(environment, "--num-cpus=1") as node:
            wait_for(lambda: count_nodes(environment) == 2, 120, every=2)
            job = start(words(pair, LONG.epochs, "--workers", 2), **environment)
            stack.callback(end_group, job)
            wait_for(lambda: epochs_done(pair) >= 2 or job.poll() is not None, 300)
            lost = descendants(node.pid)
            assert job.poll() is None and titled(lost, "RayTrainWorker"), "it has one of the workers"
            for pid in alive(lost):
                os.kill(pid, signal.SIGKILL)
        before = epochs_done(pair)
        with ray_node(environment, "--num-cpus=1"):
            said, error = job.communicate(timeout=400)
    assert job.returncode == 0, said + error
    assert before < LONG.epochs == epochs_done(pair)
    assert_near(load_file(pair / "bundle" / "weights.safetensors"), undisturbed(pair, LONG.epochs))


def count_nodes(environment: dict[str, str]) -> int:
    """How many nodes of a cluster are alive."""
    look = "import ray; ray.init(logging_level='ERROR', log_to_driver=False); print(sum(node['Alive'] for node in ray.nodes()))"
    return int(run([sys.executable, "-c", look], **environment).stdout.split()[-1])
