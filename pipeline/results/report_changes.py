"""The changed parcels that a report shows: what changed, the curve of each, and its pictures before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from functools import lru_cache
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely

from pipeline.imagery import storage
from pipeline.imagery.storage import Place
from pipeline.results.change_pictures import Pictures, draw_parcel, find_scene
from pipeline.results.time_charts import Series

SHOWN = 12  # of each kind
NEAR = 5  # scenes found again at once


class Change(NamedTuple):
    """A row of CHANGES with where the parcel lies."""

    parcel_id: str
    kind: str
    before_date: date
    since_date: date
    confirmed_date: date
    from_class_id: int | None
    from_class_name: str | None
    to_class_id: int | None
    to_class_name: str | None
    index_name: str | None
    value_before: float | None
    value_after: float | None
    expected_after: float | None
    q: float | None
    district_id: str | None
    area_m2: float | None


class Flow(NamedTuple):
    """How often a parcel went from one class to another, and the area of each time."""

    from_class_id: int
    from_class_name: str
    to_class_id: int
    to_class_name: str
    times: int
    area_m2: float


class Count(NamedTuple):
    """Changes of a kind, and the parcels that they are of."""

    changes: int
    parcels: int


def change_counts(connection: duckdb.DuckDBPyConnection) -> dict[str, Count]:
    """By kind."""
    rows = connection.execute("SELECT kind, count(*), count(DISTINCT parcel_id) FROM changes GROUP BY kind ORDER BY kind").fetchall()
    return {kind: Count(changes, parcels) for kind, changes, parcels in rows}


def flows(connection: duckdb.DuckDBPyConnection, most: int = 10) -> list[Flow]:
    """The largest."""
    sql = """
        SELECT from_class_id, from_class_name, to_class_id, to_class_name, count(*), coalesce(sum(area_m2), 0) AS moved
        FROM changes LEFT JOIN parcel_geometry USING (parcel_id)
        WHERE kind = 'class' GROUP BY ALL ORDER BY moved DESC, from_class_id, to_class_id LIMIT ?
    """
    return [Flow(*row) for row in connection.execute(sql, [most]).fetchall()]


def changed_ids(connection: duckdb.DuckDBPyConnection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT DISTINCT parcel_id FROM changes ORDER BY 1").fetchall()]


def latest_changes(connection: duckdb.DuckDBPyConnection, kind: str) -> list[Change]:
    """The latest change of each parcel, the latest of them and the largest parcels first."""
    columns = ", ".join(name for name in Change._fields)
    sql = f"""
        SELECT {columns} FROM changes LEFT JOIN parcel_geometry USING (parcel_id)
        WHERE kind = ? QUALIFY row_number() OVER (PARTITION BY parcel_id ORDER BY since_date DESC) = 1
        ORDER BY since_date DESC, area_m2 DESC NULLS LAST, parcel_id LIMIT {SHOWN}
    """
    return [Change(*row) for row in connection.execute(sql, [kind]).fetchall()]


def curves_of(
    connection: duckdb.DuckDBPyConnection, ids: Sequence[str], index_name: str, days: Sequence[date], colours: tuple[str, str]
) -> dict[str, list[Series]]:  # fmt: skip
    """Of each parcel what was observed, as dots, and its curve."""
    found: dict[str, list[Series]] = {}
    asked = (
        ("observed", "mean", "indices", "", colours[0], True),
        ("curve", "value", "series", "AND date IN (SELECT unnest($days))", colours[1], False),
    )
    for name, column, table, more, colour, dots in asked:
        sql = f"""
            SELECT parcel_id, date, {column} FROM {table}
            WHERE parcel_id IN (SELECT unnest($ids)) AND index_name = $index AND {column} IS NOT NULL {more} ORDER BY parcel_id, date
        """
        values: dict[str, Any] = {"ids": list(ids), "index": index_name, **({"days": list(days)} if more else {})}
        by_parcel: dict[str, tuple[list[date], list[float]]] = {}
        for parcel, day, value in connection.execute(sql, values).fetchall():
            some = by_parcel.setdefault(parcel, ([], []))
            some[0].append(day)
            some[1].append(value)
        for parcel, (told, numbers) in by_parcel.items():
            found.setdefault(parcel, []).append(Series(name, colour, told, numbers, dots=dots))
    return found


class Seen(NamedTuple):
    """A parcel on a date: its dominant class, and its pictures where the scene's mask is there."""

    class_name: str | None
    pictures: Pictures | None


def pictures_of(
    connection: duckdb.DuckDBPyConnection, geometry: Place, model: Place, changes: Sequence[Change],
    colours: Mapping[int, tuple[int, int, int]],
) -> dict[tuple[str, date], Seen]:  # fmt: skip
    """The pictures of changed parcels, by parcel and date: before the change, and since."""
    wanted = {(change.parcel_id, day) for change in changes for day in (change.before_date, change.since_date)}
    if not wanted:
        return {}
    sql = """
        SELECT parcel_id, date, scene_id, class_name FROM parcels
        WHERE parcel_id IN (SELECT unnest($ids)) AND date IN (SELECT unnest($days)) AND is_dominant ORDER BY parcel_id, date
    """
    ids, days = sorted({name for name, _ in wanted}), sorted({day for _, day in wanted})
    rows = [row for row in connection.execute(sql, {"ids": ids, "days": days}).fetchall() if row[:2] in wanted]
    shapes = shapes_of(geometry, ids)
    find = lru_cache(NEAR)(lambda scene_id: find_scene(model, scene_id))
    found = {}
    for parcel, day, scene_id, class_name in sorted(rows, key=lambda row: str(row[2])):
        files = find(scene_id) if scene_id else None
        pictures = draw_parcel(files, shapes[parcel], colours) if files and parcel in shapes else None
        found[parcel, day] = Seen(class_name, pictures)
    return found


def shapes_of(geometry: Place, ids: Sequence[str]) -> dict[str, shapely.Geometry]:
    """The geometries of some parcels, in EPSG:4326."""
    found = {}
    with storage.here(geometry) as path, pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(columns=["parcel_id", "geometry"], use_threads=False):
            some = batch.filter(pc.is_in(batch.column("parcel_id"), pa.array(ids, pa.string())))
            for name, shape in zip(some.column("parcel_id").to_pylist(), some.column("geometry").to_pylist(), strict=True):
                if shape is not None:
                    found[name] = shapely.from_wkb(shape)
    return found
