"""What the tables of all dates say of a region's parcels, as arrays: dates by parcels, read date by date.

A million parcels on 50 dates take 0.45 GB for the index and the dominant classes, and 8 MB a class and season for the evidence; of a
date's file no more than `BATCH` rows are in memory at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import Refused
from pipeline.imagery import storage
from pipeline.imagery.storage import Place
from pipeline.results.changes import NO_CLASS
from pipeline.results.seasons import Evidence, SeasonWindow, days_since, evidence_of
from pipeline.results.tables import day_of

BATCH = 1_000_000  # rows
METRES = 111_320.0  # of a degree of latitude


class Source(NamedTuple):
    """A table of one date: `kind` is parcels or indices."""

    kind: str
    day: date
    place: Place
    input_id: str


class Sources(NamedTuple):
    """The tables of a region that are of the model, in order, and what was left out, by name."""

    tables: list[Source]
    ignored: tuple[str, ...]

    @property
    def days(self) -> list[date]:
        return sorted({source.day for source in self.tables})


@dataclass
class History:
    """Of T dates and P parcels. Values are NaN, shares 0 and classes NO_CLASS where a parcel is not known."""

    days_T: np.ndarray  # since 1970
    values_TP: np.ndarray  # the index, float32
    shares_TP: np.ndarray  # valid share of what is known of the index, float32
    classes_TP: np.ndarray  # position of the dominant class, uint8
    classes: list[tuple[int, str]]  # id and name by position
    windows: list[SeasonWindow]
    evidence: list[Evidence]  # of each window


class Region(NamedTuple):
    """The parcels of a region in the order of all its tables, and where they are, in metres from anywhere."""

    ids: pa.Array
    xy_P2: np.ndarray


def find_sources(results: Place, region: str, model_id: str) -> Sources:
    """The tables of a region's dates; those of another model are left out and named."""
    tables, ignored = [], []
    for kind in ("indices", "parcels"):
        for name in sorted(storage.names(results / kind)):
            day = day_of(name)
            place = results / kind / name / f"{region}.parquet"
            if day is None or (footer := _footer(place)) is None:
                continue
            others = _values(footer, "model_id") - {model_id}
            if others:
                ignored.append(f"{kind} of {day}: of model {sorted(others)[0][:16]}, not of {model_id[:16]}")
            else:
                tables.append(Source(kind, day, place, footer.input_id))
    return Sources(sorted(tables, key=lambda source: (source.day, source.kind)), tuple(ignored))


def index_name_of(sources: Sources, wanted: str | None) -> str:
    """The index to follow: the wanted one, or the only one there is; empty where there is none. Raises Refused."""
    names = {name for source in sources.tables if source.kind == "indices" for name in _values(_footer(source.place), "index_name")}
    if wanted is not None:
        return wanted
    if len(names) > 1:
        raise Refused(f"there are several indices ({', '.join(sorted(names))}): name the one that seasons are told by")
    return next(iter(names), "")


def parcels_input_id(results: Place, region: str) -> str:
    """What the geometries of the region's parcels were made from. Raises Refused where there are none."""
    place = results / "parcel_geometry" / f"{region}.parquet"
    if (footer := _footer(place)) is None:
        raise Refused(f"{place}: there is none: which parcels are neighbours is told by it")
    return footer.input_id


def read_region(results: Place, region: str) -> Region:
    """The parcels of a region, from their geometries' table."""
    place = results / "parcel_geometry" / f"{region}.parquet"
    with storage.here(place) as path, pq.ParquetFile(path, pre_buffer=False) as file:
        table = file.read(columns=["parcel_id", "bbox"], use_threads=False)
    box = {name: np.nan_to_num(pc.struct_field(table["bbox"], name).to_numpy()) for name in ("xmin", "ymin", "xmax", "ymax")}
    lon, lat = (box["xmin"] + box["xmax"]) / 2, (box["ymin"] + box["ymax"]) / 2
    squeeze = np.cos(np.radians(lat.mean())) if len(lat) else 1.0
    return Region(table["parcel_id"].combine_chunks(), np.stack([lon * squeeze, lat], 1) * METRES)


def read_history(sources: Sources, ids: pa.Array, index_name: str, windows: Sequence[SeasonWindow]) -> History:
    """Read all tables, in the dates' order. Raises Refused where a table's parcels are not those of the region."""
    days = sources.days
    shape = (len(days), len(ids))
    history = History(
        np.array([days_since(day) for day in days], np.int64), np.full(shape, np.nan, np.float32), np.zeros(shape, np.float32),
        np.full(shape, NO_CLASS, np.uint8), [], list(windows), [Evidence(0, len(ids)) for _ in windows],
    )  # fmt: skip
    for source in sources.tables:
        row = days.index(source.day)
        if source.kind == "indices":
            _read_index(source, ids, index_name, history, row)
        else:
            _read_classes(source, ids, history, row)
    return history


