"""The tables of parcels: their rows by hand, their bytes, and a million parcels."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import duckdb
import numpy as np
import pyarrow.parquet as pq

from pipeline.imagery.raster import Grid, Scene
from pipeline.results.parcel_tables import MadeFrom, indices_table, parcels_table
from pipeline.results.tables import INDICES, MONITORING_SCHEMA_VERSION, PARCELS, read_rows, table_input_id, write_monitoring
from pipeline.results.zonal import KNOWN, OUTSIDE, UNKNOWN, ParcelStatistics

MADE = MadeFrom("f" * 64, "0123456789abcdef")
CLASSES = {0: "wheat", 1: "maize", 2: "rape"}


def scene(name: str, when: str | None) -> Scene:
    return Scene(name, f"{name}.tif", when, "v", Grid(1, 1, (1, 0, 0, 0, -1, 0), None), (), (1, 1), 10.0)


SCENES = [scene("one", "2024-05-01T10:00:00Z"), scene("other", None)]


def statistics(**changed: object) -> ParcelStatistics:
    index_P9 = np.arange(36.0).reshape(4, 9)
    index_P9[3, 1] = np.nan
    return ParcelStatistics(**{
        "state_P": np.array([KNOWN, UNKNOWN, OUTSIDE, KNOWN], np.uint8), "scene_P": np.array([0, 1, -1, 1], np.int32),
        "valid_share_P": np.array([1, 0.25, 0, 0.75]),
        "pixels_PK": np.array([[2.5, 0, 7.5], [9, 9, 9], [0, 0, 0], [1.5, 1.5, 0]]),
        "area_m2_PK": np.array([[250.0, 0, 750], [900, 900, 900], [0, 0, 0], [150, 150, 0]]),
        "confidence_PK": np.array([[200.0, 0, 300], [1, 1, 1], [0, 0, 0], [150, 75, 0]]),
        "indices": {"ndvi": index_P9, "ndwi": -index_P9},
    } | changed)  # fmt: skip


IDS, AREAS_M2 = np.array(["a", "b", "c", "d"], object), np.array([1000.0, 4000, 2000, 400])


def test_a_known_parcel_has_a_row_a_class_and_any_other_one(tmp_path: Path):
    table = parcels_table(IDS, AREAS_M2, statistics(), SCENES, CLASSES, MADE)
    write_monitoring(table, tmp_path / "a.parquet", MADE.input_id)
    rows = read_rows(tmp_path / "a.parquet")
    assert [(row["parcel_id"], row["class_id"]) for row in rows] == [
        ("a", 0),
        ("a", 1),
        ("a", 2),
        ("b", None),
        ("c", None),
        *zip("ddd", range(3), strict=True),
    ]
    assert rows[0] == {
        "parcel_id": "a", "scene_id": "one", "scene_datetime": datetime(2024, 5, 1, 10, tzinfo=UTC), "state": "known", "valid_share": 1.0,
        "class_id": 0, "class_name": "wheat", "pixel_count": 2.5, "area_m2": 250.0, "share": 0.25, "mean_confidence": 80.0,
        "is_dominant": False, "parcel_area_m2": 1000.0, "model_id": MADE.model_id, "input_id": MADE.input_id,
    }  # fmt: skip
    assert (rows[1]["pixel_count"], rows[1]["share"], rows[1]["mean_confidence"]) == (0, 0, None)
    assert [row["is_dominant"] for row in rows] == [False, False, True, None, None, True, False, False], "the lower id of two"
    nothing = dict.fromkeys(("class_id", "class_name", "pixel_count", "area_m2", "share", "mean_confidence", "is_dominant"))
    assert rows[3].items() >= {**nothing, "state": "unknown", "scene_id": "other", "scene_datetime": None, "valid_share": 0.25}.items()
    assert rows[4].items() >= {**nothing, "state": "outside", "scene_id": None, "valid_share": 0.0, "parcel_area_m2": 2000.0}.items()
    assert pq.read_schema(tmp_path / "a.parquet").equals(PARCELS)
    assert table_input_id(tmp_path / "a.parquet") == MADE.input_id
    assert pq.read_metadata(tmp_path / "a.parquet").metadata[b"schema_version"].decode() == MONITORING_SCHEMA_VERSION
    without = parcels_table(IDS, AREAS_M2, statistics(confidence_PK=None), SCENES, CLASSES, MADE)
    assert without["mean_confidence"].null_count == 8


def test_an_index_has_a_row_a_parcel(tmp_path: Path):
    write_monitoring(indices_table(IDS, statistics(), SCENES, MADE), tmp_path / "a.parquet", MADE.input_id)
    rows = read_rows(tmp_path / "a.parquet")
    assert pq.read_schema(tmp_path / "a.parquet").equals(INDICES)
    assert [(row["parcel_id"], row["index_name"]) for row in rows] == [(parcel, name) for parcel in "abcd" for name in ("ndvi", "ndwi")]
    assert (rows[0]["mean"], rows[0]["maximum"], rows[1]["p10"], rows[2]["mean"], rows[4]["median"]) == (0, 8, -3, None, None)
    assert rows[6]["std"] is None and rows[6]["mean"] == 27 and rows[6]["scene_id"] == "other"
    assert indices_table(IDS, statistics(indices={}), SCENES, MADE).num_rows == 0


def test_the_same_rows_are_the_same_bytes(tmp_path: Path):
    for name in "ab":
        write_monitoring(parcels_table(IDS, AREAS_M2, statistics(), SCENES, CLASSES, MADE), tmp_path / name, MADE.input_id)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_no_parcels_and_no_scenes_are_a_table_too(tmp_path: Path):
    nothing = {"state_P": np.zeros(4, np.uint8), "scene_P": np.full(4, -1), "valid_share_P": np.zeros(4)}
    none = statistics(**nothing, pixels_PK=np.zeros((4, 3)), area_m2_PK=np.zeros((4, 3)), indices={})
    assert parcels_table(IDS, AREAS_M2, none, [], CLASSES, MADE)["state"].to_pylist() == ["outside"] * 4
    empty = {name: value[:0] for name, value in vars(none).items() if isinstance(value, np.ndarray)}
    write_monitoring(parcels_table(IDS[:0], AREAS_M2[:0], statistics(**empty, indices={}), SCENES, CLASSES, MADE), tmp_path / "a", "x")
    assert read_rows(tmp_path / "a") == []


def test_a_million_parcels_take_seconds_and_duckdb_reads_them(tmp_path: Path):
    random, parcels = np.random.default_rng(1), 1_000_000
    area_PK = random.random((parcels, 5)) * 1000
    found = ParcelStatistics(
        np.where(random.random(parcels) < 0.9, KNOWN, UNKNOWN).astype(np.uint8), np.zeros(parcels, np.int32), random.random(parcels),
        area_PK / 100, area_PK, None, {},
    )  # fmt: skip
    ids = np.array([f"{number:08d}" for number in range(parcels)], object)
    started = perf_counter()
    table = parcels_table(ids, area_PK.sum(axis=1), found, SCENES, dict(enumerate("abcde")), MADE)
    write_monitoring(table, tmp_path / "a.parquet", MADE.input_id)
    assert perf_counter() - started < 60, "about 5 s on an idle machine"
    known = found.state_P == KNOWN
    total = duckdb.sql(f"SELECT class_name, sum(area_m2) FROM '{tmp_path / 'a.parquet'}' WHERE class_name NOT NULL GROUP BY ALL ORDER BY 1")
    assert all(math.isclose(area, wanted) for (_, area), wanted in zip(total.fetchall(), area_PK[known].sum(axis=0), strict=True))
    assert table.nbytes < 800e6
