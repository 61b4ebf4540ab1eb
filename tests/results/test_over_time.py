"""Series, seasons and changes of a region: what the arrays say, the same bytes in any order of arrival, nothing done twice."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import Refused
from pipeline.imagery import storage
from pipeline.results import curves
from pipeline.results.changes import ChangeSettings
from pipeline.results.curves import CurveSettings
from pipeline.results.history import find_sources, read_history, read_region
from pipeline.results.over_time import TABLES, OverTimeSettings, longest_gaps, write_over_time
from pipeline.results.phenology import PhenologySettings
from pipeline.results.seasons import SeasonSettings, SeasonWindow
from pipeline.results.tables import CHANGES, INDICES, MONITORING_SCHEMA_VERSION, PARCELS, SEASONS, SERIES
from tests.results import monitored
from tests.results.monitored import MODEL_ID, NAMES, Monitored, write_date, write_geometry
from tests.servers import Store, put_file

MADE = Monitored(parcels=300, dates=30, classes=4, step_days=8)
SETTINGS = OverTimeSettings()
SCHEMAS = {"series": SERIES, "seasons": SEASONS, "changes": CHANGES}


def write_dates(results: Path, numbers: list[int], made: Monitored = MADE) -> Path:
    for number in numbers:
        write_date(results, made, number)
    write_geometry(results, made)
    return results


def tables(results: Path) -> dict[str, bytes]:
    return {kind: (results / kind / "region.parquet").read_bytes() for kind in TABLES}


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of which everything over time was made."""
    results = write_dates(tmp_path_factory.mktemp("results"), list(range(MADE.dates)))
    assert write_over_time(results, "region", SETTINGS, MODEL_ID).made
    return results


def rows(results: Path, kind: str, what: str = "*", more: str = "") -> list[tuple]:
    return duckdb.sql(f"SELECT {what} FROM '{results / kind / 'region.parquet'}' {more}").fetchall()


@pytest.mark.parametrize("kind", TABLES)
def test_tables_keep_the_contract(region: Path, kind: str):
    with pq.ParquetFile(region / kind / "region.parquet", pre_buffer=False) as file:
        assert file.schema_arrow.remove_metadata() == SCHEMAS[kind]
        metadata = file.schema_arrow.metadata
        table = file.read(use_threads=False)
    assert metadata[b"schema_version"].decode() == MONITORING_SCHEMA_VERSION
    assert set(table["input_id"].to_pylist()) == {metadata[b"input_id"].decode()}
    assert set(table["model_id"].to_pylist()) == {MODEL_ID}
    ids = table["parcel_id"].to_pylist()
    assert ids == sorted(ids) and (kind == "changes" or sorted(set(ids)) == MADE.ids.tolist())
    for field in SCHEMAS[kind]:
        assert field.nullable or table[field.name].null_count == 0, field.name


def test_curves_are_near_what_the_values_were_made_from(region: Path):
    found = rows(region, "series", "parcel_id, date, value", "WHERE value IS NOT NULL")
    assert len(found) > 0.9 * MADE.parcels * (MADE.dates - 1) * MADE.step_days / 5
    still = {parcel: number for number, parcel in enumerate(MADE.ids) if MADE.fallen_at[number] == MADE.dates}
    off = []
    for parcel, when, value in found[::13]:
        if parcel in still:
            number = still[parcel]
            off.append(value - MADE.ndvi(slice(number, number + 1), when)[0])
    assert np.sqrt(np.mean(np.square(off))) < 0.03 and abs(np.mean(off)) < 0.01


