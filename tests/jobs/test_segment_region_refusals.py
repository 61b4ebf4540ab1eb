"""Bad input to the main job: exit 2, one line that names the thing and the fix, nothing left behind, no Ray started."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.models.bundle import Bundle
from tests.processes import job_command, run
from tests.toys import smooth_noise, write_scene

PROJECT = Path(__file__).parents[2]
main = runpy.run_path(str(PROJECT / "jobs" / "segment_region.py"))["main"]

Refusal = Callable[..., str]


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write_scene(tmp_path / "in" / "scene.tif", smooth_noise(40, (3, 90, 100)))


@pytest.fixture
def refusal(unet: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refusal:
    """Run the job in this process; returns its error line, after checking that it exits with 2 and leaves nothing."""
    monkeypatch.setitem(sys.modules, "cluster.run", None)  # no Ray: importing it would fail

    def refused(*arguments: object, model: object = unet.path, output: object = tmp_path / "out") -> str:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
        began = time.monotonic()
        code = main([*map(str, arguments), "--model", str(model), "--output", str(output)])
        assert time.monotonic() - began < 10
        captured = capsys.readouterr()
        lines = captured.err.strip().splitlines()
        assert code == 2, captured.err
        assert captured.out == "" and len(lines) == 1 and lines[0].startswith("error: ")
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
        assert not (tmp_path / "out").exists() or any((tmp_path / "out").iterdir())
        return lines[0]

    return refused


def test_scenes_that_are_not_there(refusal: Refusal, tmp_path: Path):
    assert "none.tif: no such file or folder" in refusal(tmp_path / "none.tif")
    assert "no file matches this pattern" in refusal(tmp_path / "*.jp2")
    (tmp_path / "empty").mkdir()
    assert "no rasters in this folder" in refusal(tmp_path / "empty")
    (tmp_path / "text.tif").write_text("hello")
    assert "text.tif: cannot be opened as a raster" in refusal(tmp_path / "text.tif")
    (tmp_path / "list.json").write_text("{}")
    assert "not a STAC item" in refusal(tmp_path / "list.json")
    assert "gs:// is not supported" in refusal("gs://bucket/scene.tif")


def test_scenes_that_do_not_fit(refusal: Refusal, tmp_path: Path, make_bundle):
    two = write_scene(tmp_path / "two.tif", np.zeros((2, 50, 50), np.uint8))
    assert "two.tif: has 2 bands without names, the model needs 3 (band_1, band_2, band_3)" in refusal(two)
    named = write_scene(tmp_path / "named.tif", np.zeros((3, 50, 50), np.uint8), descriptions=["red", "green", "nir"])
    rgb = make_bundle("identity", bands=3, classes=2, names=("red", "green", "blue"))
    assert "has no band blue; the model needs red, green, blue, the scene has red, green, nir" in refusal(named, model=rgb.path)


def test_bundles_that_are_wrong(refusal: Refusal, scene: Path, unet: Bundle, tmp_path: Path):
    assert "no such bundle" in refusal(scene, model=tmp_path / "none")
    broken = Path(shutil.copytree(unet.path, tmp_path / "broken"))
    with (broken / "weights.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    assert "weights.safetensors has SHA-256" in refusal(scene, model=broken)
    assert "is it a bundle?" in refusal(scene, model=scene.parent)


def test_outputs_that_cannot_be(refusal: Refusal, scene: Path, unet: Bundle, identity: Bundle, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    assert "is a file, not a folder" in refusal(scene, output=tmp_path / "file" / "out")
    assert "cannot write to" in refusal(scene, output="/proc/tilewright/out")
    (tmp_path / "taken").mkdir()
    description = {"schema_version": 1, "bundle": identity.model_id, "classes": identity.class_table, "parameters": {"precision": "fp32"}}
    (tmp_path / "taken" / "dataset.json").write_text(json.dumps(description))
    line = refusal(scene, output=tmp_path / "taken")
    assert "is another data set" in line and "bundle is" in line and "choose another --output" in line
    assert "gs:// is not supported" in refusal(scene, output="gs://bucket/out")


def test_regions_that_are_elsewhere(refusal: Refusal, scene: Path, tmp_path: Path):
    assert "lies outside the region that was asked for" in refusal(scene, "--bbox", 10, 50, 11, 51)
    assert "need west < east" in refusal(scene, "--bbox", 11, 50, 10, 51)
    assert "no such file (--aoi)" in refusal(scene, "--aoi", tmp_path / "none.geojson")
    (tmp_path / "aoi.geojson").write_text("not a vector file")
    assert "cannot be read as a vector file" in refusal(scene, "--aoi", tmp_path / "aoi.geojson")
    unplaced = write_scene(tmp_path / "unplaced.tif", np.zeros((3, 50, 50), np.uint8), crs=None)
    assert "has no CRS, so no --bbox or --aoi can be placed" in refusal(unplaced, "--bbox", -113, 37, -112, 38)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--parcels", "fields.gpkg"], "fields.gpkg: no such file (--parcels)"),
        (["--parcel-id", "id"], "--parcel-id id: is a column of a file of parcels: add --parcels FILE"),
        (["--mpp", "0.5"], "--mpp is not supported yet"),
        (["--precision", "fp8"], "--precision fp8: unknown; use auto, fp32"),
        (["--precision", "double"], "--precision double: unknown"),
        (["--min-area", "100"], "--min-area 100: is of polygons: add --save polygons"),
        (["--save", "polygons", "--simplify", "-1"], "--simplify -1: must be 0 or above"),
        (["--save", "logits"], "--save logits: unknown"),
        (["--tile", "many"], "--tile many: must be a whole number or auto"),
        (["--halo=-8"], "--halo -8: must be a whole number or auto or exact"),
        (["--workers", "0"], "--workers 0: must be a whole number"),
        (["--memory", "-1"], "--memory -1: must be above 0 GB"),
        (["--halo", "20", "--dry-run"], "--halo 20: must be a multiple of the network's stride, 8 px"),
        (["--shard", "700", "--dry-run"], "--shard 700"),
        (["--memory", "0.2", "--dry-run"], "choose a smaller --tile"),
    ],
)
def test_options_that_cannot_be(refusal: Refusal, scene: Path, options: list[str], message: str):
    assert message in refusal(scene, *options)


def test_a_refusal_after_ray_has_started_leaves_nothing(scene: Path, unet: Bundle, tmp_path: Path):
    done = run(job_command("segment_region", scene, "--model", unet.path, "--output", tmp_path / "out", "--tile", 100))
    assert done.returncode == 2 and done.stdout == ""
    assert "error: --tile 100: must be a multiple of the network's stride 8 px" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_bad_usage_is_2_and_help_shows_an_example():
    assert run(job_command("segment_region")).returncode == 2
    shown = run(job_command("segment_region", "--help"))
    assert shown.returncode == 0 and "example:" in shown.stdout and "exit code:" in shown.stdout


def test_dry_run_prints_the_plan_and_does_nothing(scene: Path, unet: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(scene), "--model", unet.path, "--output", str(tmp_path / "out"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for words in ("1 shards of 1024 px", "redundant compute", "GiB a worker", "disk at most", "worker(s), from one tile timed here"):
        assert words in shown
    assert not (tmp_path / "out").exists()


def test_too_little_disk_is_refused(scene: Path, unet: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from cluster.scenes import Request, check_space, open_scenes, plan_scene
    from pipeline.errors import Refused
    from pipeline.inference.plan import GIB, Resources, Settings
    from pipeline.models.choice import REFERENCE

    request = Request(tmp_path / "out", Settings())
    opened, _ = open_scenes([str(scene)], unet, None)
    plan = plan_scene(opened[0], unet, request, REFERENCE, Resources("cpu", 4 * GIB))
    check_space([plan], request.out, 1)
    monkeypatch.setattr("pipeline.imagery.storage.free_bytes", lambda _: 1000)
    with pytest.raises(Refused, match=r"may take .* GiB and .* are free: choose another --output"):
        check_space([plan], request.out, 1)
