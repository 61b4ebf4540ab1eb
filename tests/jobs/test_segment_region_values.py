"""The main job with a model that predicts a number a pixel: resumed, on broken input, on a region, on a bucket."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from rio_cogeo import cog_validate

from pipeline.models.bundle import Bundle
from tests.inference.test_values import read_values, whole_values
from tests.jobs.test_object_storage import put_bundle, results
from tests.jobs.test_segment_region import SHARDS, break_block, files_of, last_record, mend_block, parts_of, segment
from tests.processes import descendants, end_group, job_command, run, start, titled, wait_for
from tests.servers import Store, put_file
from tests.toys import HEIGHT, smooth_noise, write_scene


def values(out: Path, scene: str = "scene") -> Path:
    return out / "scenes" / scene / "value.tif"


def table(out: Path, scene: str = "scene") -> dict:
    (row,) = pq.read_table(out / "results" / "values" / f"{scene}.parquet").to_pylist()
    return row


@pytest.mark.slow
def test_killed_and_resumed_it_has_the_bytes_of_a_run_that_nothing_disturbed(
    scene: Path, exact_regression: Bundle, ray_cluster, tmp_path: Path
):
    bundle = exact_regression
    undisturbed = run(segment(scene, bundle, tmp_path / "undisturbed", "--shard", 512), **ray_cluster)
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert "canopy height (m)" in undisturbed.stdout and "values, pictures" in undisturbed.stdout
    expected, out = files_of(tmp_path / "undisturbed"), tmp_path / "out"
    with rasterio.open(scene) as dataset:
        whole_HW = whole_values(bundle, dataset.read())
    assert read_values(values(tmp_path / "undisturbed")).tobytes() == whole_HW.tobytes()

    driver = start(segment(scene, bundle, out, "--shard", 512, "--workers", 1), **ray_cluster)
    try:
        wait_for(lambda: len(parts_of(out)) >= 2, 120)
    finally:
        end_group(driver)
    done = parts_of(out)
    assert 2 <= len(done) < 9 and not values(out).exists()
    resumed = run(segment(scene, bundle, out, "--shard", 512), **ray_cluster)
    assert resumed.returncode == 0, resumed.stderr
    assert done.items() <= parts_of(out).items() and files_of(out) == expected

    names = {str(path.relative_to(out)) for path in out.rglob("*.*") if path.parent.name in ("scene", "values")}
    assert names == {f"scenes/scene/{name}" for name in ("scene.json", "value.tif", "quicklook.png", "item.json")} | {
        "results/values/scene.parquet"
    }
    assert cog_validate(values(out), strict=True)[0]
    row, exact_HW = table(out), whole_HW.astype(float)
    assert (row["target_name"], row["unit"], row["model_id"]) == ("canopy height", "m", bundle.model_id)
    assert row["pixel_count"] == row["valid_pixel_count"] == whole_HW.size
    assert row["area_m2"] == pytest.approx(900 * whole_HW.size, rel=2e-3)
    assert (row["mean"], row["std"]) == (pytest.approx(exact_HW.mean(), rel=1e-13), pytest.approx(exact_HW.std(), rel=1e-12))
    assert (row["minimum"], row["maximum"]) == (whole_HW.min(), whole_HW.max())
    assert json.loads((out / "dataset.json").read_text())["target"]["name"] == "canopy height"


@pytest.mark.slow
def test_a_killed_actor_changes_no_byte(scene: Path, make_bundle, tmp_path: Path):
    bundle = make_bundle("unet", bands=3, exact=True, target=HEIGHT, width=16, depth=3)
    assert run(segment(scene, bundle, tmp_path / "undisturbed", "--shard", 512)).returncode == 0
    job = start(segment(scene, bundle, tmp_path / "out", "--shard", 512))
    try:
        wait_for(lambda: len(parts_of(tmp_path / "out")) >= 2, 120)
        os.kill(titled(descendants(job.pid), "ray::Worker")[0], signal.SIGKILL)
        out, err = job.communicate(timeout=300)
    finally:
        end_group(job)
    assert job.returncode == 0, out + err
    assert files_of(tmp_path / "out") == files_of(tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_block_that_cannot_be_read_is_nan_until_it_can(scene: Path, exact_regression: Bundle, ray_cluster, tmp_path: Path):
    with rasterio.open(scene) as dataset:
        whole_HW = whole_values(exact_regression, dataset.read())
    broken = Path(shutil.copy2(scene, tmp_path / "scene.tif"))
    whole = break_block(broken, band=1, row=5, col=1)
    out, folder = tmp_path / "out", tmp_path / "out" / "scenes" / "scene"
    first = run(segment(broken, exact_regression, out), **ray_cluster)
    assert first.returncode == 3, first.stderr
    assert "failed window" in first.stdout and "value.partial.tif" in first.stdout
    assert not values(out).exists() and not (out / "results").exists()
    partial_HW = read_values(folder / "value.partial.tif")
    assert np.isnan(partial_HW[1280:, 256:512]).all()
    known_HW = ~np.isnan(partial_HW)
    np.testing.assert_array_equal(partial_HW[known_HW], whole_HW[known_HW])
    windows = last_record(out)["scenes"][0]["failed_windows"]
    assert sum(window["height"] * window["width"] for window in windows) == (~known_HW).sum()

    accepted = run(segment(broken, exact_regression, tmp_path / "accepted", "--accept-partial"), **ray_cluster)
    assert accepted.returncode == 0, accepted.stderr
    np.testing.assert_array_equal(read_values(values(tmp_path / "accepted")), partial_HW)
    row = table(tmp_path / "accepted")
    assert (row["pixel_count"], row["valid_pixel_count"]) == (whole_HW.size, known_HW.sum())
    assert row["mean"] == pytest.approx(whole_HW[known_HW].astype(float).mean(), rel=1e-12)

    mend_block(broken, whole)
    second = run(segment(broken, exact_regression, out), **ray_cluster)
    assert second.returncode == 0 and "1 shard(s) to do" in second.stderr and len(parts_of(out)) == SHARDS
    assert not (folder / "value.partial.tif").exists()
    assert read_values(values(out)).tobytes() == whole_HW.tobytes()


@pytest.mark.slow
def test_scenes_regions_and_cleaning(exact_regression: Bundle, ray_cluster, tmp_path: Path):
    """Outside the region values are NaN; the table counts what is inside."""
    places = [write_scene(tmp_path / f"{name}.tif", smooth_noise(seed, (3, 700, 600))) for name, seed in (("a", 41), ("b", 42))]
    x, y = 301905.0, 4154085.0
    corners = [[x + 30 * col, y - 30 * row] for row, col in ((20.3, 300.1), (60.7, 550.2), (690.4, 400.9), (20.3, 300.1))]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32612"}}
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [corners]}}
    (tmp_path / "aoi.geojson").write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [feature]}))
    out = tmp_path / "out"
    done = run(segment(places[0], exact_regression, out, places[1], "--aoi", tmp_path / "aoi.geojson", "--clean"), **ray_cluster)
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if "mean" in line]) == 2, "a line a scene"
    assert not list(out.rglob("*.part"))
    for place in places:
        with rasterio.open(place) as dataset:
            whole_HW = whole_values(exact_regression, dataset.read())
        found_HW, row = read_values(values(out, place.stem)), table(out, place.stem)
        known_HW = ~np.isnan(found_HW)
        assert 0.1 < known_HW.mean() < 0.4 and row["pixel_count"] == row["valid_pixel_count"] == known_HW.sum()
        assert found_HW.shape == whole_HW.shape
        np.testing.assert_array_equal(found_HW[known_HW], whole_HW[known_HW])


@pytest.mark.slow
def test_a_bucket_holds_what_a_disk_would(store: Store, scene: Path, exact_regression: Bundle, tmp_path: Path):
    store.calm()
    put_file(store, scene, "values/scene.tif")
    local = run(segment(scene, exact_regression, tmp_path / "out", "--shard", 512))
    assert local.returncode == 0, local.stderr
    model = put_bundle(store, exact_regression, "values")
    command = ["segment_region", "s3://values/scene.tif", "--model", model, "--output", "s3://values/out", "--precision", "fp32"]
    done = run(job_command(*command, "--shard", 512), **store.environment)
    assert done.returncode == 0, done.stderr
    found = results(store, "values", "out")
    (tmp_path / "remote.tif").write_bytes(found["scenes/scene/value.tif"])
    assert read_values(tmp_path / "remote.tif").tobytes() == read_values(values(tmp_path / "out")).tobytes()
    (tmp_path / "remote.parquet").write_bytes(found["results/values/scene.parquet"])
    remote, here = pq.read_table(tmp_path / "remote.parquet").to_pylist()[0], table(tmp_path / "out")
    assert {**remote, "input_id": 0} == {**here, "input_id": 0}


def test_other_layers_are_refused_before_anything_is_written(scene: Path, exact_regression: Bundle, tmp_path: Path):
    refused = run(segment(scene, exact_regression, tmp_path / "out", "--save", "confidence"))
    said = "error: --save confidence: the model predicts canopy height, a number a pixel: only value can be saved\n"
    assert (refused.returncode, refused.stderr) == (2, said) and not (tmp_path / "out").exists()
