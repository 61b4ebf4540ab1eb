"""The areas table: its columns, its nulls, and the same sums in DuckDB, Polars and pandas over a folder of scenes."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio

from pipeline.geometry.windows import Window
from pipeline.imagery.catalogue import parse_datetime
from pipeline.imagery.region import Region
from pipeline.inference.tally import Tally, add_up
from pipeline.models.bundle import Bundle
from pipeline.results.publish import published_rows, table_path
from pipeline.results.tables import AREAS, areas_rows, table_input_id, write_table
from tests.results.scenes import Done, class_bundle, publish, stripes, value_bundle

CONTRACT = {
    "scene_id": "string", "scene_datetime": "timestamp[us, tz=UTC]", "class_id": "uint8", "class_name": "string",
    "pixel_count": "int64", "area_m2": "double", "share": "double", "mean_confidence": "double", "valid_pixel_count": "int64",
    "model_id": "string", "input_id": "string",
}  # fmt: skip
CONTRACT_OF_VALUES = {
    "scene_id": "string", "scene_datetime": "timestamp[us, tz=UTC]", "target_name": "string", "unit": "string", "pixel_count": "int64",
    "valid_pixel_count": "int64", "area_m2": "double", "mean": "double", "std": "double", "minimum": "double", "maximum": "double",
    "model_id": "string", "input_id": "string",
}  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return class_bundle(tmp_path_factory.mktemp("tables") / "bundle")


@pytest.fixture(scope="module")
def scenes(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> list[Done]:
    """Three scenes in one OUT: with and without a date, with confidence nowhere, one without a place, one of nodata only."""
    out = tmp_path_factory.mktemp("areas") / "out"
    return [
        publish(out, bundle, stripes(70, 90, corner=20), name="dated", datetime="2015-08-18T17:58:00+02:00"),
        publish(out, bundle, stripes(600, 40, classes=2), name="undated"),
        publish(out, bundle, stripes(9, 9, corner=9), name="nothing", crs=None),
    ]


def test_the_columns_are_the_contracts(scenes: list[Done]):
    for done in scenes:
        schema = pq.read_schema(table_path(done.ledger, "mask"))
        assert {field.name: str(field.type) for field in schema} == CONTRACT
        assert list(schema.names) == list(CONTRACT)
    assert {field.name: str(field.type) for field in AREAS} == CONTRACT


def test_the_counts_are_those_of_the_mask(scenes: list[Done]):
    for done, ids_HW in zip(scenes, (stripes(70, 90, corner=20), stripes(600, 40, classes=2), stripes(9, 9, corner=9)), strict=True):
        rows = pq.read_table(table_path(done.ledger, "mask")).to_pylist()
        assert [row["class_id"] for row in rows] == [0, 1, 2, 3], "a row a class, those without a pixel too"
        assert [row["pixel_count"] for row in rows] == [int((ids_HW == value).sum()) for value in range(4)]
        assert {row["valid_pixel_count"] for row in rows} == {int((ids_HW < 4).sum())}
        assert rows == done.published.rows


def test_areas_and_shares(scenes: list[Done]):
    """UTM pixels of 30 m, east of the central meridian: 900 square metres within the projection's scale."""
    rows = scenes[0].published.rows
    for row in rows:
        assert row["area_m2"] == pytest.approx(900 * row["pixel_count"], rel=2e-3)
    assert sum(row["share"] for row in rows) == pytest.approx(1, abs=1e-12)
    assert rows[1]["share"] == pytest.approx(rows[1]["area_m2"] / sum(row["area_m2"] for row in rows))
    assert rows[0]["scene_datetime"] == datetime(2015, 8, 18, 15, 58, tzinfo=UTC)


def test_nulls_stand_where_nothing_is_known(scenes: list[Done], bundle: Bundle):
    dated, undated, nothing = (done.published.rows for done in scenes)
    assert all(row["mean_confidence"] is None for row in dated + undated + nothing), "it was not saved"
    assert all(row["scene_datetime"] is None for row in undated + nothing)
    assert all(row["area_m2"] is None and row["share"] is None and row["valid_pixel_count"] == 0 for row in nothing)
    assert undated[3]["pixel_count"] == 0 and undated[3]["area_m2"] == 0 and undated[3]["share"] == 0
    plan, no_place = scenes[0].plan, Tally([3, 1, 0, 0], None, [240, 100, 0, 0])
    rows = areas_rows(plan, bundle, no_place, "i")
    assert [row["share"] for row in rows] == [0.75, 0.25, 0, 0], "of the pixels, where there is no area"
    assert [row["mean_confidence"] for row in rows] == [80, 100, None, None]