def test_seasons_are_those_of_the_curves_and_classes_those_of_most_dates(region: Path):
    """A parcel that changed has the class of most of its known dates; DuckDB counts them."""
    votes = {
        parcel: ids[0]
        for parcel, ids, counts in duckdb.sql(f"""
            SELECT parcel_id, list(class_id ORDER BY n DESC), list(n ORDER BY n DESC) FROM (
                SELECT parcel_id, class_id, sum(share * valid_share) AS n
                FROM read_parquet('{region}/parcels/*/region.parquet', hive_partitioning = true)
                WHERE state = 'known' GROUP BY ALL) GROUP BY parcel_id""").fetchall()
        if len(counts) < 2 or counts[0] > counts[1] + 1e-3
    }
    found = rows(region, "seasons", "parcel_id, season, state, class_id, class_name, class_share, class_dates, observation_count")
    assert len(found) == MADE.parcels
    for parcel, season, state, number, name, share, dates, seen in found:
        assert season == "2017" and state in ("known", "unknown", "growing")
        assert number == votes.get(parcel, number) and name == NAMES[number] and 0 < share <= 1 and dates == seen
    assert len(votes) > 0.9 * MADE.parcels
    peaks = duckdb.sql(f"""
        SELECT count(*), max(abs(datediff('day', peak_date, top))) FROM '{region}/seasons/region.parquet' JOIN (
            SELECT parcel_id, arg_max(date, value) AS top, max(value) AS value FROM '{region}/series/region.parquet' GROUP BY 1)
        USING (parcel_id) WHERE state = 'known' AND abs(value - peak_value) < 1e-6""").fetchall()[0]
    assert peaks[0] > 0.3 * MADE.parcels and peaks[1] <= 5  # a step, where rounded values are equal


def test_changes_are_those_that_were_made_up(region: Path):
    flips = rows(
        region, "changes", "parcel_id, before_date, since_date, confirmed_date, from_class_id, to_class_id", "WHERE kind = 'class'"
    )
    changed = {parcel: number for number, parcel in enumerate(MADE.ids) if MADE.changed_at[number] < MADE.dates}
    assert {flip[0] for flip in flips} <= set(changed)  # single wrong dates, 2 % of all, are none
    for parcel, before, since, confirmed, was, is_now in flips:
        number = changed[parcel]
        at = MADE.days[MADE.changed_at[number]]
        assert (was, is_now) == (MADE.truth[number], (MADE.truth[number] + 1) % MADE.classes)
        assert before < since < confirmed and before < at
    assert len(flips) > 0.5 * len(changed)
    drops = rows(region, "changes", "parcel_id, since_date, value_after, expected_after, q", "WHERE kind = 'index'")
    fallen = {parcel: number for number, parcel in enumerate(MADE.ids) if MADE.fallen_at[number] < MADE.dates}
    for parcel, since, after, expected, q in drops:
        assert parcel in fallen and since >= MADE.days[MADE.fallen_at[fallen[parcel]]]
        assert expected - after >= 0.1 and q <= 0.05


def test_a_second_time_nothing_is_done(region: Path):
    before = {kind: (region / kind / "region.parquet").stat().st_mtime_ns for kind in TABLES}
    assert not write_over_time(region, "region", SETTINGS, MODEL_ID).made
    assert {kind: (region / kind / "region.parquet").stat().st_mtime_ns for kind in TABLES} == before


