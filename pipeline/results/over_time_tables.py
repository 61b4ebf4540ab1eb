"""Rows of the tables over time from arrays of parcels: series, seasons and changes, a part of the parcels at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.results.changes import NO_CLASS, Drops, Flips
from pipeline.results.curves import Curves
from pipeline.results.history import History
from pipeline.results.phenology import STATES, Phenology
from pipeline.results.seasons import SeasonClass
from pipeline.results.tables import CHANGES, ROW_GROUP, SEASONS, SERIES

DECIMALS = 4  # of values of the index: what is finer is noise, and does not compress


@dataclass(frozen=True)
class SeasonRows:
    """One window of some parcels."""

    name: str
    phenology: Phenology
    grown: SeasonClass
    observations: np.ndarray
    longest_gap: np.ndarray  # days, -1 where there is no observation


@dataclass(frozen=True)
class Rows:
    """What all rows of a region share."""

    ids: pa.Array
    index_name: str
    model_id: str
    input_id: str
    classes: list[tuple[int, str]]

    def write(self, writer: pq.ParquetWriter, schema: pa.Schema, parcel: np.ndarray, columns: Mapping[str, Any]) -> None:
        """Append rows of the parcels at these positions; what all rows share, and null where nothing is said, is added."""
        count = len(parcel)
        same = {"model_id": self.model_id, "input_id": self.input_id}
        found = {"parcel_id": self.ids.take(pa.array(parcel)), **columns}
        found |= {name: pa.repeat(pa.scalar(text), count) for name, text in same.items()}
        arrays = [found.get(name, pa.nulls(count, kind)) for name, kind in zip(schema.names, schema.types, strict=True)]
        writer.write_table(pa.Table.from_arrays(arrays, schema=writer.schema), row_group_size=ROW_GROUP)

    def write_series(self, writer: pq.ParquetWriter, first: int, curves: Curves) -> None:
        """The curves of the parcels from position `first` on."""
        days, parcels = len(curves.days_G), curves.values_GP.shape[1]
        columns = {
            "index_name": self._named_index(days * parcels),
            "date": dates(np.tile(curves.days_G, parcels)),
            "value": numbers(np.round(curves.values_GP.T.astype(np.float64), DECIMALS).ravel()),
        }
        self.write(writer, SERIES, np.repeat(np.arange(first, first + parcels), days), columns)

    def write_seasons(self, writer: pq.ParquetWriter, first: int, seasons: list[SeasonRows]) -> None:
        """The seasons of the parcels from position `first` on: those of one parcel follow each other."""
        if not seasons:
            return
        parcels = len(seasons[0].observations)

        def woven(of_season: Callable[[SeasonRows], np.ndarray]) -> np.ndarray:
            return np.stack([of_season(season) for season in seasons], axis=1).ravel()

        grew = {name: woven(lambda season, name=name: getattr(season.phenology, name)) for name in Phenology._fields}  # type: ignore[misc]
        position = woven(lambda season: season.grown.position)
        gap = woven(lambda season: season.longest_gap)
        columns = {
            "season": pa.array([season.name for season in seasons]).take(pa.array(np.tile(np.arange(len(seasons)), parcels))),
            "index_name": self._named_index(parcels * len(seasons)),
            "state": pa.array(STATES).take(pa.array(grew["state"])),
            **{f"{name}_date": dates(grew[name]) for name in ("start", "peak", "end")},
            **{name: numbers(np.round(grew[name], DECIMALS)) for name in ("base_value", "peak_value", "amplitude")},
            "observation_count": pa.array(woven(lambda season: season.observations).astype(np.int32)),
            "longest_gap_days": pa.array(gap.astype(np.int32), mask=gap < 0),
            **self._class_columns("", position),
            "class_share": numbers(np.round(woven(lambda season: season.grown.share), DECIMALS)),
            "class_dates": pa.array(woven(lambda season: season.grown.dates).astype(np.int32)),
        }
        self.write(writer, SEASONS, np.repeat(np.arange(first, first + parcels), len(seasons)), columns)

    def write_changes(self, writer: pq.ParquetWriter, history: History, flips: Flips, drops: Drops) -> None:
        """Flips and drops, by parcel, then by the date from which they are seen, then by kind."""
        of_class = np.arange(len(flips.parcel) + len(drops.parcel)) < len(flips.parcel)
        parcel, since = (np.concatenate([getattr(flips, name), getattr(drops, name)]).astype(np.int64) for name in ("parcel", "since"))
        order = np.lexsort((~of_class, since, parcel))
        days = {
            f"{name}_date": dates(history.days_T[np.concatenate([getattr(flips, name), getattr(drops, name)]).astype(np.int64)][order])
            for name in ("before", "since", "confirmed")
        }
        nothing = np.full(len(drops.parcel), NO_CLASS, np.uint8)
        missing = np.full(len(flips.parcel), np.nan)
        values = {
            name: numbers(np.concatenate([missing, getattr(drops, name)])[order])
            for name in ("value_before", "value_after", "expected_after", "z", "p", "q")
        }
        counts = np.concatenate([np.zeros(len(flips.parcel), np.int32), drops.neighbour_count.astype(np.int32)])[order]
        columns = {
            "kind": pa.array(("index", "class")).take(pa.array(of_class[order].astype(np.int8))),
            **days,
            **self._class_columns("from_", np.concatenate([flips.from_class, nothing])[order]),
            **self._class_columns("to_", np.concatenate([flips.to_class, nothing])[order]),
            "index_name": pa.array([self.index_name]).take(pa.array(np.zeros(len(order), np.int8), mask=of_class[order])),
            **values,
            "neighbour_count": pa.array(counts, mask=of_class[order]),
        }
        self.write(writer, CHANGES, parcel[order], columns)

    def _named_index(self, count: int) -> pa.Array:
        return pa.repeat(pa.scalar(self.index_name), count)

    def _class_columns(self, prefix: str, position: np.ndarray) -> dict[str, pa.Array]:
        """Id and name of classes by their positions; null for NO_CLASS."""
        taken = pa.array(position.astype(np.int64), mask=position == NO_CLASS)
        ids = pa.array([number for number, _ in self.classes], pa.uint8())
        names = pa.array([name for _, name in self.classes], pa.string())
        return {f"{prefix}class_id": ids.take(taken), f"{prefix}class_name": names.take(taken)}


def dates(days: np.ndarray) -> pa.Array:
    """Days since 1970, rounded, as dates; null for NaN."""
    known = np.isfinite(days)
    return pa.array(np.round(np.where(known, days, 0)).astype(np.int32), mask=~known).cast(pa.date32())


def numbers(values: np.ndarray) -> pa.Array:
    """Numbers with null for NaN."""
    return pa.array(values, mask=np.isnan(values))
