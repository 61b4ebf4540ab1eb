"""The tables in OUT/results of a crop monitoring, as views of DuckDB that read only the files and row groups which a query needs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.errors import Refused, Unreadable, one_line
from pipeline.imagery import storage
from pipeline.imagery.storage import Place
from pipeline.results.tables import CHANGES, INDICES, PARCELS, PARTITION, REGION_AREAS, SEASONS, SERIES

DAILY = {"parcels": PARCELS, "indices": INDICES, "areas": REGION_AREAS}  # a folder a date: date=YYYY-MM-DD
WHOLE = {"series": SERIES, "seasons": SEASONS, "changes": CHANGES}
# without their geometry, which queries do not need
PLACES = {
    name: pa.schema([(key, pa.string()), *more, ("area_m2", pa.float64())])
    for name, key, more in (("parcel_geometry", "parcel_id", [("district_id", pa.string())]), ("districts", "district_id", []))
}
TABLES = tuple(DAILY) + tuple(WHOLE) + tuple(PLACES)
SETTINGS = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}  # nothing is downloaded


@dataclass(frozen=True)
class Monitoring:
    """An OUT that holds results of a monitoring, of one `region` of it or, where that is None, of all."""

    out: Place
    region: str | None = None

    @property
    def results(self) -> Place:
        return self.out / "results"

    @cached_property
    def dates(self) -> list[str]:
        """The dates of which there are results, YYYY-MM-DD, in order."""
        found = {name for table in DAILY for name in _partitions(self.results / table)}
        return sorted(name.removeprefix(PARTITION) for name in found)

    @cached_property
    def regions(self) -> list[str]:
        """The names of the regions, in order: those of the latest date, and of the tables of all dates."""
        folders = [self.results / table / f"{PARTITION}{self.dates[-1]}" for table in DAILY] if self.dates else []
        folders += [self.results / table for table in (*WHOLE, *PLACES)]
        return sorted({name.removesuffix(".parquet") for folder in folders for name in storage.names(folder) if name.endswith(".parquet")})

    def files(self, table: str) -> list[Place]:
        """The files of a table, of every date, in order."""
        top = self.results / table
        folders = [top / name for name in sorted(_partitions(top))] if table in DAILY else [top]
        wanted = f"{self.region}.parquet" if self.region else ".parquet"
        found = [folder / name for folder in folders for name in sorted(storage.names(folder)) if name.endswith(".parquet")]
        return [file for file in found if not self.region or file.name == wanted]

    @contextmanager
    def connected(self, tables: Iterable[str] = TABLES) -> Iterator[duckdb.DuckDBPyConnection]:
        """A DuckDB with a view of each table, with `date` from the folder's name and `region` from the file's.

        A table of which there is no file is empty. Buckets are read through fsspec, since DuckDB's own extension for them
        has to be downloaded. Raises Unreadable.
        """
        with tempfile.TemporaryDirectory(prefix="tilewright-") as spill:
            settings: dict[str, Any] = {**SETTINGS, "temp_directory": spill}
            with duckdb.connect(config=settings) as connection:
                connection.execute("SET enable_progress_bar = false")  # it would stand between the rows of a CSV
                store = storage.filesystem(self.out)
                if store is not None:
                    connection.register_filesystem(store)
                for table in tables:
                    self._add_view(connection, table)
                yield connection

    def _add_view(self, connection: duckdb.DuckDBPyConnection, table: str) -> None:
        files = self.files(table)
        if not files:
            connection.register(table, _empty(table))
            return
        names = ", ".join("'" + str(file).replace("'", "''") + "'" for file in files)
        hive = f"hive_partitioning = {str(table in DAILY).lower()}{', hive_types = {date: DATE}' if table in DAILY else ''}"
        columns = ", ".join(PLACES[table].names) if table in PLACES else "* EXCLUDE (filename)"
        with self.reading():
            connection.execute(
                f"CREATE VIEW {table} AS SELECT {columns}, parse_filename(filename, true) AS region"
                f" FROM read_parquet([{names}], {hive}, filename = true)"
            )

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Raises Unreadable where the tables cannot be read in the block."""
        try:
            yield
        except (duckdb.Error, OSError) as error:
            said = str(error).partition("\n")[0]
            raise Unreadable(f"{self.results}: cannot be read ({storage.told(OSError(said))[:300]})") from None


def open_monitoring(out: Place, region: str | None = None) -> Monitoring:
    """The monitoring of an OUT. Raises Refused where it holds none, or none of that region."""
    if storage.is_file(out):
        raise Refused(f"{out}: is a file: name the folder that jobs/monitor_crops.py wrote")
    found = Monitoring(out, region)
    if not found.dates:
        raise Refused(f"{out}: {_what_else(out)}: run jobs/monitor_crops.py with this --output first")
    if region is not None and region not in found.regions:
        raise Refused(f"{out}: has no region {one_line(region)}: it has {listed(found.regions)}")
    return found


def listed(names: Sequence[str], most: int = 10) -> str:
    """Names for a message, not all of too many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"


def _what_else(out: Place) -> str:
    if storage.is_file(out / "dataset.json"):
        return "is an OUT of segment_region, without a monitoring's results"
    return "holds no results of a monitoring" if storage.is_folder(out) else "is not there"


def _partitions(folder: Place) -> list[str]:
    return [name for name in storage.names(folder) if name.startswith(PARTITION)]


def _empty(table: str) -> Any:
    schema = {**DAILY, **WHOLE, **PLACES}[table]
    fields = [*schema, pa.field("region", pa.string()), *([pa.field("date", pa.date32())] if table in DAILY else [])]
    return pa.schema(fields).empty_table()
