"""A region is watched as a scheduler would: what is new is done, nothing is done twice, nothing that was right is lost."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio

from tests.jobs.watched import RULES, SIDE, Archive
from tests.processes import all_ended, end_group, job_command, run, start, wait_for
from tests.results.scenes import class_bundle
from tests.results.zones import EAST, WEST, corner
from tests.servers import Fault, Store, all_objects, put_file


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    made = Archive(tmp_path)
    made.fields()
    return made


def areas(archive: Archive, day: str) -> dict[str, float]:
    """Hectares of each class of the region."""
    table = pq.ParquetFile(archive.out / "results" / "areas" / f"date={day}" / "valley.parquet").read(use_threads=False)
    return {row["class_name"]: row["area_m2"] / 1e4 for row in table.to_pylist() if row["district_id"] is None}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_is_new_is_done_and_nothing_twice(archive: Archive, capsys: pytest.CaptureFixture[str]):
    archive.add("2017-05-01", green=0.25)
    archive.add("2017-05-11", green=0.5, clouds=0.5)
    assert archive.run() == 0
    assert "2 scene(s) segmented, tables of 2 date(s) made" in capsys.readouterr().out
    whole = (SIDE * 10) ** 2 / 1e4
    assert areas(archive, "2017-05-01") == pytest.approx({"green": whole / 4, "bare": whole * 3 / 4}, rel=3e-3)
    assert areas(archive, "2017-05-11") == pytest.approx({"green": whole / 4, "bare": whole / 4}, rel=3e-3), "clouds are no class"
    before = files(archive.out)
    assert archive.run() == 0
    assert "nothing new: 2 scene(s) of 2 date(s)" in capsys.readouterr().out
    assert files(archive.out) == before


def test_a_late_scene_is_placed_at_its_own_date_and_nothing_else_moves(archive: Archive):
    archive.add("2017-05-01")
    archive.add("2017-05-21")
    assert archive.run() == 0
    before = files(archive.out / "results" / "areas")
    archive.add("2017-05-11", green=0.75)
    assert archive.run() == 0
    assert archive.record()["dates"] == ["2017-05-11"]
    after = files(archive.out / "results" / "areas")
    assert before.items() <= after.items() and len(after) == 3


def test_the_order_of_arrival_does_not_matter(archive: Archive, tmp_path: Path):
    """Law: a late scene gives the bytes of one that came in time."""
    other = Archive(tmp_path / "other")
    other.folder.mkdir()
    other.fields()
    days = ["2017-05-01", "2017-05-11", "2017-05-21", "2017-06-20"]
    for day in days:
        archive.add(day)
    assert archive.run() == 0
    for day in reversed(days):
        other.add(day)
        assert other.run() == 0
    mine, its = (files(each.out / "results") for each in (archive, other))
    assert mine.keys() == its.keys()
    for name in mine:
        one, two = (pq.ParquetFile(each.out / "results" / name).read(use_threads=False) for each in (archive, other))
        same = [column for column in one.column_names if column != "input_id"]
        assert one.select(same).equals(two.select(same)), f"{name}, but for the path of the scenes"


def test_a_scene_that_was_processed_again_replaces_its_rows(archive: Archive):
    archive.add("2017-05-01", green=0.25, **{"grid:code": "MGRS-33TVM"})
    assert archive.run() == 0
    before = areas(archive, "2017-05-01")
    archive.add("2017-05-01", green=0.25, **{"grid:code": "MGRS-33TVM", "updated": "2018-01-01T00:00:00Z"})
    assert archive.run() == 0 and areas(archive, "2017-05-01") == before
    assert archive.record()["scenes_segmented"] == ["scene-2017-05-01"]
    archive.add("2017-05-01", name="product-again", green=0.75, **{"grid:code": "MGRS-33TVM", "s2:processing_baseline": "05.10"})
    assert archive.run() == 0
    assert areas(archive, "2017-05-01")["green"] == pytest.approx(3 * before["green"], rel=1e-3)
    assert len(archive.record()["superseded"]) == 1


def test_a_scene_that_fails_is_tried_again_and_stops_nothing(archive: Archive, capsys: pytest.CaptureFixture[str]):
    archive.add("2017-05-01")
    archive.add("2017-05-11")
    broken = archive.folder / "archive" / "scene-2017-05-11_B08.tif"
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    assert archive.run() == 3
    assert "scene-2017-05-11" in capsys.readouterr().err
    assert list(archive.record()["scenes_failed"]) == ["scene-2017-05-11"] and archive.record()["dates"] == ["2017-05-01"]
    broken.write_bytes(content)
    assert archive.run() == 0
    assert archive.record()["dates"] == ["2017-05-11"]


def test_a_date_whose_new_version_fails_stays_as_it_was(archive: Archive):
    archive.add("2017-05-01", green=0.25)
    assert archive.run() == 0
    before = files(archive.out / "results")
    archive.add("2017-05-01", green=0.75)
    broken = archive.folder / "archive" / "scene-2017-05-01_B08.tif"
    broken.write_bytes(broken.read_bytes()[:500])
    assert archive.run() == 3
    assert files(archive.out / "results") == before


def test_a_product_whose_new_processing_fails_keeps_the_rows_of_the_old(archive: Archive):
    archive.add("2017-05-01", name="old", **{"grid:code": "MGRS-33TVM"})
    archive.add("2017-05-01", name="neighbour", at=corner(EAST, 1600), **{"grid:code": "MGRS-33TVN"})
    assert archive.run() == 0
    before = files(archive.out / "results")
    archive.add("2017-05-01", name="new", **{"grid:code": "MGRS-33TVM", "s2:processing_baseline": "05.10"})
    (archive.folder / "archive" / "new_B08.tif").write_bytes(b"II*")
    assert archive.run() == 3 and files(archive.out / "results") == before


def test_without_indices_their_tables_go(archive: Archive):
    archive.add("2017-05-01")
    assert archive.run() == 0 and (archive.out / "results" / "indices").exists()
    assert archive.run(indices=None) == 0
    assert not list((archive.out / "results" / "indices").rglob("*.parquet"))


def test_a_scene_that_left_the_archive_takes_nothing_with_it(archive: Archive, capsys: pytest.CaptureFixture[str]):
    archive.add("2017-05-01", name="one")
    archive.add("2017-05-01", name="two", at=corner(EAST, 1600))
    assert archive.run() == 0
    before = files(archive.out / "results" / "areas")
    (archive.folder / "archive" / "two.json").unlink()
    archive.add("2017-05-11")
    assert archive.run() == 0
    assert "stays as it was" in capsys.readouterr().err
    assert before.items() <= files(archive.out / "results" / "areas").items()


def test_overlapping_scenes_of_two_zones_are_one_map(archive: Archive):
    """Totals are a single scene's, and the mosaic's index shows at each place the scene that counts."""
    archive.add("2017-05-01", name="clear", crs=EAST, green=0.5)
    archive.add("2017-05-01", name="cloudy", crs=WEST, at=corner(WEST, -100, 100), green=0.5, clouds=0.25, shape=(180, 180))
    archive.add("2017-05-02", name="clear-alone", crs=EAST, green=0.5)
    assert archive.run() == 0
    (folder,) = (archive.out / "models").iterdir()
    listed = json.loads((folder / "mosaics" / "date=2017-05-01" / "valley.json").read_text())
    assert [item["id"] for item in listed["features"]] == ["clear-mask", "cloudy-mask"]
    with rasterio.open(folder / "mosaics" / "date=2017-05-01" / "valley.gti.gpkg") as mosaic:
        top, left = mosaic.index(*corner(EAST, 5, -5))
        shown_HW = mosaic.read(1)[top : top + SIDE, left : left + SIDE]
    with rasterio.open(folder / "scenes" / "clear" / "mask.tif") as mask:
        differing = np.argwhere(shown_HW != mask.read(1))
    assert set(differing[:, 1]) <= {SIDE - 1}, "the first in order lies on top, but for GDAL's last column"
    both, alone = sum(areas(archive, "2017-05-01").values()), sum(areas(archive, "2017-05-02").values())
    assert alone < both < alone + 0.35 * (1.8e3 * 1.8e3 / 1e4)


def test_dates_are_chosen_and_a_dry_run_does_nothing(archive: Archive, capsys: pytest.CaptureFixture[str]):
    for day in ("2017-05-01", "2017-05-11", "2017-05-21"):
        archive.add(day)
    assert archive.run("--dry-run") == 0
    assert "3 new scene(s)" in capsys.readouterr().out and files(archive.out) == {}
    assert archive.run("--since", "2017-05-02", "--until", "2017-05-11") == 0
    assert archive.record()["dates"] == ["2017-05-11"]
    assert archive.run(lookback_days=1) == 0
    assert archive.record()["dates"] == ["2017-05-21"], "a day before the newest that is there, and what came since"
    assert archive.run("--backfill", lookback_days=1) == 0
    assert archive.record()["dates"] == ["2017-05-01"]


def test_another_model_is_tried_switched_to_and_back(archive: Archive, capsys: pytest.CaptureFixture[str]):
    archive.add("2017-05-01", green=0.5)
    archive.add("2017-05-11", green=0.5)
    assert archive.run() == 0
    first = json.loads((archive.out / "current.json").read_text())["model_id"][:16]
    before = files(archive.out / "results")
    stricter = [{"name": "green", "when": "(nir - red) / (nir + red) >= 0.999"}, {"name": "bare"}]
    assert archive.run(rules=stricter) == 2
    assert "--promote" in capsys.readouterr().err
    (archive.folder / "other.yaml").write_text(json.dumps({"rules": stricter}))
    assert archive.run("--promote", str(archive.folder / "other.yaml"), "--until", "2017-05-01") == 0
    said = capsys.readouterr().out
    assert "they agree on 50.00%" in said and "green -> bare" in said
    assert files(archive.out / "results") == before, "nothing moves until it is told to"
    (report,) = (archive.out / "promotions").iterdir()
    other = json.loads(report.read_text())["tried"][:16]
    assert archive.run("--switch", other) == 2 and "lacks 1 of the dates" in capsys.readouterr().err
    assert archive.run("--promote", str(archive.folder / "other.yaml")) == 0
    assert archive.run("--switch", other[:8]) == 0
    assert areas(archive, "2017-05-11")["green"] == 0
    assert archive.run() == 2, "the config still names the first"
    assert archive.run(rules=stricter) == 0
    assert archive.run("--switch", first) == 0
    assert files(archive.out / "results") == before


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"scenes": "nowhere/catalog.json"}, "nowhere"), ({"parcels": "nothing.gpkg"}, "nothing.gpkg"),
        ({"rules": None}, "a model (a bundle) or rules"),
        ({"region": "A/b"}, "must be a name"), ({"wishes": 1}, "wishes: no such key"), ({"indices": {"ndvi": "nir +"}}, "no formula"),
        ({"indices": {"ndvi": "(swir - red)"}}, "swir"), ({"since": "May"}, "must be a date"),
        ({"minimum_valid_share": 3}, "from 0.0 to 1.0"),
        ({"clouds": {"asset": "fog", "hidden": [1]}}, "fog"), ({"parcel_id": "number"}, "number"), ({"output": None}, "lacks output"),
        ({"rules": [{"name": "a", "when": "swir > 1"}, {"name": "b"}]}, "swir"), ({"bbox": [1, 2, 3]}, "must be [west"),
        ({"bbox": [1, 2, 3, 4]}, "region"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(archive: Archive, capsys: pytest.CaptureFixture[str], changes: dict, word: str):
    archive.add("2017-05-01")
    code = archive.run(**changes)
    said = capsys.readouterr().err
    assert code in (2, 3) and word in said and "Traceback" not in said
    assert code == 3 or files(archive.out) == {}, "a run that is refused leaves nothing behind"


def test_a_candidate_that_is_no_model_is_refused_and_leaves_nothing(archive: Archive, capsys: pytest.CaptureFixture[str]):
    archive.add("2017-05-01")
    assert archive.run() == 0
    before = files(archive.out)
    (archive.folder / "broken.yaml").write_text("rules: [")
    (archive.folder / "empty.yaml").write_text("region: valley")
    stricter = [{"name": "green", "when": "nir >= 0.5"}, {"name": "bare"}]
    (archive.folder / "other.yaml").write_text(json.dumps({"rules": stricter}))
    tried = [("missing.yaml", "no such file", {}), ("broken.yaml", "not valid YAML", {}), ("empty.yaml", "holds no rules", {}),
             ("other.yaml", "nothing.gpkg", {"parcels": "nothing.gpkg"})]  # fmt: skip
    for name, word, changes in tried:
        capsys.readouterr()
        assert archive.run("--promote", str(archive.folder / name), **changes) == 2
        said = capsys.readouterr().err
        assert word in said and len(said.splitlines()) == 1
    assert files(archive.out) == before


def test_a_region_that_is_all_cloud_is_unknown_not_zero(archive: Archive):
    archive.add("2017-05-01", clouds=1.0)
    assert archive.run() == 0
    table = pq.ParquetFile(archive.out / "results" / "areas" / "date=2017-05-01" / "valley.parquet").read(use_threads=False)
    assert table["share"].null_count == len(RULES) and np.allclose(table["seen_area_m2"], (SIDE * 10) ** 2, rtol=3e-3)


def test_an_empty_archive_and_scenes_without_a_date_are_named(archive: Archive, capsys: pytest.CaptureFixture[str]):
    (archive.folder / "archive").mkdir()
    catalogue = archive.folder / "archive" / "catalog.json"
    catalogue.write_text(json.dumps({"type": "Catalog", "links": []}))
    assert archive.run() == 2 and "lists no scenes" in capsys.readouterr().err
    undated = json.loads(archive.add("2017-05-01").read_text())
    undated["properties"]["datetime"] = None
    (archive.folder / "archive" / "scene-2017-05-01.json").write_text(json.dumps(undated))
    assert archive.run() == 2 and "has no date: give its STAC item a datetime" in capsys.readouterr().err
    archive.add("2017-05-11")
    assert archive.run() == 3 and archive.record()["dates"] == ["2017-05-11"]
    assert archive.run("--until", "2017-05-10") == 3, "nothing in these dates is no error of its own; the undated scene still is"


def test_parcels_that_no_scene_reaches_are_named(archive: Archive, capsys: pytest.CaptureFixture[str]):
    archive.add("2017-05-01")
    archive.fields(rows=9, cols=2)  # 1800 m down, the scene has 1600
    assert archive.run() == 0
    assert "2 parcel(s) lie in no scene of the dates that were made (r8c0, r8c1)" in capsys.readouterr().err


def test_two_runs_at_once_are_safe_and_a_killed_one_is_finished(archive: Archive, tmp_path: Path):
    """Real processes on one OUT: the same tables as one undisturbed run, and no temporary file left."""
    for day in ("2017-05-01", "2017-05-11", "2017-05-21", "2017-05-31"):
        archive.add(day)
    assert archive.run("--output", str(tmp_path / "alone")) == 0
    command = job_command("monitor_crops", "--config", archive.config())
    killed = start(command)
    wait_for(lambda: list(archive.out.glob("models/*/scenes/*/mask.tif")), 120)
    killed.kill()
    end_group(killed)
    both = [start(command), start(command)]
    ends = all_ended(both)
    assert [process.returncode for process in both] == [0, 0], "\n".join(error for _, error in ends)
    assert files(archive.out / "results") == files(tmp_path / "alone" / "results")
    assert archive.run() == 0
    assert not [path for path in archive.out.rglob(".*") if "models" not in path.parts or "scenes" in path.parts]


def test_an_archive_and_its_results_in_a_bucket(archive: Archive, store: Store, capsys: pytest.CaptureFixture[str]):
    """With a store that fails now and then: the tables of a run on disk, and nothing to do the second time."""
    for day in ("2017-05-01", "2017-05-11"):
        archive.add(day)
    assert archive.run() == 0
    for path in [*sorted((archive.folder / "archive").iterdir()), archive.folder / "fields.gpkg"]:
        put_file(store, path, f"watched/{path.relative_to(archive.folder)}")
    config = archive.config(scenes="s3://watched/archive/catalog.json", output="s3://watched/out", parcels="s3://watched/fields.gpkg")
    store.fail(Fault(503, every=61), Fault("lose", method="PUT", every=31))
    done = run(job_command("monitor_crops", "--config", config), **store.environment)
    assert done.returncode == 0, done.stderr
    store.calm()
    again = run(job_command("monitor_crops", "--config", config), **store.environment)
    assert again.returncode == 0 and "nothing new: 2 scene(s)" in again.stdout, again.stderr
    assert not [path for method, path in store.requests if method == "PUT" and "/out/" in path and not path.endswith(".tmp")]
    there = {
        key.removeprefix("out/results/"): content
        for key, content in all_objects(store, "watched").items()
        if key.startswith("out/results/")
    }
    mine = files(archive.out / "results")
    assert there.keys() == mine.keys()
    for name, content in there.items():
        one, two = (pq.ParquetFile(io.BytesIO(each)).read(use_threads=False) for each in (content, mine[name]))
        same = [column for column in one.column_names if column != "input_id"]
        assert one.select(same).equals(two.select(same)), name


def test_a_model_of_several_dates_gets_its_stack(archive: Archive, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """May's median and June's best pixel: classes of the season, once it is over, and again when a late scene changes it."""
    bundle = class_bundle(tmp_path / "model", ("low", "high"), bands=("B08@05", "B08@06:best"))  # class 1 where May's B08 is above 0.5
    watched = {"rules": None, "model": bundle.path, "indices": None, "precision": "fp32"}
    for day, green in (("2017-05-02", 0.25), ("2017-05-12", 0.5), ("2017-05-22", 0.5), ("2017-06-11", 0.5)):
        archive.add(day, green=green)
    archive.add("2017-06-21", clouds=1.0)
    assert archive.run(**watched) == 0
    assert "nothing new: 0 scene(s)" in capsys.readouterr().out, "June may still bring scenes"
    archive.add("2017-07-01")
    assert archive.run("--dry-run", **watched) == 0
    assert "would build season-2017" in capsys.readouterr().err
    assert archive.run(**watched) == 0
    assert archive.record()["dates"] == ["2017-06-30"]
    whole = (SIDE * 10) ** 2 / 1e4
    assert areas(archive, "2017-06-30") == pytest.approx({"high": whole / 2, "low": whole / 2}, rel=3e-3)
    archive.add("2017-05-30", green=0.25)
    archive.add("2017-05-31", green=0.25)
    assert archive.run(**watched) == 0
    assert areas(archive, "2017-06-30")["high"] == pytest.approx(whole / 4, rel=3e-3)
    assert archive.run(**watched) == 0 and "nothing new: 1 scene(s)" in capsys.readouterr().out
