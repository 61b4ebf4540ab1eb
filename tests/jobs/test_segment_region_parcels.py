"""The main job with parcels: asked for at once or later, changed, elsewhere, and read by DuckDB."""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path

import duckdb
import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from rasterio.features import rasterize
from rasterio.transform import Affine

from pipeline.models.bundle import Bundle
from tests.jobs.test_segment_region import files_of, last_record, segment
from tests.processes import run
from tests.toys import PROJECT, UTM, smooth_noise, write_scene

main = runpy.run_path(str(PROJECT / "jobs" / "segment_region.py"))["main"]


def write_parcels(path: Path, boxes: list[tuple[float, float, float, float]]) -> Path:
    """Boxes in (col, row), left, top, right, bottom."""
    transform: Affine = UTM["transform"]
    polygons = [shapely.box(*(transform * (left, bottom)), *(transform * (right, top))) for left, top, right, bottom in boxes]
    frame = geopandas.GeoDataFrame({"field": [f"f{number:02d}" for number in range(len(boxes))]}, geometry=polygons, crs=UTM["crs"])
    frame.to_file(path)
    return path


BOXES = [(left, top, left + 31.5, top + 40.25) for left in range(0, 1300, 260) for top in range(100, 1400, 300)]


def test_at_once_later_and_again(
    scene: Path, exact_unet: Bundle, ray_cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    fields = write_parcels(tmp_path / "fields.gpkg", [*BOXES, (9000, 0, 9010, 10)])
    asked = ["--parcels", fields, "--parcel-id", "field"]
    at_once = run(segment(scene, exact_unet, tmp_path / "at once", "--save", "mask,confidence", *asked), **ray_cluster)
    assert at_once.returncode == 0, at_once.stderr
    table = tmp_path / "at once" / "results" / "parcels" / "scene.parquet"
    assert f"tables of parcels are in {table.parent}" in at_once.stdout
    assert f"note: {fields}: 1 of 26 parcels lie in no scene (f25)" in at_once.stderr
    rows = duckdb.sql(f"SELECT * FROM '{table}'").df()
    assert rows["parcel_id"].tolist() == [f"f{number:02d}" for number in range(25) for _ in range(5)]
    with rasterio.open(tmp_path / "at once" / "scenes" / "scene" / "mask.tif") as mask:
        mask_HW = mask.read(1)
    left, top, right, bottom = BOXES[7]
    fine = rasterize([shapely.box(left, top, right, bottom)], mask_HW.repeat(8, 0).repeat(8, 1).shape, transform=Affine.scale(1 / 8))
    wanted = np.bincount(mask_HW.repeat(8, 0).repeat(8, 1)[fine == 1], minlength=5) / 64
    assert rows["pixel_count"][35:40].to_numpy() == pytest.approx(wanted, abs=1)
    assert rows.groupby("parcel_id")["area_m2"].sum().to_numpy() == pytest.approx([31.5 * 40.25 * 900] * 25, rel=2e-3)

    monkeypatch.setitem(sys.modules, "cluster.run", None)  # no Ray: importing it would fail
    later = tmp_path / "later"
    shutil.copytree(tmp_path / "at once", later)
    shutil.rmtree(later / "results" / "parcels")
    command = [str(part) for part in segment(scene, exact_unet, later, "--save", "mask,confidence", *asked)[2:]]
    assert main(command) == 0
    assert "1 scene(s) were done already" in capsys.readouterr().out
    assert files_of(later) == files_of(tmp_path / "at once"), "later is as at once"
    before = {path: path.stat().st_mtime_ns for path in later.rglob("*") if path.is_file()}
    assert main(command) == 0 and last_record(later)["outcome"] == "done"
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing to do"
    write_parcels(fields, BOXES[:3])
    assert main(command) == 0
    assert duckdb.sql(f"SELECT count(*) FROM '{later / 'results' / 'parcels' / 'scene.parquet'}'").fetchall() == [(15,)]


@pytest.mark.parametrize(
    ("boxes", "crs", "message"),
    [
        ([(9000, 0, 9010, 10)], {}, "fields.gpkg: none of its 1 parcels lies in a scene: check its CRS, and the scenes"),
        ([(0, 0, 9, 9)], {"crs": None}, "scene.tif: has no place on the ground, so no parcel lies in it: assign its CRS"),
    ],
)
def test_parcels_that_are_elsewhere(
    unet: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], boxes: list[tuple[float, ...]], crs: dict[str, None], message: str
):
    fields = write_parcels(tmp_path / "fields.gpkg", boxes)
    there = write_scene(tmp_path / "scene.tif", smooth_noise(2, (3, 80, 90)), **crs)
    code = main([str(part) for part in segment(there, unet, tmp_path / "out", "--parcels", fields, "--parcel-id", "field")[2:]])
    assert code == 2 and message in capsys.readouterr().err and not (tmp_path / "out").exists()