def test_the_mean_confidence_is_that_of_the_raster(bundle: Bundle, tmp_path: Path):
    done = publish(tmp_path / "out", bundle, stripes(50, 60, corner=10), layers=("mask", "confidence"))
    with rasterio.open(done.folder / "mask.tif") as mask, rasterio.open(done.folder / "confidence.tif") as confidence:
        ids_HW, percent_HW = mask.read(1), confidence.read(1)
    for row in done.published.rows:
        assert row["mean_confidence"] == pytest.approx(percent_HW[ids_HW == row["class_id"]].mean())


def test_pixels_that_cover_no_ground_have_no_share(scenes: list[Done], bundle: Bundle):
    """A corner of a geostationary view is valid sky."""
    rows = areas_rows(scenes[0].plan, bundle, Tally([5, 0, 0, 0], [0.0] * 4, None), "i")
    assert [row["share"] for row in rows] == [None] * 4 and rows[0]["pixel_count"] == 5


def test_duckdb_polars_and_pandas_agree_over_the_folder(scenes: list[Done]):
    folder = scenes[0].out / "results" / "areas"
    expected = dict.fromkeys(("forest", "crop", "built-up", "water"), 0)
    area_m2 = dict.fromkeys(expected, 0.0)
    for done in scenes:
        for row in done.published.rows:
            expected[row["class_name"]] += row["pixel_count"]
            area_m2[row["class_name"]] += row["area_m2"] or 0.0

    query = f"select class_name, sum(pixel_count), sum(coalesce(area_m2, 0)) from '{folder}/*.parquet' group by class_name"
    by_duckdb = {name: (int(pixels), area) for name, pixels, area in duckdb.sql(query).fetchall()}
    lazy = polars.scan_parquet(f"{folder}/*.parquet").group_by("class_name").agg(polars.sum("pixel_count", "area_m2"))
    by_polars = {name: (pixels, area) for name, pixels, area in lazy.collect().iter_rows()}
    grouped = pandas.read_parquet(folder).groupby("class_name")[["pixel_count", "area_m2"]].sum()
    by_pandas = {name: (int(row.pixel_count), row.area_m2) for name, row in grouped.iterrows()}
    for found in (by_duckdb, by_polars, by_pandas):
        assert {name: pixels for name, (pixels, _) in found.items()} == expected
        assert {name: area for name, (_, area) in found.items()} == pytest.approx(area_m2, rel=1e-12)
    (spans,) = duckdb.sql(
        f"select max(scene_datetime) - min(scene_datetime), count(distinct input_id) from '{folder}/*.parquet'"
    ).fetchall()
    assert spans[1] == 3


def test_a_table_written_twice_is_the_same_bytes(scenes: list[Done], tmp_path: Path):
    for name in ("a", "b"):
        write_table(scenes[0].published.rows, AREAS, tmp_path / name, "input-1")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_table_carries_its_input(scenes: list[Done], tmp_path: Path):
    for done in scenes:
        assert table_input_id(table_path(done.ledger, "mask")) == done.ledger.attempt == done.published.rows[0]["input_id"]
    write_table([], AREAS, tmp_path / "empty.parquet", "input-1")
    assert table_input_id(tmp_path / "empty.parquet") == "input-1"
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    whole = (tmp_path / "empty.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "torn.parquet").write_bytes(whole[:60] + b"\xff" * (len(whole) - 68) + whole[-8:])
    for name in ("other.parquet", "cut.parquet", "torn.parquet", "gone.parquet"):
        assert table_input_id(tmp_path / name) is None, name


def test_a_row_that_breaks_the_schema_is_not_written(scenes: list[Done], tmp_path: Path):
    row = scenes[0].published.rows[0]
    for broken in ({"class_id": 256}, {"pixel_count": "many"}):
        with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError, OverflowError)):
            write_table([row | broken], AREAS, tmp_path / "a.parquet", "i")


def test_totals_do_not_depend_on_the_order_of_the_parts():
    """Of areas as large as a continent, where float64 sums in another order differ."""
    chance, noise = random.Random(1), np.random.default_rng(1)
    tallies = [
        Tally(noise.integers(0, 10**9, 3).tolist(), (noise.uniform(0, 1, 3) * 10 ** noise.uniform(0, 13, 3)).tolist(), [1, 2, 3])
        for _ in range(200)
    ]
    total = add_up(tallies, 3)
    assert total.confidence == [200, 400, 600]
    assert total.pixels == np.sum([tally.pixels for tally in tallies], axis=0).tolist()
    assert total.area_m2 == pytest.approx(np.sum([tally.area_m2 for tally in tallies], axis=0), rel=1e-12)
    for _ in range(20):
        chance.shuffle(tallies)
        assert add_up(tallies, 3) == total


