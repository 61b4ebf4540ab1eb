"""What a region's report tells, asked of the tables of a monitoring: areas by date, classes, curves, gaps, districts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date
from typing import Any, NamedTuple

import duckdb

from pipeline.results.query import WHOLE_TIME, read_queries
from pipeline.results.time_charts import Series

SEEN_ENOUGH = 0.5  # of the region: what shows less says little of it
SAMPLED = 2000  # parcels of a class whose curves are taken: their quartiles are within 2 % of those of all
POINTS = 160  # of a curve
GAPS_SHOWN = 10


class ClassArea(NamedTuple):
    """The area of a class in a region or district on a day, with its error-adjusted estimate where there is one."""

    day: date
    district_id: str | None
    class_id: int
    class_name: str
    area_m2: float
    share: float | None
    valid_area_m2: float
    seen_area_m2: float
    adjusted_area_m2: float | None
    low_m2: float | None
    high_m2: float | None


class Coverage(NamedTuple):
    """How much of the region is told by each day: the share of the largest area that any day's scenes reached."""

    days: list[date]
    shares: list[float]

    @property
    def told(self) -> list[date]:
        """The days that show enough of the region; all, where none does."""
        return [day for day, share in zip(self.days, self.shares, strict=True) if share >= SEEN_ENOUGH] or self.days

    @property
    def latest(self) -> date:
        """The last of those days, or the one that shows most."""
        if max(self.shares) >= SEEN_ENOUGH:
            return self.told[-1]
        return self.days[self.shares.index(max(self.shares))]


class ParcelClasses(NamedTuple):
    """The class that each known parcel has in the report, and what it is the class of."""

    title: str
    ids: list[str]
    classes: list[int]


class ClassCurve(NamedTuple):
    """Median and quartiles of an index over the parcels of a class."""

    class_id: int
    parcels: int
    days: list[date]
    low: list[float]
    median: list[float]
    high: list[float]

    def series(self, name: str, colour: str) -> Series:
        return Series(name, colour, self.days, self.median, self.low, self.high)


class Gaps(NamedTuple):
    """The parcels with the longest gaps of those that are known at times; how many of all have one of 30 days or more, and how many
    are never known."""

    rows: list[dict[str, Any]]
    long: int
    never: int
    median_days: int
    parcels: int


def parcel_totals(connection: duckdb.DuckDBPyConnection) -> tuple[int, float]:
    """How many parcels there are, and their area in square metres."""
    found = connection.execute("SELECT count(*), coalesce(sum(area_m2), 0) FROM parcel_geometry").fetchone()
    return found or (0, 0.0)


def class_areas(connection: duckdb.DuckDBPyConnection) -> list[ClassArea]:
    """Of the whole region, by day and class."""
    return _areas(connection, "district_id IS NULL", [])


def district_areas(connection: duckdb.DuckDBPyConnection, day: date) -> list[ClassArea]:
    """Of each district on a day; that of what lies in none has the id ""."""
    return _areas(connection, "district_id IS NOT NULL AND date = ?", [day])


def _areas(connection: duckdb.DuckDBPyConnection, which: str, values: list[Any]) -> list[ClassArea]:
    columns = "date, district_id, class_id, class_name, area_m2, share, valid_area_m2, seen_area_m2, adjusted_area_m2, low_m2, high_m2"
    sql = f"SELECT {columns} FROM areas WHERE {which} ORDER BY date, district_id, class_id"
    return [ClassArea(*row) for row in connection.execute(sql, values).fetchall()]


def coverage(areas: Sequence[ClassArea]) -> Coverage:
    """From the areas of the whole region."""
    by_day = {area.day: area for area in areas}
    most = max((area.seen_area_m2 for area in areas), default=0.0)
    return Coverage(list(by_day), [area.valid_area_m2 / most if most else 0.0 for area in by_day.values()])


