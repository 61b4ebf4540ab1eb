"""An analyst's questions by name, each an SQL file in queries/, asked of the tables of a monitoring.

The first line of a file says what it tells. Its parameters are $since and $until (dates, both included), $class (a name, or null)
and $parcel; of each it uses only some. It reads the tables by the names of their folders, with the columns `region` and `date`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import duckdb

from pipeline.errors import Refused, one_line
from pipeline.results.answers import ANSWER
from pipeline.results.monitoring import TABLES, Monitoring, listed

FOLDER = Path(__file__).parent / "queries"
WHOLE_TIME = {"since": date.min, "until": date.max}


@dataclass(frozen=True)
class Query:
    """A named question and the SQL that answers it."""

    name: str
    sql: str

    @property
    def about(self) -> str:
        return self.sql.partition("\n")[0].removeprefix("--").strip()

    @property
    def parameters(self) -> set[str]:
        return set(re.findall(r"\$(\w+)", self.sql))

    @property
    def tables(self) -> list[str]:
        return [table for table in TABLES if re.search(rf"\b(FROM|JOIN) {table}\b", self.sql)]


def read_queries() -> dict[str, Query]:
    """The questions by name, in order."""
    return {path.stem: Query(path.stem, path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.sql"))}


@contextmanager
def asked(monitoring: Monitoring, query: Query, values: Mapping[str, Any]) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that holds the answer, in order, as the table ANSWER, while the block lasts.

    `values` are what was asked for, by parameter; what is None was not. Raises Refused for what the query does not take or
    lacks, and for a parcel or class that is not there; Unreadable where a table cannot be read.
    """
    _check(query, values)
    given = {name: values.get(name) for name in query.parameters}
    given |= {name: end for name, end in WHOLE_TIME.items() if name in given and given[name] is None}
    tables = {*query.tables, "areas", "parcel_geometry"} if _named(values) else query.tables
    with monitoring.connected(tables) as connection:
        with monitoring.reading():
            _check_named(monitoring, connection, values)
            connection.execute(f"CREATE TEMP TABLE {ANSWER} AS {query.sql}", given)
        yield connection


def _check(query: Query, values: Mapping[str, Any]) -> None:
    unused = next((name for name, value in values.items() if value is not None and name not in query.parameters), None)
    if unused:
        takes = listed([f"--{name}" for name in ("parcel", "since", "until", "class") if name in query.parameters])
        raise Refused(f"--{unused}: is not of the query {query.name}, which takes {takes}")
    if "parcel" in query.parameters and values.get("parcel") is None:
        raise Refused(f"the query {query.name} is of one parcel: name it with --parcel ID")
    since, until = values.get("since"), values.get("until")
    if since and until and since > until:
        raise Refused(f"--since {since} is after --until {until}")


def _named(values: Mapping[str, Any]) -> bool:
    return values.get("class") is not None or values.get("parcel") is not None


def _check_named(monitoring: Monitoring, connection: duckdb.DuckDBPyConnection, values: Mapping[str, Any]) -> None:
    parcel, kind = values.get("parcel"), values.get("class")
    if parcel is not None and not connection.execute("SELECT 1 FROM parcel_geometry WHERE parcel_id = ? LIMIT 1", [parcel]).fetchone():
        raise Refused(f"{monitoring.out}: has no parcel {one_line(parcel)}: its ids are in results/parcel_geometry")
    if kind is None:
        return
    classes = [name for (name,) in connection.execute("SELECT DISTINCT class_name FROM areas ORDER BY class_name").fetchall()]
    if kind not in classes:
        raise Refused(f"{monitoring.out}: has no class {one_line(kind)}: it has {listed(classes)}")
