"""The main job as a person runs it: three ways, resumed, on broken and on wrong input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from rasterio.shutil import copy
from rio_cogeo import cog_validate

from pipeline.inference.plan import Settings
from pipeline.inference.segment import segment_scene
from pipeline.models.bundle import Bundle
from tests.processes import alive, descendants, end_group, job_command, run, start, submit, titled, wait_for
from tests.toys import smooth_noise, write_scene

SHARDS = 4


def segment(scene: Path, bundle: Bundle, out: Path, *more: object) -> list[object]:
    return job_command("segment_region", scene, "--model", bundle.path, "--output", out, "--precision", "fp32", *more)


def files_of(out: Path) -> dict[str, bytes]:
    """All files of an OUT but the run records and manifests, which tell one run from another."""
    files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if not name.startswith(("runs", "traces")) and "manifest" not in name}


def parts_of(out: Path) -> dict[str, int]:
    """The parts that are there, and when each was made."""
    return {path.name: path.stat().st_mtime_ns for path in out.glob("scenes/*/parts/*/r*.part")}


def last_record(out: Path) -> dict:
    return json.loads(max((out / "runs").glob("*.json"), key=lambda path: path.stat().st_mtime_ns).read_text())


def read_mask(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def test_the_same_bytes_three_ways_and_from_the_library(scene: Path, exact_unet: Bundle, ray_cluster: dict[str, str], tmp_path: Path):
    library = tmp_path / "library.tif"
    sizes = ("--shard", 1024, "--tile", 512)  # which auto chooses by the number of workers too
    segment_scene(scene, exact_unet.path, library, settings=Settings(precision="fp32", shard=1024, tile=512))
    embedded = run(segment(scene, exact_unet, tmp_path / "embedded", *sizes))
    joined = run(segment(scene, exact_unet, tmp_path / "joined", "--workers", 1, *sizes), **ray_cluster)
    in_job = ["python", *segment(scene, exact_unet, tmp_path / "submitted", *sizes)[1:]]
    submitted = submit(in_job, **ray_cluster)
    for way in (embedded, joined, submitted):
        assert way.returncode == 0, way.stdout + way.stderr
        assert "class 1" in way.stdout
    assert f"progress {SHARDS}/{SHARDS} shards" in embedded.stderr
    expected = files_of(tmp_path / "embedded")
    assert sum("/parts/" in name for name in expected) == SHARDS + 1  # and the plan
    assert files_of(tmp_path / "joined") == expected
    assert files_of(tmp_path / "submitted") == expected
    mask = tmp_path / "embedded" / "scenes" / "scene" / "mask.tif"
    assert mask.read_bytes() == library.read_bytes()
    assert cog_validate(mask, strict=True)[0]
    assert [last_record(tmp_path / way)["workers"] for way in ("embedded", "joined")] == [2, 1]
    assert last_record(tmp_path / "submitted")["outcome"] == "done"


def test_a_second_start_does_nothing_and_says_so(identity: Bundle, ray_cluster: dict[str, str], tmp_path: Path):
    one_band = write_scene(tmp_path / "one.tif", smooth_noise(21, (1, 300, 300), high=200))
    out = tmp_path / "out"
    assert run(segment(one_band, identity, out), **ray_cluster).returncode == 0
    before = files_of(out)
    again = run(segment(one_band, identity, out), RAY_ADDRESS="127.0.0.1:1")  # no Ray is needed
    assert again.returncode == 0
    assert "1 scene(s) were done already" in again.stdout
    assert files_of(out) == before


def test_polygons_are_added_to_a_finished_scene_whose_parts_are_gone(identity: Bundle, ray_cluster: dict[str, str], tmp_path: Path):
    scene, out = write_scene(tmp_path / "one.tif", smooth_noise(22, (1, 300, 300), high=200)), tmp_path / "out"
    assert run(segment(scene, identity, out, "--clean"), **ray_cluster).returncode == 0
    before, folder = files_of(out), out / "scenes" / "one"
    added = run(segment(scene, identity, out, "--save", "mask,polygons", "--min-area", 9000), **ray_cluster)
    assert added.returncode == 0, added.stderr
    assert "0 shard(s) to do" in added.stderr
    changed = {name for name, content in files_of(out).items() if before.get(name) != content}
    assert changed == {"scenes/one/polygons.parquet", "scenes/one/item.json"}
    table = pq.read_table(folder / "polygons.parquet", columns=["area_m2", "pixel_count"])
    assert min(table["area_m2"].to_pylist()) >= 9000 and sum(table["pixel_count"].to_pylist()) == 300 * 300
    again = run(segment(scene, identity, out, "--save", "polygons", "--min-area", 9000), RAY_ADDRESS="127.0.0.1:1")
    assert again.returncode == 0 and "1 scene(s) were done already" in again.stdout


def test_a_killed_actor_or_driver_changes_no_byte(
    scene: Path, exact_unet: Bundle, ray_cluster: dict[str, str], slowly: dict[str, str], tmp_path: Path
):
    undisturbed = run(segment(scene, exact_unet, tmp_path / "undisturbed", "--shard", 512), **ray_cluster)
    assert undisturbed.returncode == 0, undisturbed.stderr
    expected = files_of(tmp_path / "undisturbed")

    actor_killed = start(segment(scene, exact_unet, tmp_path / "actor", "--shard", 512), **slowly)
    try:
        wait_for(lambda: len(parts_of(tmp_path / "actor")) >= 2, 120)
        victims = titled(descendants(actor_killed.pid), "ray::Worker")
        assert victims
        os.kill(victims[0], signal.SIGKILL)
        out, err = actor_killed.communicate(timeout=200)
    finally:
        end_group(actor_killed)
    assert actor_killed.returncode == 0, out + err
    assert files_of(tmp_path / "actor") == expected
    assert max(last_record(tmp_path / "actor")["scenes"][0]["attempts"].values()) > 1

    driver_killed = start(segment(scene, exact_unet, tmp_path / "driver", "--shard", 512), **slowly)
    try:
        wait_for(lambda: len(parts_of(tmp_path / "driver")) >= 3, 120)
        orphans = descendants(driver_killed.pid)
        os.kill(driver_killed.pid, signal.SIGKILL)
        workers = titled(orphans, "ray::Worker")
        wait_for(lambda: not alive(workers), 60)  # an actor may finish its shard before Ray ends it
    finally:
        end_group(driver_killed)
        for pid in alive(orphans):
            os.kill(pid, signal.SIGKILL)
    done = parts_of(tmp_path / "driver")
    assert 3 <= len(done) < 9
    assert not (tmp_path / "driver" / "scenes" / "scene" / "mask.tif").exists()
    resumed = run(segment(scene, exact_unet, tmp_path / "driver", "--shard", 512), **ray_cluster)
    assert resumed.returncode == 0, resumed.stderr
    assert f"{9 - len(done)} shard(s) to do" in resumed.stderr
    assert done.items() <= parts_of(tmp_path / "driver").items()  # what was finished was not done again
    assert files_of(tmp_path / "driver") == expected


def test_interrupted_says_so_and_leaves_a_record(scene: Path, exact_unet: Bundle, slowly: dict[str, str], tmp_path: Path):
    process = start(segment(scene, exact_unet, tmp_path / "out", "--shard", 512), **slowly)
    try:
        wait_for(lambda: parts_of(tmp_path / "out"), 120)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        end_group(process)
    assert process.returncode == 1
    assert "interrupted: start the same command again" in err
    assert "Traceback" not in err
    assert last_record(tmp_path / "out")["outcome"] == "interrupted"


def break_block(scene: Path, band: int, row: int, col: int) -> bytes:
    """Overwrite a compressed block in place, keeping the file's size and times; returns what was there."""
    with rasterio.open(scene) as dataset:
        offset = int(dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=band))
        size = int(dataset.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=band))
    with scene.open("rb") as file:
        file.seek(offset)
        whole = file.read(size)
    overwrite(scene, offset, b"\xff" * size)
    return offset.to_bytes(8, "big") + whole