def test_totals_of_nothing():
    assert add_up([], 3) == Tally([0, 0, 0], None, None)
    assert add_up([Tally([1, 2, 3], None, None)], 3) == Tally([1, 2, 3], None, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2015-08-18T17:58:00Z", datetime(2015, 8, 18, 17, 58, tzinfo=UTC)),
        ("2015-08-18T17:58:00+05:30", datetime(2015, 8, 18, 12, 28, tzinfo=UTC)),
        ("2015-08-18T17:58:00.123456Z", datetime(2015, 8, 18, 17, 58, 0, 123456, tzinfo=UTC)),
        ("2015-08-18", datetime(2015, 8, 18, tzinfo=UTC)),
        ("2015-08-18T17:58:00", datetime(2015, 8, 18, 17, 58, tzinfo=UTC)),
        ("last summer", None),
        ("0000-00-00T00:00:00Z", None),
        ("", None),
        (None, None),
    ],
)
def test_times_are_utc(text: str | None, expected: datetime | None, scenes: list[Done], bundle: Bundle):
    assert parse_datetime(text) == expected
    plan = scenes[0].plan
    rows = areas_rows(replace(plan, scene=replace(plan.scene, datetime=text)), bundle, Tally([1, 0, 0, 0], None, None), "i")
    assert {row["scene_datetime"] for row in rows} == {expected}


# ---- values


def test_a_row_of_values_is_what_numpy_says_of_the_raster(tmp_path: Path):
    out, bundle = tmp_path / "out", value_bundle(tmp_path / "bundle")
    dated = publish(out, bundle, stripes(70, 90, corner=20), name="dated", datetime="2015-08-18T17:58:00+02:00")
    polygon = {"type": "Polygon", "coordinates": [[[10.2, 0], [80.7, 0], [80.7, 60], [10.2, 60], [10.2, 0]]]}
    part = publish(out, bundle, stripes(70, 90), name="part", region=Region(Window(0, 0, 70, 90), polygon))
    nothing = publish(out, bundle, stripes(9, 9, corner=9), name="nothing", crs=None)
    for done in (dated, part, nothing):
        schema = pq.read_schema(table_path(done.ledger, "value"))
        assert {field.name: str(field.type) for field in schema} == CONTRACT_OF_VALUES and list(schema.names) == list(CONTRACT_OF_VALUES)
        (row,) = done.published.rows
        assert pq.read_table(table_path(done.ledger, "value")).to_pylist() == [row] == published_rows(done.ledger, "value")
        assert (row["target_name"], row["unit"], row["model_id"]) == ("canopy height", "m", bundle.model_id)
        with rasterio.open(done.folder / "value.tif") as dataset:
            values_HW = dataset.read(1).astype(float)
        valid = values_HW[~np.isnan(values_HW)]
        assert row["valid_pixel_count"] == valid.size
        if valid.size:
            assert (row["minimum"], row["maximum"]) == (valid.min(), valid.max())
            assert row["mean"] == pytest.approx(valid.mean(), rel=1e-14) and row["std"] == pytest.approx(valid.std(), rel=1e-12)
            assert row["area_m2"] == pytest.approx(900 * valid.size, rel=2e-3)
    assert dated.published.rows[0]["pixel_count"] == 70 * 90 and dated.published.rows[0]["valid_pixel_count"] == 70 * 90 - 400
    assert part.published.rows[0]["pixel_count"] == part.published.rows[0]["valid_pixel_count"] == 60 * 71, "of the region"
    assert [nothing.published.rows[0][name] for name in ("mean", "std", "minimum", "maximum", "area_m2")] == [None] * 5
    query = f"select count(*), sum(mean * valid_pixel_count) / sum(valid_pixel_count) from '{out}/results/values/*.parquet'"
    ((scenes, mean),) = duckdb.sql(query).fetchall()
    rows = [done.published.rows[0] for done in (dated, part)]
    counts = [row["valid_pixel_count"] for row in rows]
    assert scenes == 3 and mean == pytest.approx(np.average([row["mean"] for row in rows], weights=counts))


COUNT_THREADS = """
import os, sys
from pathlib import Path
from pipeline.results.tables import read_rows, table_input_id
before = len(os.listdir("/proc/self/task"))
print(len(read_rows(Path(sys.argv[1]))), bool(table_input_id(Path(sys.argv[1]))), len(os.listdir("/proc/self/task")) - before)
"""


def test_reading_a_table_leaves_no_thread_behind(scenes: list[Done], tmp_path: Path):
    """One that outlives its reader aborts a process that ends soon after, now and then."""
    write_table(scenes[0].published.rows, AREAS, tmp_path / "a.parquet", "b")
    told = subprocess.run([sys.executable, "-c", COUNT_THREADS, tmp_path / "a.parquet"], capture_output=True, text=True, check=True)
    assert told.stdout.split() == [str(len(scenes[0].published.rows)), "True", "0"]
