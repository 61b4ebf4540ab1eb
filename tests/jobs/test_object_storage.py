"""The jobs on a bucket: the same masks as on disk, the same bytes whatever the store, the network and the signals do."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipeline.models.bundle import Bundle
from tests.jobs.conftest import BLOCKS
from tests.processes import alive, all_ended, descendants, end_group, job_command, run, start, wait_for
from tests.servers import Fault, Store, all_objects, put_bytes, put_file
from tests.toys import smooth_noise, write_scene

TROUBLE = [
    Fault(503, every=7),
    Fault("reset", every=11),
    Fault(500, every=13),
    Fault("truncate", method="GET", every=5),
    Fault("lose", method="PUT", every=4),
    Fault("delay", every=6, seconds=0.2),
]


@pytest.fixture
def bucket(store: Store, request: pytest.FixtureRequest, scene: Path) -> str:
    """A bucket of this test's own, with the scene in it, and nothing wrong yet."""
    store.calm()
    name = f"jobs-{abs(hash(request.node.nodeid)):x}"
    put_file(store, scene, f"{name}/scene.tif")
    return name


def segment(bucket: str, model: object, out: str, *more: object) -> list[object]:
    return job_command(
        "segment_region", f"s3://{bucket}/scene.tif", "--model", model, "--output", f"s3://{bucket}/{out}", "--precision", "fp32",
        "--shard", 512, *more,
    )  # fmt: skip


def put_bundle(store: Store, bundle: Bundle, bucket: str) -> str:
    for path in Path(bundle.path).iterdir():
        put_file(store, path, f"{bucket}/model/{path.name}")
    return f"s3://{bucket}/model"


def results(store: Store, bucket: str, out: str) -> dict[str, bytes]:
    """All objects of an OUT but the run records and manifests, which tell one run from another."""
    objects = {key.removeprefix(f"{out}/"): content for key, content in all_objects(store, bucket).items() if key.startswith(f"{out}/")}
    return {key: content for key, content in objects.items() if not key.startswith(("runs", "traces")) and "manifest" not in key}


def parts(store: Store, bucket: str, out: str) -> set[str]:
    return {key for key in results(store, bucket, out) if key.endswith(".part")}