def test_dates_that_come_late_are_replaced_or_go_leave_no_trace(region: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Any order of arrival ends in the bytes of one run over all dates."""
    results = write_dates(tmp_path, [7, 3, 29, 11])
    assert write_over_time(results, "region", SETTINGS, MODEL_ID).made
    write_dates(results, [number for number in range(MADE.dates) if number % 3])
    shutil.copytree(results / f"parcels/date={MADE.days[1]}", results / "parcels/date=2019-01-01")  # a date that goes again
    with monkeypatch.context() as before:
        before.setattr(monitored, "INPUT_ID", "first")
        write_date(results, replace(MADE, seed=5), 4)  # a first state of a scene, processed anew later
    assert write_over_time(results, "region", SETTINGS, MODEL_ID).dates == 22
    assert tables(results) != tables(region)
    shutil.rmtree(results / "parcels/date=2019-01-01")
    for number in (4, *range(0, MADE.dates, 3)):
        shutil.rmtree(results / f"parcels/date={MADE.days[number]}", ignore_errors=True)
    write_dates(results, [4, *reversed(range(0, MADE.dates, 3))])
    assert write_over_time(results, "region", SETTINGS, MODEL_ID).dates == MADE.dates
    assert tables(results) == tables(region)


def test_bytes_do_not_depend_on_the_batches_that_are_read(region: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.results.history.BATCH", 97)
    results = write_dates(tmp_path, list(range(MADE.dates)))
    write_over_time(results, "region", SETTINGS, MODEL_ID)
    assert tables(results) == tables(region)
    monkeypatch.setattr(curves, "CHUNK", 64)
    shutil.rmtree(results / "changes")
    write_over_time(results, "region", SETTINGS, MODEL_ID)
    for kind in TABLES:
        assert rows(results, kind) == rows(region, kind)


def test_a_table_that_is_missing_or_of_other_settings_is_made_anew(region: Path, tmp_path: Path):
    results = Path(shutil.copytree(region, tmp_path / "results"))
    (results / "changes/region.parquet").unlink()
    assert write_over_time(results, "region", SETTINGS, MODEL_ID).made and tables(results) == tables(region)
    for settings in (
        OverTimeSettings(curve=CurveSettings(smoothness=3.0)),
        OverTimeSettings(season=SeasonSettings((SeasonWindow("late", MADE.days[15], MADE.days[-1]),))),
        OverTimeSettings(changes=ChangeSettings(dates=2)),
    ):
        assert write_over_time(results, "region", settings, MODEL_ID).made
        assert not write_over_time(results, "region", settings, MODEL_ID).made
    assert {row[0] for row in rows(results, "seasons", "season")} == {"2017"}


def test_tables_of_another_model_are_left_out_by_name(region: Path, tmp_path: Path):
    results = Path(shutil.copytree(region, tmp_path / "results"))
    alien = results / f"parcels/date={MADE.days[2]}/region.parquet"
    with pq.ParquetFile(alien, pre_buffer=False) as file:
        table = file.read(use_threads=False)
    column = table.schema.get_field_index("model_id")
    pq.write_table(table.set_column(column, PARCELS.field("model_id"), pa.repeat(pa.scalar("f" * 64), len(table))), alien)
    done = write_over_time(results, "region", SETTINGS, MODEL_ID)
    assert done.made and done.ignored == (f"parcels of {MADE.days[2]}: of model {'f' * 16}, not of {MODEL_ID[:16]}",)
    none = write_over_time(results, "region", SETTINGS, "f" * 64)
    assert none.dates == 1 and len(none.ignored) == 2 * MADE.dates - 1
    assert {row[0] for row in rows(results, "seasons", "model_id")} == {"f" * 64}
    assert {row[0] for row in rows(results, "seasons", "state")} == {"unknown"}


def test_no_date_gives_empty_tables_and_another_region_is_not_touched(region: Path, tmp_path: Path):
    write_geometry(tmp_path, MADE)
    assert write_over_time(tmp_path, "region", SETTINGS, MODEL_ID) == (True, 0, (), 0, 0)
    assert all(rows(tmp_path, kind) == [] for kind in TABLES)
    assert not write_over_time(tmp_path, "region", SETTINGS, MODEL_ID).made
    assert find_sources(region, "elsewhere", MODEL_ID).tables == []


def test_history_is_what_the_tables_say(region: Path):
    """Against DuckDB, value for value."""
    place = read_region(region, "region")
    history = read_history(find_sources(region, "region", MODEL_ID), place.ids, "ndvi", [])
    assert place.ids.to_pylist() == MADE.ids.tolist()
    read = "read_parquet('{}/{}/*/*.parquet', hive_partitioning = true)".format
    pivot = duckdb.sql(f"""
        SELECT date, parcel_id, i.mean, i.valid_share, p.class_id FROM {read(region, "indices")} i
        LEFT JOIN (SELECT * FROM {read(region, "parcels")} WHERE is_dominant) p
        USING (date, parcel_id) WHERE i.state = 'known' AND index_name = 'ndvi'""").fetchall()
    assert len(pivot) == np.isfinite(history.values_TP).sum() == (history.classes_TP != 255).sum()
    at = {number: row for row, number in enumerate(MADE.days)}
    parcels = {parcel: number for number, parcel in enumerate(MADE.ids)}
    for when, parcel, mean, share, number in pivot:
        row, column = at[when if isinstance(when, date) else date.fromisoformat(str(when))], parcels[parcel]
        assert history.values_TP[row, column] == np.float32(mean) and history.shares_TP[row, column] == np.float32(share)
        assert history.classes[history.classes_TP[row, column]][0] == number


def test_tables_that_do_not_fit_are_refused_by_name(region: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    results = Path(shutil.copytree(region, tmp_path / "results"))
    with monkeypatch.context() as before:
        before.setattr(monitored, "INPUT_ID", "other")
        write_date(results, replace(MADE, parcels=299), 3)
    with pytest.raises(Refused, match=f"date={MADE.days[3]}.*(rows of ndvi for 300 parcels|not those of the region)"):
        write_over_time(results, "region", SETTINGS, MODEL_ID)
    write_date(results, MADE, 3)
    with pytest.raises(Refused, match=r"parcel_geometry.*there is none"):
        write_over_time(results, "elsewhere", SETTINGS, MODEL_ID)
    file = results / f"indices/date={MADE.days[0]}/region.parquet"
    with pq.ParquetFile(file, pre_buffer=False) as opened:
        table = opened.read(use_threads=False)
    names = table.set_column(
        table.schema.get_field_index("index_name"), INDICES.field("index_name"), pa.repeat(pa.scalar("evi"), len(table))
    )
    pq.write_table(names.replace_schema_metadata({"input_id": "new"}), file)
    with pytest.raises(Refused, match=r"several indices \(evi, ndvi\)"):
        write_over_time(results, "region", SETTINGS, MODEL_ID)
    assert write_over_time(results, "region", OverTimeSettings(index="ndvi"), MODEL_ID).made


def test_settings_of_a_config():
    said = {
        "curve": {"smoothness": 2.0},
        "season": {"index": "ndvi", "fraction": 0.5, "windows": [{"name": "2017", "from": "2016-11-01", "to": "2017-10-31"}]},
        "changes": {"dates": 4},
    }
    window = SeasonWindow("2017", date(2016, 11, 1), date(2017, 10, 31))
    assert OverTimeSettings.parse(said) == OverTimeSettings(
        "ndvi", CurveSettings(smoothness=2.0), SeasonSettings((window,), phenology=PhenologySettings(0.5)), ChangeSettings(dates=4)
    )
    assert OverTimeSettings.parse({}) == OverTimeSettings()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"curve": {"lambda": 1}}, "curve: lambda: no such setting"),
        ({"curve": {"smoothness": -1}}, "curve: need"),
        ({"season": {"windows": "2017"}}, "windows: must be a list"),
        ({"season": {"fraction": 2}}, "season: need 0 <= fraction"),
        ({"changes": {"dates": "three"}}, "changes: "),
    ],
)
def test_settings_that_are_none_are_refused_by_name(said: dict, message: str):
    with pytest.raises(Refused, match=message):
        OverTimeSettings.parse(said)


def test_gaps_are_the_longest_without_an_observation():
    days = np.array([10, 20, 50, 55])
    seen = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]], bool)
    assert longest_gaps(days, seen, 5, 80).tolist() == [30, 60, -1]


def test_the_same_bytes_in_a_bucket(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch):
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    results = write_dates(tmp_path, [0, 1, 2], replace(MADE, parcels=30, dates=3))
    for path in sorted(results.rglob("region.parquet")):
        put_file(store, path, f"over-time/results/{path.relative_to(results)}")
    write_over_time(results, "region", SETTINGS, MODEL_ID)
    place = storage.place_of("s3://over-time/results")
    assert write_over_time(place, "region", SETTINGS, MODEL_ID).made
    assert not write_over_time(place, "region", SETTINGS, MODEL_ID).made
    assert {kind: storage.read(place / kind / "region.parquet") for kind in TABLES} == tables(results)