def mend_block(scene: Path, whole: bytes) -> None:
    overwrite(scene, int.from_bytes(whole[:8], "big"), whole[8:])


def overwrite(scene: Path, offset: int, content: bytes) -> None:
    status = scene.stat()
    with scene.open("r+b") as file:
        file.seek(offset)
        file.write(content)
    os.utime(scene, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_block_that_cannot_be_read(scene: Path, exact_unet: Bundle, ray_cluster: dict[str, str], tmp_path: Path):
    expected = run(segment(scene, exact_unet, tmp_path / "expected"), **ray_cluster)
    assert expected.returncode == 0, expected.stderr
    whole_HW = read_mask(tmp_path / "expected" / "scenes" / "scene" / "mask.tif")
    broken = Path(shutil.copy2(scene, tmp_path / "scene.tif"))
    whole = break_block(broken, band=1, row=5, col=1)  # rows 1280 on, columns 256 to 512: the lower left shard
    out, results = tmp_path / "out", tmp_path / "out" / "scenes" / "scene"

    first = run(segment(broken, exact_unet, out), **ray_cluster)
    assert first.returncode == 3, first.stderr
    assert "failed window" in first.stdout and str(broken) in first.stdout
    assert (results / "mask.partial.tif").exists()
    assert not (results / "mask.tif").exists() and not (out / "results").exists() and not list(results.glob("parts/*/manifest.json"))
    partial_HW = read_mask(results / "mask.partial.tif")
    assert (partial_HW[1280:, 256:512] == 255).all()  # never zeros
    known_HW = partial_HW != 255
    np.testing.assert_array_equal(partial_HW[known_HW], whole_HW[known_HW])
    assert len(parts_of(out)) == SHARDS - 1 and len(list(results.glob("parts/*/*.partial"))) == 1
    record = last_record(out)
    assert (record["outcome"], record["exit_code"]) == ("failed on data", 3)
    windows = record["scenes"][0]["failed_windows"]
    assert sum(window["height"] * window["width"] for window in windows) == (~known_HW).sum()

    done = parts_of(out)
    mend_block(broken, whole)  # the file is as it was: only the reads succeed again
    second = run(segment(broken, exact_unet, out), **ray_cluster)
    assert second.returncode == 0, second.stderr
    assert "1 shard(s) to do" in second.stderr
    assert done.items() <= parts_of(out).items() and len(parts_of(out)) == SHARDS
    assert not (results / "mask.partial.tif").exists() and not list(results.glob("parts/*/*.partial"))
    np.testing.assert_array_equal(read_mask(results / "mask.tif"), whole_HW)

    whole = break_block(broken, band=1, row=5, col=1)
    accepted = run(segment(broken, exact_unet, tmp_path / "accepted", "--accept-partial"), **ray_cluster)
    assert accepted.returncode == 0, accepted.stderr
    np.testing.assert_array_equal(read_mask(tmp_path / "accepted" / "scenes" / "scene" / "mask.tif"), partial_HW)
    assert last_record(tmp_path / "accepted")["scenes"][0]["failed_windows"] == windows
    again = run(segment(broken, exact_unet, tmp_path / "accepted", "--accept-partial"), **ray_cluster)
    assert "were done already" in again.stdout  # for good

    mend_block(broken, whole)
    os.utime(broken)  # repaired in place: a changed input
    changed = run(segment(broken, exact_unet, tmp_path / "accepted"), **ray_cluster)
    assert changed.returncode == 0, changed.stderr
    assert f"{SHARDS} shard(s) to do" in changed.stderr
    np.testing.assert_array_equal(read_mask(tmp_path / "accepted" / "scenes" / "scene" / "mask.tif"), whole_HW)
    assert len(list((tmp_path / "accepted" / "scenes" / "scene" / "parts").iterdir())) == 2


def test_a_region_is_the_whole_scenes_mask_inside(scene: Path, exact_unet: Bundle, ray_cluster: dict[str, str], tmp_path: Path):
    library = tmp_path / "library.tif"
    segment_scene(scene, exact_unet.path, library, settings=Settings(precision="fp32", shard=512))
    x, y = 301905.0, 4154085.0
    corners = [[x + 30 * col, y - 30 * row] for row, col in ((520.3, 600.1), (560.7, 1250.2), (1390.4, 900.9), (520.3, 600.1))]
    aoi = {"type": "Polygon", "coordinates": [corners]}
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32612"}}
    (tmp_path / "aoi.geojson").write_text(json.dumps(
        {"type": "FeatureCollection", "crs": crs, "features": [{"type": "Feature", "properties": {}, "geometry": aoi}]}
    ))  # fmt: skip
    done = run(segment(scene, exact_unet, tmp_path / "out", "--shard", 512, "--aoi", tmp_path / "aoi.geojson"), **ray_cluster)
    assert done.returncode == 0, done.stderr
    with rasterio.open(tmp_path / "out" / "scenes" / "scene" / "mask.tif") as dataset:
        mask_HW = dataset.read(1)
        assert (dataset.height, dataset.width) == (1400 - 512, 1300 - 512)  # snapped outward to 512 px, clipped to the scene
        assert (dataset.transform.c, dataset.transform.f) == (x + 30 * 512, y - 30 * 512)
        rows, cols = np.mgrid[512:1400, 512:1300] + 0.5
    whole_HW = read_mask(library)[512:, 512:]
    inside_HW = np.ones(mask_HW.shape, bool)
    pixels = [((cx - x) / 30, (y - cy) / 30) for cx, cy in corners]
    for (c0, r0), (c1, r1) in pairwise(pixels):
        inside_HW &= (c1 - c0) * (rows - r0) - (r1 - r0) * (cols - c0) > 0
    assert 0.2 < inside_HW.mean() < 0.6
    np.testing.assert_array_equal(mask_HW, np.where(inside_HW, whole_HW, 255))
    table = pq.read_table(tmp_path / "out" / "results" / "areas" / "scene.parquet").to_pydict()
    assert sum(table["pixel_count"]) == inside_HW.sum()


def test_confidence_and_probabilities(scene: Path, unet: Bundle, ray_cluster: dict[str, str], tmp_path: Path):
    done = run(segment(scene, unet, tmp_path / "out", "--save", "mask,confidence,probabilities"), **ray_cluster)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out" / "scenes" / "scene"
    mask_HW, confidence_HW = read_mask(folder / "mask.tif"), read_mask(folder / "confidence.tif")
    with rasterio.open(folder / "probabilities.tif") as dataset:
        probabilities_KHW = dataset.read()
        assert dataset.descriptions == tuple(f"class {number}" for number in range(5))
    np.testing.assert_array_equal(probabilities_KHW.max(axis=0), confidence_HW)
    chosen_HW = np.take_along_axis(probabilities_KHW, mask_HW[None].astype(int), axis=0)[0]
    np.testing.assert_array_equal(chosen_HW, confidence_HW)
    assert confidence_HW.max() <= 100 and abs(probabilities_KHW.sum(axis=0).astype(int) - 100).max() <= 3
    table = pq.read_table(tmp_path / "out" / "results" / "areas" / "scene.parquet").to_pylist()
    for row in table:
        assert row["mean_confidence"] == pytest.approx(confidence_HW[mask_HW == row["class_id"]].mean())
    for name in ("confidence.tif", "probabilities.tif"):
        assert cog_validate(folder / name, strict=True)[0]


def test_scenes_share_one_out_and_a_bad_one_costs_only_itself(exact_unet: Bundle, ray_cluster: dict[str, str], tmp_path: Path):
    for number, folder in enumerate(("a", "b")):
        write_scene(tmp_path / folder / "same.tif", smooth_noise(30 + number, (3, 200, 260)))
    write_scene(tmp_path / "a" / "two.tif", smooth_noise(32, (2, 200, 260)))
    out = tmp_path / "out"
    done = run(segment(tmp_path / "a", exact_unet, out, tmp_path / "b" / "same.tif"), **ray_cluster)
    assert done.returncode == 3, done.stderr
    assert "has 2 bands without names, the model needs 3" in done.stderr
    folders = sorted(path.name for path in (out / "scenes").iterdir())
    assert len(folders) == 2 and folders[0] == "same" and folders[1].startswith("same-")
    assert sorted(path.stem for path in (out / "results" / "areas").iterdir()) == folders
    first = files_of(out)
    third = write_scene(tmp_path / "c" / "third.tif", smooth_noise(33, (3, 90, 80)))
    copy(third, tmp_path / "c" / "linked.vrt", driver="VRT")
    assert run(segment(third.parent, exact_unet, out, "--allow-vrt"), **ray_cluster).returncode == 0
    assert first.items() <= files_of(out).items()  # a scene that is added disturbs no other
    assert np.array_equal(*(read_mask(out / "scenes" / name / "mask.tif") for name in ("third", "linked"))), "actors follow it too"


def test_fresh_and_clean(exact_unet: Bundle, ray_cluster: dict[str, str], tmp_path: Path):
    scene = write_scene(tmp_path / "scene.tif", smooth_noise(34, (3, 200, 260)))
    out = tmp_path / "out"
    assert run(segment(scene, exact_unet, out, "--clean"), **ray_cluster).returncode == 0
    (attempt,) = (out / "scenes" / "scene" / "parts").iterdir()
    assert sorted(path.name for path in attempt.iterdir()) == ["manifest.json", "plan.json"]
    assert "done already" in run(segment(scene, exact_unet, out), **ray_cluster).stdout
    before = read_mask(out / "scenes" / "scene" / "mask.tif")
    assert run(segment(scene, exact_unet, out, "--fresh"), **ray_cluster).returncode == 0
    attempts = sorted(path.name for path in (out / "scenes" / "scene" / "parts").iterdir())
    assert attempts == [attempt.name, f"{attempt.name}-1"]
    with rasterio.open(out / "scenes" / "scene" / "mask.tif") as dataset:
        assert dataset.tags()["INPUT_ID"] == f"{attempt.name}-1"
        np.testing.assert_array_equal(dataset.read(1), before)
    assert "done already" in run(segment(scene, exact_unet, out), **ray_cluster).stdout


def test_what_another_device_or_version_began(exact_unet: Bundle, ray_cluster: dict[str, str], tmp_path: Path):
    """On another kind of device it is refused, whatever is left of it; with other versions it is finished, and that is said."""
    scene = write_scene(tmp_path / "scene.tif", smooth_noise(35, (3, 200, 260)))
    out = tmp_path / "out"
    first = run(segment(scene, exact_unet, out), **ray_cluster)
    assert first.returncode == 0 and "was begun" not in first.stderr
    before = read_mask(out / "scenes" / "scene" / "mask.tif")
    (plan,) = (out / "scenes" / "scene" / "parts").glob("*/plan.json")
    content = json.loads(plan.read_text())

    def again(**changed: object) -> subprocess.CompletedProcess[str]:
        for path in plan.parent.iterdir():
            path.unlink()
        plan.write_text(json.dumps(content | changed))
        return run(segment(scene, exact_unet, out), **ray_cluster)

    refused = again(device="cpu riscv64")
    assert refused.returncode == 2 and "was begun on cpu riscv64, this is cpu" in refused.stderr
    older = again(software={**content["software"], "numpy": "1.0", "forgotten": "2"})
    assert older.returncode == 0 and "scene.tif was begun with numpy 1.0 (here " in older.stderr and "forgotten" not in older.stderr
    np.testing.assert_array_equal(read_mask(out / "scenes" / "scene" / "mask.tif"), before)


def test_rays_copy_of_the_folder_is_small_and_enough(ray_cluster: dict[str, str]):
    look = "import os, pipeline, cluster; print(pipeline.__file__, cluster.__file__, os.getcwd(), os.listdir(), os.listdir('jobs'))"
    done = submit(["python", "-c", look], **ray_cluster)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "__init__.py" in line)
    pipeline_file, cluster_file, folder, listing = line.split(maxsplit=3)
    assert "working_dir_files" in folder
    assert pipeline_file == f"{folder}/pipeline/__init__.py" and cluster_file == f"{folder}/cluster/__init__.py"
    assert "'pipeline'" in listing and "segment_region.py" in listing
    for stays in (".git'", ".venv", "tests", "demo"):
        assert stays not in listing