@pytest.mark.slow
def test_a_bucket_holds_what_a_disk_would_and_tells_nobody_where_it_is(
    store: Store, bucket: str, scene: Path, exact_unet: Bundle, tmp_path: Path
):
    local = run(
        job_command("segment_region", scene, "--model", exact_unet.path, "--output", tmp_path, "--precision", "fp32", "--shard", 512)
    )
    assert local.returncode == 0, local.stderr
    store.fail(*TROUBLE)
    where = store.environment.pop("AWS_ENDPOINT_URL")
    environment = {name: value for name, value in store.environment.items() if name != "AWS_ENDPOINT_URL"}
    done = run(segment(bucket, put_bundle(store, exact_unet, bucket), "out", "--endpoint-url", where), **environment)
    assert done.returncode == 0, done.stderr
    assert store.injected > 10
    found = results(store, bucket, "out")
    assert {key.partition("/parts/")[0] for key in found} == {
        key.partition("/parts/")[0]
        for key in (str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
        if not key.startswith(("runs", "traces"))
    }
    disk = rasterio.open(tmp_path / "scenes" / "scene" / "mask.tif")
    with rasterio.MemoryFile(found["scenes/scene/mask.tif"]) as file, file.open() as remote, disk:
        np.testing.assert_array_equal(remote.read(), disk.read())
        assert [remote.overviews(1), remote.colormap(1)] == [disk.overviews(1), disk.colormap(1)]
    told = [done.stdout.encode(), done.stderr.encode(), *all_objects(store, bucket).values()]
    for secret in (where, where.partition("//")[2], store.environment["AWS_SECRET_ACCESS_KEY"]):
        assert not any(secret.encode() in text for text in told)
    assert json.loads(next(text for key, text in all_objects(store, bucket).items() if "/runs/" in key))["outcome"] == "done"
    again = run(segment(bucket, f"s3://{bucket}/model", "out", "--endpoint-url", where), **environment)
    assert again.returncode == 0 and "1 scene(s) were done already" in again.stdout
    assert results(store, bucket, "out") == found


@pytest.mark.slow
def test_a_killed_driver_and_two_at_once_change_no_byte(store: Store, bucket: str, exact_unet: Bundle, slowly: dict[str, str]):
    assert run(segment(bucket, exact_unet.path, "calm"), **store.environment).returncode == 0
    expected = results(store, bucket, "calm")
    process = start(segment(bucket, exact_unet.path, "killed"), **store.environment, **slowly)
    try:
        wait_for(lambda: len(parts(store, bucket, "killed")) >= 3, 120, every=0.5)
        orphans = descendants(process.pid)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        end_group(process)
        for pid in alive(orphans):
            os.kill(pid, signal.SIGKILL)
    done = parts(store, bucket, "killed")
    assert 3 <= len(done) < 9 and not any(key.endswith("mask.tif") for key in results(store, bucket, "killed"))
    store.fail(*TROUBLE)
    both = [start(segment(bucket, exact_unet.path, "killed", "--workers", 1), **store.environment) for _ in range(2)]
    told = all_ended(both)
    assert [process.returncode for process in both] == [0, 0], told
    assert results(store, bucket, "killed") == expected


@pytest.mark.slow
@pytest.mark.parametrize(("status", "why"), [(403, "access denied: check the AWS credentials"), (404, "no such bucket")])
def test_a_store_that_goes_away_in_mid_run(
    store: Store, bucket: str, exact_unet: Bundle, slowly: dict[str, str], status: int, why: str
):  # fmt: skip
    """Exit code 1 where a part cannot be put, 3 where the scene is out of reach before that."""
    assert run(segment(bucket, exact_unet.path, "calm"), **store.environment).returncode == 0
    process = start(segment(bucket, exact_unet.path, "gone"), **store.environment, **slowly)
    try:
        wait_for(lambda: len(parts(store, bucket, "gone")) >= 2, 120, every=0.5)
        store.fail(Fault(status))
        out, err = process.communicate(timeout=280)
    finally:
        end_group(process)
    assert process.returncode in (1, 3), out + err
    assert why in out + err and "Traceback" not in err
    store.calm()
    left = results(store, bucket, "gone")
    assert not any(key.endswith(("mask.tif", "mask.partial.tif", ".parquet")) for key in left), "nothing broken was published"
    assert run(segment(bucket, exact_unet.path, "gone"), **store.environment).returncode == 0
    assert results(store, bucket, "gone") == results(store, bucket, "calm")


@pytest.mark.slow
def test_an_object_that_changes_while_it_is_read(store: Store, bucket: str, exact_unet: Bundle, slowly: dict[str, str], tmp_path: Path):
    process = start(segment(bucket, exact_unet.path, "out"), **store.environment, **slowly)
    try:
        wait_for(lambda: parts(store, bucket, "out"), 120, every=0.5)
        put_file(store, write_scene(tmp_path / "scene.tif", smooth_noise(21, (3, 1400, 1300)), **BLOCKS), f"{bucket}/scene.tif")
        out, err = process.communicate(timeout=280)
    finally:
        end_group(process)
    assert process.returncode == 3 and "changed while it was read" in out, out + err
    assert not any(key.endswith("mask.tif") for key in results(store, bucket, "out"))
    assert run(segment(bucket, exact_unet.path, "out"), **store.environment).returncode == 0
    assert any(key.endswith("mask.tif") for key in results(store, bucket, "out"))


@pytest.mark.slow
def test_training_and_evaluation_on_a_bucket(store: Store, bucket: str, tmp_path: Path):
    values_CHW = smooth_noise(3, (2, 96, 128))
    put_file(store, write_scene(tmp_path / "image.tif", values_CHW), f"{bucket}/data/image.tif")
    labels_CHW = (values_CHW[:1] > 127).astype(np.uint8)
    labels = put_file(store, write_scene(tmp_path / "labels.tif", labels_CHW), f"{bucket}/data/labels.tif")
    data = ["--data", f"s3://{bucket}/data/image.tif", "--labels", labels]
    put_bytes(store, b"", f"{bucket}/exists")
    small = ["--architecture", "unet", "--argument", "width=4", "--argument", "depth=1", "--epochs", 1, "--window", 16]
    trained = run(
        job_command("train_model", *small, *data, "--validation", "64:96", "--output", f"s3://{bucket}/model"), **store.environment
    )
    assert trained.returncode == 0, trained.stderr
    keys = {key for key in all_objects(store, bucket) if key.startswith("model")}
    assert {"model/model.json", "model/weights.safetensors", "model.run/epochs.csv", "model.run/curves.png", "model.run/run.json"} <= keys
    assert any(key.startswith("model.run/tensorboard/events") for key in keys) and not any("checkpoints/" in key for key in keys)
    scored = run(job_command("evaluate_model", f"s3://{bucket}/model", *data, "--output", f"s3://{bucket}/scores"), **store.environment)
    assert scored.returncode == 0, scored.stderr
    assert {"scores/report.html", "scores/scores.parquet"} <= set(all_objects(store, bucket))