def _read_index(source: Source, ids: pa.Array, index_name: str, history: History, row: int) -> None:
    seen = 0
    for batch, position in _rows(source, ids, ["state", "valid_share", "mean"], ("index_name", index_name)):
        mean = batch["mean"].to_numpy(zero_copy_only=False)
        known = pc.equal(batch["state"], "known").to_numpy(zero_copy_only=False) & np.isfinite(mean)
        history.values_TP[row, position] = np.where(known, mean, np.nan)
        history.shares_TP[row, position] = np.where(known, batch["valid_share"].to_numpy(zero_copy_only=False), 0.0)
        seen += len(position)
    if seen not in (0, len(ids)):  # none: the index was asked for later
        raise Refused(f"{source.place}: has {seen} rows of {index_name} for {len(ids)} parcels: remove it, and it is made anew")


def _read_classes(source: Source, ids: pa.Array, history: History, row: int) -> None:
    """Add one date: dominant classes, and the evidence of the windows that it lies in."""
    columns = ["state", "valid_share", "class_id", "class_name", "share", "mean_confidence", "is_dominant"]
    valid = np.zeros(len(ids))
    shares = np.zeros((len(history.classes), len(ids)), np.float32)
    confidence = np.full(shares.shape, np.nan, np.float32)
    for batch, position in _rows(source, ids, columns):
        known = pc.equal(batch["state"], "known").to_numpy(zero_copy_only=False)
        batch, position = batch.filter(pa.array(known)), position[known]
        number = _positions(history.classes, batch["class_id"], batch["class_name"])
        if len(history.classes) > len(shares):
            more = (len(history.classes) - len(shares), len(ids))
            shares = np.vstack([shares, np.zeros(more, np.float32)])
            confidence = np.vstack([confidence, np.full(more, np.nan, np.float32)])
        valid[position] = batch["valid_share"].to_numpy(zero_copy_only=False)
        shares[number, position] = batch["share"].to_numpy(zero_copy_only=False)
        confidence[number, position] = batch["mean_confidence"].to_numpy(zero_copy_only=False)
        first = pc.fill_null(batch["is_dominant"], False).to_numpy(zero_copy_only=False)
        history.classes_TP[row, position[first]] = number[first]
    day = history.days_T[row]
    for window, evidence in zip(history.windows, history.evidence, strict=True):
        if window.days[0] <= day <= window.days[1]:
            missing = len(shares) - len(evidence.sums_KP)
            evidence.sums_KP = np.vstack([evidence.sums_KP, np.zeros((missing, len(ids)))])
            evidence.add(evidence_of(valid, shares, confidence))


def _positions(classes: list[tuple[int, str]], class_id: pa.Array, class_name: pa.Array) -> np.ndarray:
    """The position of each row's class; classes that were not met before are added, by their ids."""
    numbers = class_id.to_numpy(zero_copy_only=False).astype(np.int64)
    found, first = np.unique(numbers, return_index=True)
    for number, row in zip(found.tolist(), first.tolist(), strict=True):
        if number not in dict(classes):
            classes.append((number, class_name[row].as_py()))
    lookup = np.zeros(256, np.int64)
    for position, (number, _) in enumerate(classes):
        lookup[number] = position
    return lookup[numbers]


def _rows(
    source: Source, ids: pa.Array, columns: list[str], where: tuple[str, str] | None = None
) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """The rows of a table, or those with `where`'s value, batch by batch, with the position of each row's parcel in the region.

    Raises Refused where parcels come in another order.
    """
    last, position = None, -1
    with storage.here(source.place) as path, pq.ParquetFile(path, pre_buffer=False) as file:
        wanted = ["parcel_id", *columns, *([where[0]] if where else [])]
        for batch in file.iter_batches(BATCH, columns=wanted, use_threads=False):
            if where:
                batch = batch.filter(pc.equal(batch[where[0]], where[1]))
            if not len(batch):
                continue
            parcel = batch["parcel_id"]
            begins = np.ones(len(parcel), bool)
            begins[0] = parcel[0].as_py() != last
            begins[1:] = pc.not_equal(parcel[1:], parcel[:-1]).to_numpy(zero_copy_only=False)
            positions = position + np.cumsum(begins)
            last, position = parcel[-1].as_py(), int(positions[-1])
            if position >= len(ids) or not parcel.filter(pa.array(begins)).equals(ids.take(pa.array(positions[begins]))):
                raise Refused(f"{source.place}: its parcels are not those of the region, in its order: remove it, and it is made anew")
            yield batch, positions


class _Footer(NamedTuple):
    """What the end of a Parquet file says."""

    input_id: str
    groups: pq.FileMetaData


def _footer(place: Place) -> _Footer | None:
    """The footer of a table; None where there is no table."""
    try:
        with storage.sought(place) as file, pq.ParquetFile(file, pre_buffer=False) as table:
            return _Footer((table.schema_arrow.metadata or {}).get(b"input_id", b"").decode(), table.metadata)
    except FileNotFoundError:
        return None


def _values(footer: _Footer | None, column: str) -> set[str]:
    """The least and the greatest value of a column in each row group."""
    found: set[str] = set()
    if footer is None:
        return found
    number = footer.groups.schema.names.index(column)
    for group in range(footer.groups.num_row_groups):
        statistics = footer.groups.row_group(group).column(number).statistics
        if statistics is not None and statistics.has_min_max:
            found |= {statistics.min, statistics.max}
    return found