def test_a_relative_output_is_refused_in_a_submitted_job(ray_cluster: dict[str, str], scene: Path, unet: Bundle):
    command = ["python", "jobs/segment_region.py", scene, "--model", unet.path, "--output", "relative"]
    done = submit(command, **ray_cluster)
    assert done.returncode == 1  # what Ray makes of exit code 2
    assert "error: --output relative: would be lost" in done.stdout + done.stderr


def test_an_intruder_cannot_join_the_embedded_ray(scene: Path, exact_unet: Bundle, slowly: dict[str, str], tmp_path: Path):
    job = start(segment(scene, exact_unet, tmp_path / "out", "--shard", 512), **slowly)
    try:
        wait_for(lambda: titled(descendants(job.pid), "ray::Worker"), 120)
        gcs = titled(descendants(job.pid), "gcs_server")[0]
        raylet = titled(descendants(job.pid), "--raylet_socket_name=")[0]
        words = Path(f"/proc/{raylet}/cmdline").read_bytes().decode().split("\0")
        port = next(word.rpartition(":")[2] for word in words if word.startswith("--gcs-address="))
        secrets = dict(entry.split("=", 1) for entry in Path(f"/proc/{gcs}/environ").read_text().split("\0") if "=" in entry)
        os.kill(job.pid, signal.SIGSTOP)  # the job must not end while the intruder tries
        join = "import ray; ray.init(address='127.0.0.1:%s', logging_level='CRITICAL', log_to_driver=False)"
        code = f"{join}; print(ray.get(ray.remote(num_cpus=0)(lambda: 'inside').remote()))"
        attempts = {
            "no token": {"RAY_AUTH_MODE": "disabled"},
            "a wrong token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
            "the job's own": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets["RAY_AUTH_TOKEN"]},
        }
        intruders = {name: start(["timeout", 40, "python", "-c", code % port], **environment) for name, environment in attempts.items()}
        inside = {name: "inside" in intruder.communicate()[0] for name, intruder in intruders.items()}
        assert inside == {"no token": False, "a wrong token": False, "the job's own": True}
    finally:
        os.kill(job.pid, signal.SIGCONT)
        end_group(job)
    assert not (Path.home() / ".ray" / "auth_token").exists() or time.time() - (Path.home() / ".ray" / "auth_token").stat().st_mtime > 60
