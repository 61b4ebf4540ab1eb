"""Each question's answer equals what pandas computes from the files; a question reads only the files and rows it needs."""

from __future__ import annotations

from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from pipeline.errors import Refused, Unreadable
from pipeline.results.answers import ANSWER
from pipeline.results.monitoring import TABLES, open_monitoring
from pipeline.results.query import asked, read_queries
from tests.results.monitored import Monitored, write_results
from tests.toys import PROJECT

QUERIES = read_queries()
MADE = Monitored(parcels=300, dates=13, classes=4, districts=5, odd_id="it's <b>odd</b>")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two regions, of which the second ended earlier, has no districts' and no parcel's curve, and no change."""
    out = tmp_path_factory.mktemp("monitored")
    write_results(out, MADE)
    small = Monitored(parcels=40, dates=3, classes=4, districts=1, region="small", seed=9)
    write_results(out, small)
    (out / "results" / "series" / "small.parquet").unlink()
    return out


def ask(out: Path, name: str, region: str | None = None, **values: Any) -> pd.DataFrame:
    values = {"class" if key == "kind" else key: value for key, value in values.items()}
    with asked(open_monitoring(out, region), QUERIES[name], values) as connection:
        return connection.execute(f"FROM {ANSWER}").df()


def table(out: Path, name: str, region: str = "region") -> pd.DataFrame:
    """A table as pandas reads it file by file."""
    files = sorted((out / "results" / name).glob(f"**/{region}.parquet"))
    parts = []
    for file in files:
        part = pd.read_parquet(
            file, columns=["parcel_id", "district_id", "area_m2"] if name == "parcel_geometry" else None, partitioning=None
        )
        if file.parent.name.startswith("date="):
            part["date"] = pd.Timestamp(file.parent.name.removeprefix("date="))
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def test_every_question_says_what_it_tells_and_reads_tables_of_the_contract() -> None:
    assert sorted(QUERIES) == ["area_by_class", "changed_parcels", "data_gaps", "districts_by_change", "season_curve"]
    for query in QUERIES.values():
        assert query.sql.startswith("-- ") and 20 < len(query.about) < 140
        assert query.tables and query.parameters <= {"since", "until", "class", "parcel"} and {"since", "until"} <= query.parameters
        assert set(query.tables) <= set(TABLES)


@pytest.mark.parametrize(("since", "until", "kind"), [(None, None, None), (MADE.days[4], MADE.days[9], "maize")])
def test_area_by_class(out: Path, since: date | None, until: date | None, kind: str | None) -> None:
    found = ask(out, "area_by_class", "region", since=since, until=until, kind=kind)
    parcels, areas = table(out, "parcels"), table(out, "areas")
    days = [pd.Timestamp(day) for day in MADE.days if (since or day) <= day <= (until or day)]
    known = parcels[(parcels.state == "known") & parcels.date.isin(days)]
    known = known[known.class_name == kind] if kind else known
    expected = known.groupby(["date", "class_id"]).agg(area=("area_m2", "sum"), count=("is_dominant", "sum"))
    assert len(found) == len(expected) == len(days) * (1 if kind else 4)
    np.testing.assert_allclose(found.parcel_area_m2, expected.area, rtol=0, atol=0.0051)
    assert found.parcel_count.tolist() == expected["count"].tolist()
    whole = areas[areas.district_id.isna() & areas.date.isin(days) & ((areas.class_name == kind) if kind else True)]
    whole = whole.sort_values(["date", "class_id"])
    for name in ("area_m2", "share", "adjusted_area_m2", "low_m2", "high_m2"):
        assert found[name].tolist() == whole[name].tolist()


@pytest.mark.parametrize(("since", "until", "kind"), [(None, None, None), (MADE.days[5], MADE.days[8], None), (None, None, "forest")])
def test_changed_parcels(out: Path, since: date | None, until: date | None, kind: str | None) -> None:
    found = ask(out, "changed_parcels", since=since, until=until, kind=kind)
    changes = table(out, "changes").query("kind == 'class'").merge(table(out, "parcel_geometry"), on="parcel_id")
    changes = changes[(changes.since_date >= (since or date.min)) & (changes.since_date <= (until or date.max))]
    if kind:
        changes = changes[(changes.from_class_name == kind) | (changes.to_class_name == kind)]
    expected = changes.sort_values(["since_date", "parcel_id"])
    mine = found[found.region == "region"]
    assert len(mine) == len(expected) > 0
    for name in ("parcel_id", "area_m2", "from_class_name", "to_class_name"):
        assert mine[name].tolist() == expected[name].tolist()
    assert mine.district_id.fillna("").tolist() == expected.district_id.fillna("").tolist()
    assert (mine.from_class_name != mine.to_class_name).all() and (mine.before_date < mine.since_date).all()


@pytest.mark.parametrize("parcel", [MADE.odd_id, str(MADE.ids[-1])])
def test_season_curve(out: Path, parcel: str) -> None:
    since, until = MADE.days[2], MADE.days[10]
    found = ask(out, "season_curve", "region", parcel=parcel, since=since, until=until)
    indices, series, parcels = (
        each[(each.parcel_id == parcel) & (pd.to_datetime(each.date) >= str(since)) & (pd.to_datetime(each.date) <= str(until))]
        for each in (table(out, "indices"), table(out, "series"), table(out, "parcels"))
    )
    seen = found[found.state.notna()]
    assert seen.date.tolist() == indices.date.tolist() and seen.state.tolist() == indices.state.tolist() and len(seen) == 9
    np.testing.assert_array_equal(seen.observed, indices["mean"])
    assert seen[seen.state == "known"].class_name.tolist() == parcels[parcels.is_dominant == True].class_name.tolist()  # noqa: E712
    drawn = found[found.curve.notna()]
    assert pd.to_datetime(drawn.date).tolist() == pd.to_datetime(series.date).tolist() and len(drawn) == 20
    np.testing.assert_array_equal(drawn.curve, series.value)
    assert found.date.is_monotonic_increasing and found.date.is_unique


@pytest.mark.parametrize("since", [None, MADE.days[8]])
def test_districts_by_change(out: Path, since: date | None) -> None:
    found = ask(out, "districts_by_change", "region", since=since)
    changes, places = table(out, "changes"), table(out, "parcel_geometry")
    changes = changes[changes.since_date >= (since or date.min)]
    places["changed"] = places.parcel_id.isin(changes[changes.kind == "class"].parcel_id)
    places["fallen"] = places.parcel_id.isin(changes[changes.kind == "index"].parcel_id)
    places["changed_m2"] = places.area_m2 * places.changed
    expected = places.fillna({"district_id": "none"}).groupby("district_id").agg(
        count=("parcel_id", "size"), changed=("changed", "sum"), fallen=("fallen", "sum"),
        area=("area_m2", "sum"), part=("changed_m2", "sum"),
    )  # fmt: skip
    mine = found.fillna({"district_id": "none"}).set_index("district_id").loc[expected.index]
    assert mine.parcel_count.tolist() == expected["count"].tolist() and len(mine) == 6
    assert mine.changed_count.tolist() == expected.changed.tolist() and mine.fallen_count.tolist() == expected.fallen.tolist()
    np.testing.assert_allclose(mine.changed_share, expected.part / expected.area, rtol=1e-6, atol=1e-9)
    assert found.changed_share.is_monotonic_decreasing and found.place.tolist()[0] == 1


@pytest.mark.parametrize(("since", "until"), [(None, None), (MADE.days[1], MADE.days[4]), (MADE.days[4], MADE.days[4])])
def test_data_gaps(out: Path, since: date | None, until: date | None) -> None:
    found = ask(out, "data_gaps", "region", since=since, until=until)
    days = [number for number, day in enumerate(MADE.days) if (since or day) <= day <= (until or day)]
    states = np.array([MADE.states_at(number) for number in days])
    expected = {}
    for number, parcel in enumerate(MADE.ids):
        known = [MADE.days[day] for day, state in zip(days, states[:, number], strict=True) if state == 0]
        ends = [MADE.days[days[0]], *known, MADE.days[days[-1]]]
        longest = max((after - before for before, after in pairwise(ends)), default=timedelta())
        expected[parcel] = (len(known), int((states[:, number] == 1).sum()), int((states[:, number] == 2).sum()), longest.days)
    columns = ["known_dates", "unknown_dates", "outside_dates", "longest_gap_days"]
    told = {row.parcel_id: tuple(int(getattr(row, name)) for name in columns) for row in found.itertuples()}
    assert told == expected and len(found) == MADE.parcels
    assert found.longest_gap_days.is_monotonic_decreasing


def test_a_parcels_curve_needs_only_its_own_row_groups(tmp_path: Path) -> None:
    """All others may be destroyed, and files of other dates too, without its noticing. Long ids share their beginning."""
    made = Monitored(parcels=400, dates=4, file={"row_group_size": 100})
    write_results(tmp_path, made)
    since, until, parcel = made.days[1], made.days[2], str(made.ids[150])
    expected = ask(tmp_path, "season_curve", parcel=parcel, since=since, until=until)
    destroyed = 0
    for file in sorted((tmp_path / "results").glob("*/date=*/*.parquet")):
        if file.parent.parent.name != "areas":
            wanted = str(since) <= file.parent.name.removeprefix("date=") <= str(until)
            destroyed += destroy(file, parcel if wanted else "")
    pd.testing.assert_frame_equal(ask(tmp_path, "season_curve", parcel=parcel, since=since, until=until), expected)
    assert len(expected) > 2 and destroyed > 50
    with pytest.raises(Unreadable):
        ask(tmp_path, "season_curve", parcel=str(made.ids[350]))


def destroy(file: Path, parcel: str) -> int:
    """Overwrite the row groups that cannot hold a parcel; returns how many."""
    metadata, content, found = pq.read_metadata(file), bytearray(file.read_bytes()), 0
    for number in range(metadata.num_row_groups):
        columns = [metadata.row_group(number).column(column) for column in range(metadata.num_columns)]
        ids = next(column.statistics for column in columns if column.path_in_schema == "parcel_id")
        if not ids.min <= parcel <= ids.max:
            found += 1
            for column in columns:
                start = column.dictionary_page_offset or column.data_page_offset
                content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    file.write_bytes(content)
    return found


def test_the_files_open_with_partition_pruning_in_polars_and_pandas(out: Path) -> None:
    folder, day = out / "results" / "parcels", MADE.days[6]
    found = ask(out, "area_by_class", since=day, until=day)
    lazy = pl.scan_parquet(folder / "**/*.parquet", hive_partitioning=True).filter(pl.col("date") == day, pl.col("state") == "known")
    assert "1 other source" not in (plan := lazy.explain()) and str(day) in plan
    by_polars = lazy.group_by("class_id").agg(pl.col("area_m2").sum()).sort("class_id").collect()
    np.testing.assert_allclose(by_polars["area_m2"], found.parcel_area_m2, rtol=0, atol=0.0051)
    by_pandas = pd.read_parquet(folder, filters=[("date", "==", str(day)), ("state", "==", "known")]).groupby("class_id").area_m2.sum()
    np.testing.assert_allclose(by_pandas, found.parcel_area_m2, rtol=0, atol=0.0051)


def test_what_was_never_written_is_empty(out: Path) -> None:
    assert ask(out, "season_curve", "small", parcel="SI-00000003").curve.isna().all()
    small = ask(out, "area_by_class", "small")
    assert len(small) == 3 * 4 and set(ask(out, "area_by_class").region) == {"region", "small"}
    for file in (out / "results").glob("changes/small.parquet"):
        file.unlink()
    assert ask(out, "changed_parcels", "small").empty
    assert (ask(out, "districts_by_change", "small").changed_count == 0).all()


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("season_curve", {}, "name it with --parcel"),
        ("season_curve", {"parcel": "nobody\n"}, "has no parcel nobody"),
        ("area_by_class", {"kind": "rice"}, "has no class rice: it has cereals"),
        ("area_by_class", {"parcel": "SI-00000003"}, "takes --since, --until, --class"),
        ("data_gaps", {"since": date(2018, 1, 1), "until": date(2017, 1, 1)}, "is after --until"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_in_one_line(out: Path, name: str, values: dict[str, Any], told: str) -> None:
    with pytest.raises(Refused, match=told) as refusal:
        ask(out, name, **values)
    assert "\n" not in str(refusal.value)


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    write_results(tmp_path, Monitored(parcels=20, dates=3))
    next((tmp_path / "results" / "changes").iterdir()).write_bytes(b"not a table")
    with pytest.raises(Unreadable, match=r"changes/region\.parquet"):
        ask(tmp_path, "changed_parcels")


def test_the_readmes_sql_runs(out: Path) -> None:
    """Every statement of its block on the tables of a monitoring, on these."""
    readme = (PROJECT / "README.md").read_text()
    (block,) = [block.partition("```")[0] for block in readme.split("```sql")[1:] if "OUT/results/parcels" in block.partition("```")[0]]
    with duckdb.connect() as connection:
        view, areas, unseen_in_june = block.replace("OUT/", f"{out}/").strip().removesuffix(";").split(";")
        connection.execute(view)
        answers = [connection.execute(sql).fetchall() for sql in (areas, unseen_in_june)]
    assert len({day for day, *_ in answers[0]}) == sum(day.month in (5, 6) for day in MADE.days)
    unseen = {parcel for region, parcel in answers[1] if region == "region"}
    june = np.array([MADE.states_at(number) for number, day in enumerate(MADE.days) if day.month == 6])
    assert unseen == set(MADE.ids[(june != 0).all(axis=0)])