def parcel_classes(connection: duckdb.DuckDBPyConnection) -> ParcelClasses:
    """The class of the latest season, or else of the last date on which a parcel is known; kept as the table `kinds`.

    A season that has only begun, with classes of less than half as many parcels as another, is not the latest.
    """
    told = connection.execute(
        "SELECT season, count(DISTINCT parcel_id) FROM seasons WHERE class_id IS NOT NULL GROUP BY season ORDER BY season"
    ).fetchall()
    most = max((parcels for _, parcels in told), default=0)
    season = next((name for name, parcels in reversed(told) if parcels >= most / 2), None)
    if season is not None:
        sql = "SELECT parcel_id, any_value(class_id) AS class_id FROM seasons WHERE season = ? AND class_id IS NOT NULL GROUP BY parcel_id"
        values, title = [season], f"class of the season {season}"
    else:
        sql = "SELECT parcel_id, arg_max(class_id, date) AS class_id FROM parcels WHERE is_dominant GROUP BY parcel_id"
        values, title = [], "class on the last date on which a parcel is known"
    connection.execute(f"CREATE OR REPLACE TEMP TABLE kinds AS {sql}", values)
    rows = connection.execute("SELECT parcel_id, class_id FROM kinds ORDER BY parcel_id").fetchall()
    return ParcelClasses(title, [name for name, _ in rows], [kind for _, kind in rows])


def main_index(connection: duckdb.DuckDBPyConnection) -> str | None:
    """The index that seasons are told by, or the first of all."""
    for table in ("seasons", "series", "indices"):
        found = connection.execute(f"SELECT min(index_name) FROM {table}").fetchone()
        if found and found[0] is not None:
            return str(found[0])
    return None


def curve_days(connection: duckdb.DuckDBPyConnection, index_name: str) -> list[date]:
    """The days of the curves, no more of them than a chart shows."""
    days = [
        day for (day,) in connection.execute("SELECT DISTINCT date FROM series WHERE index_name = ? ORDER BY 1", [index_name]).fetchall()
    ]
    return days[:: math.ceil(len(days) / POINTS) or 1]


def class_curves(connection: duckdb.DuckDBPyConnection, index_name: str, days: Sequence[date]) -> list[ClassCurve]:
    """Of each class of `kinds`, from evenly drawn parcels where it has many."""
    sql = """
        WITH numbered AS (
            SELECT parcel_id, class_id, row_number() OVER part AS number, count(*) OVER (PARTITION BY class_id) AS parcels
            FROM kinds WINDOW part AS (PARTITION BY class_id ORDER BY parcel_id)
        ),
        drawn AS (SELECT * FROM numbered WHERE number % ceil(parcels / $most)::BIGINT = 0)
        SELECT class_id, any_value(parcels), date, quantile_cont(value, [0.25, 0.5, 0.75])
        FROM series JOIN drawn USING (parcel_id)
        WHERE index_name = $index AND value IS NOT NULL AND date IN (SELECT unnest($days))
        GROUP BY class_id, date ORDER BY class_id, date
    """
    curves: dict[int, ClassCurve] = {}
    for class_id, parcels, day, quartiles in connection.execute(sql, {"index": index_name, "days": list(days), "most": SAMPLED}).fetchall():
        curve = curves.setdefault(class_id, ClassCurve(class_id, parcels, [], [], [], []))
        curve.days.append(day)
        for values, value in zip((curve.low, curve.median, curve.high), quartiles, strict=True):
            values.append(value)
    return list(curves.values())


def data_gaps(connection: duckdb.DuckDBPyConnection) -> Gaps:
    """By the query data_gaps, over all dates."""
    connection.execute(f"CREATE OR REPLACE TEMP TABLE gaps AS {read_queries()['data_gaps'].sql}", WHOLE_TIME)
    totals = connection.execute(
        "SELECT count(*) FILTER (longest_gap_days >= 30), count(*) FILTER (known_dates = 0), median(longest_gap_days), count(*) FROM gaps"
    ).fetchone() or (0, 0, 0, 0)
    return Gaps(
        _rows(connection, f"FROM gaps WHERE known_dates > 0 ORDER BY longest_gap_days DESC, parcel_id LIMIT {GAPS_SHOWN}"),
        totals[0],
        totals[1],
        round(totals[2] or 0),
        totals[3],
    )


def districts_by_change(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """By the query of that name, over all dates."""
    return _rows(connection, read_queries()["districts_by_change"].sql, {**WHOLE_TIME, "class": None})


def _rows(connection: duckdb.DuckDBPyConnection, sql: str, values: Any = None) -> list[dict[str, Any]]:
    answer = connection.execute(sql, values)
    names = [column[0] for column in answer.description or []]
    return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]
