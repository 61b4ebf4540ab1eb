"""Results of a monitoring made up from arrays: an OUT of any size with every table of the contract, for tests and benchmarks.

python -m tests.results.monitored OUT --parcels 100000 --dates 50 --classes 5
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from pipeline.results.tables import (
    CHANGES,
    INDICES,
    MONITORING_SCHEMA_VERSION,
    PARCELS,
    REGION_AREAS,
    ROW_GROUP,
    SEASONS,
    SERIES,
    file_settings,
)

NAMES = ("cereals", "grassland", "maize", "forest", "built-up", "rape", "water")
COLOURS = ("#E0B84C", "#8CC26A", "#D9772B", "#1F6E3B", "#8B8F99", "#E8E05A", "#2F6FB0")
MODEL_ID = "5eed" * 16
INPUT_ID = "feed" * 4
SQUARE_M = 111_320.0  # of a degree of latitude
CHUNK = 20_000  # parcels whose curves are in memory at once
EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class Monitored:
    """What is made up: fields in rows, of which a few change their class and a few lose their green; the same for the same values."""

    parcels: int = 60
    dates: int = 8
    classes: int = 4
    districts: int = 4
    seed: int = 0
    region: str = "region"
    first: date = date(2017, 3, 5)
    step_days: int = 12
    origin: tuple[float, float] = (15.0, 46.0)  # longitude and latitude of the south-west corner
    field_m: float = 120.0  # from one field to the next
    adjusted: bool = True  # whether areas have intervals
    scene_ids: Sequence[str] = ()  # of each date
    odd_id: str = ""  # of the first parcel
    clouds: bool = True  # without, every parcel is known on every date
    curve_days: int = 5
    file: dict[str, Any] = field(default_factory=dict)  # how pyarrow writes, if not as the project does

    @cached_property
    def days(self) -> list[date]:
        return [self.first + timedelta(days=self.step_days * number) for number in range(self.dates)]

    @cached_property
    def ids(self) -> np.ndarray:
        names = [f"SI-{number:08d}" for number in range(self.parcels)]
        return np.array(sorted([self.odd_id, *names[1:]] if self.odd_id else names), dtype=object)

    @cached_property
    def side(self) -> int:
        return int(np.ceil(np.sqrt(self.parcels)))

    @cached_property
    def place(self) -> tuple[np.ndarray, np.ndarray]:
        """Column and row of each parcel in the grid of fields, 0..1."""
        number = np.arange(self.parcels)
        return number % self.side / self.side, number // self.side / self.side

    @cached_property
    def shapes(self) -> np.ndarray:
        """Slanting fields with gaps between them, in degrees."""
        x, y = (axis * self.side for axis in self.place)
        lon_step, lat_step = self.field_m / (SQUARE_M * np.cos(np.radians(self.origin[1]))), self.field_m / SQUARE_M
        corners = np.array([(0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94), (0.06, 0.06)])
        shift = np.random.default_rng(self.seed + 1).uniform(-0.05, 0.05, (self.parcels, 4, 2))
        ring = np.stack([x, y], axis=-1)[:, None] + corners + np.concatenate([shift, shift[:, :1]], axis=1)
        return shapely.polygons(ring * (lon_step, lat_step) + self.origin)

    @cached_property
    def area_m2(self) -> np.ndarray:
        return shapely.area(self.shapes) * SQUARE_M**2 * np.cos(np.radians(self.origin[1]))

    @cached_property
    def district(self) -> np.ndarray:
        """Number of each parcel's district; -1 for the few in none."""
        x, y = self.place
        across = max(1, int(np.sqrt(self.districts)))
        found = np.minimum((y * -(-self.districts // across)).astype(int) * across + (x * across).astype(int), self.districts - 1)
        return np.where(np.arange(self.parcels) % 53 == 52, -1, found)

    @cached_property
    def truth(self) -> np.ndarray:
        """Class of each parcel at first, in patches."""
        x, y = self.place
        noise = np.random.default_rng(self.seed + 2).random(self.parcels)
        return ((np.sin(9 * x) + np.cos(7 * y) + 2 + 2.5 * noise) / 6.5 * self.classes).astype(int).clip(0, self.classes - 1)

    @cached_property
    def changed_at(self) -> np.ndarray:
        """Number of the date from which a parcel is of another class; `dates` where it stays."""
        random = np.random.default_rng(self.seed + 3)
        when = random.integers(max(1, self.dates // 3), max(2, self.dates - 1), self.parcels)
        return np.where(random.random(self.parcels) < 0.05, when, self.dates)

    @cached_property
    def fallen_at(self) -> np.ndarray:
        """Number of the date from which a parcel's index is low; `dates` where it is not."""
        random = np.random.default_rng(self.seed + 4)
        when = random.integers(max(1, self.dates // 3), max(2, self.dates - 1), self.parcels)
        return np.where((random.random(self.parcels) < 0.02) & (self.changed_at == self.dates), when, self.dates)

    def classes_at(self, number: int) -> np.ndarray:
        return np.where(number >= self.changed_at, (self.truth + 1) % self.classes, self.truth)

    def states_at(self, number: int) -> np.ndarray:
        """0 known, 1 unknown (clouds, in patches), 2 outside, of each parcel."""
        if not self.clouds:
            return np.zeros(self.parcels, int)
        x, y = self.place
        phase = np.random.default_rng(self.seed * 1000 + number).uniform(0, 6.28, 3)
        cloud = np.sin(7 * x + phase[0]) + np.cos(6 * y + phase[1])
        threshold = (2.1, 1.2, -0.2, 2.1, -1.6)[number % 5]
        return np.where((number % 4 == 3) & (x > 0.85), 2, np.where(cloud > threshold, 1, 0))

    def ndvi(self, parcels: slice, day: date) -> np.ndarray:
        """The index of parcels on a day, without noise."""
        kind, number = self.truth[parcels], (day - self.first).days / self.step_days
        vigour = np.random.default_rng(self.seed + 5).uniform(0.75, 1.15, self.parcels)[parcels]
        height = vigour * (0.35 + 0.4 * (kind + 1) / self.classes)
        peak, width = 0.35 + 0.4 * kind / self.classes, 0.16
        year = (day.timetuple().tm_yday % 365) / 365
        curve = 0.15 + height * np.exp(-(((year - peak) / width) ** 2))
        return np.where(number >= self.fallen_at[parcels], 0.45 * curve, curve)


def write_results(out: Path, made: Monitored) -> Monitored:
    """Write OUT/results, OUT/current.json, OUT/models/<id>/dataset.json and a run's record."""
    for number in range(made.dates):
        write_date(out / "results", made, number)
    results = out / "results"
    _write(results / "series" / f"{made.region}.parquet", SERIES, series_rows(made), made)
    _write(results / "seasons" / f"{made.region}.parquet", SEASONS, [season_rows(made)], made)
    _write(results / "changes" / f"{made.region}.parquet", CHANGES, [change_rows(made)], made)
    write_geometry(results, made)
    folder = f"models/{MODEL_ID[:16]}"
    _json(out / "current.json", {"model_id": MODEL_ID, "folder": folder, "since": "2018-01-01T00:00:00+00:00"})
    table = [{"id": k, "name": NAMES[k], "color": COLOURS[k]} for k in range(made.classes)]
    if not (out / folder / "dataset.json").exists():
        _json(out / folder / "dataset.json", {"schema_version": 1, "bundle": MODEL_ID, "classes": table, "parameters": {}})
    return made


def write_date(results: Path, made: Monitored, number: int) -> None:
    """The three tables of one date."""
    known = KnownAreas.of(made, number)
    folder = f"date={made.days[number]}"
    _write(results / "parcels" / folder / f"{made.region}.parquet", PARCELS, [parcel_rows(made, number, known)], made)
    _write(results / "indices" / folder / f"{made.region}.parquet", INDICES, [index_rows(made, number)], made)
    _write(results / "areas" / folder / f"{made.region}.parquet", REGION_AREAS, [area_rows(made, known)], made)


@dataclass(frozen=True)
class KnownAreas:
    """Of one date: each parcel's state, valid share, and for all of them, known or not, the area of each class."""

    state_P: np.ndarray
    valid_P: np.ndarray
    area_PK: np.ndarray

    @classmethod
    def of(cls, made: Monitored, number: int) -> KnownAreas:
        random = np.random.default_rng(made.seed * 7919 + number)
        state, draw = made.states_at(number), random.random(made.parcels)
        valid = np.where(state == 0, np.where(draw < 0.8, 1.0, 0.5 + draw / 2.01), np.where(state == 1, draw * 0.49, 0.0))
        seen = np.where(random.random(made.parcels) < 0.02, random.integers(0, made.classes, made.parcels), made.classes_at(number))
        weight = random.random((made.parcels, made.classes)) ** 3 * 0.15
        weight[np.arange(made.parcels), seen] = 1.0
        return cls(state, valid, weight / weight.sum(axis=1, keepdims=True) * (made.area_m2 * valid)[:, None])


STATES = ("known", "unknown", "outside")


def parcel_rows(made: Monitored, number: int, known: KnownAreas) -> dict[str, Any]:
    is_known, k = known.state_P == 0, made.classes
    count = np.where(is_known, k, 1)
    row = np.repeat(np.arange(made.parcels), count)
    start = np.cumsum(count) - count
    entry = np.arange(len(row)) - start[row]
    told = is_known[row]
    area = np.where(told, known.area_PK[row, entry], np.nan)
    valid_area = (made.area_m2 * known.valid_P)[row]
    dominant = known.area_PK.argmax(axis=1)
    return {
        **_of_parcel(made, number, known.state_P[row], known.valid_P[row], row),
        "class_id": pa.array(entry.astype(np.uint8), mask=~told),
        "class_name": _named(np.where(told, entry, -1), NAMES[:k]),
        "pixel_count": pa.array(area / 100, mask=~told),
        "area_m2": pa.array(area, mask=~told),
        "share": pa.array(np.divide(area, valid_area, out=np.zeros_like(area), where=valid_area > 0), mask=~told),
        "mean_confidence": pa.nulls(len(row), pa.float64()),
        "is_dominant": pa.array(entry == dominant[row], mask=~told),
        "parcel_area_m2": pa.array(made.area_m2[row]),
        **_made_from(len(row)),
    }  # fmt: skip


def index_rows(made: Monitored, number: int) -> dict[str, Any]:
    state = made.states_at(number)
    told = state == 0
    noise = np.random.default_rng(made.seed * 104729 + number).normal(0, 0.02, made.parcels)
    mean = made.ndvi(slice(None), made.days[number]) + noise
    row = np.arange(made.parcels)
    valid = KnownAreas.of(made, number).valid_P
    spread = {
        "mean": 0.0, "minimum": -0.12, "p10": -0.07, "p25": -0.03, "median": 0.001, "p75": 0.03, "p90": 0.07, "maximum": 0.13,
    }  # fmt: skip
    return {
        **_of_parcel(made, number, state, valid, row),
        "index_name": _named(np.zeros(made.parcels, int), ("ndvi",)),
        **{name: pa.array(mean + shift, mask=~told) for name, shift in spread.items()},
        "std": pa.array(np.full(made.parcels, 0.05), mask=~told),
        **_made_from(made.parcels),
    }  # fmt: skip


def area_rows(made: Monitored, known: KnownAreas) -> dict[str, Any]:
    """Rows of the region, of each district, and of what lies in none, in this order."""
    k, seen = made.classes, known.state_P != 2
    area = np.stack([np.bincount(made.district + 1, known.area_PK[:, c], made.districts + 1) for c in range(k)], axis=1) * 1.1
    reached = np.bincount(made.district + 1, made.area_m2 * seen, made.districts + 1) * 1.1
    order = [*range(1, made.districts + 1), 0]
    area = np.concatenate([area.sum(axis=0, keepdims=True), area[order]])
    reached = np.append(reached.sum(), reached[order])
    valid = area.sum(axis=1)
    names = [None, *(f"D{number:02d}" for number in range(made.districts)), ""]
    rows = len(names) * k
    flat, adjusted = area.ravel(), area.ravel() * 0.97 + np.repeat(valid, k) * 0.01
    error = 0.012 * np.repeat(valid, k)
    none = pa.nulls(rows, pa.float64())
    return {
        "district_id": pa.array([name for name in names for _ in range(k)], pa.string()),
        "class_id": pa.array(np.tile(np.arange(k), len(names)).astype(np.uint8)),
        "class_name": _named(np.tile(np.arange(k), len(names)), NAMES[:k]),
        "pixel_count": pa.array(np.round(flat / 100).astype(np.int64)),
        "area_m2": pa.array(flat),
        "share": pa.array(flat / np.maximum(np.repeat(valid, k), 1e-9), mask=np.repeat(valid, k) == 0),
        "valid_area_m2": pa.array(np.repeat(valid, k)),
        "seen_area_m2": pa.array(np.repeat(reached, k)),
        "adjusted_area_m2": pa.array(adjusted) if made.adjusted else none,
        "standard_error_m2": pa.array(error) if made.adjusted else none,
        "low_m2": pa.array(adjusted - 1.96 * error) if made.adjusted else none,
        "high_m2": pa.array(adjusted + 1.96 * error) if made.adjusted else none,
        **_made_from(rows),
    }


def series_rows(made: Monitored) -> Iterator[dict[str, Any]]:
    """The curves, some parcels at a time; every seventh has no value at its start."""
    span = (made.days[-1] - made.days[0]).days
    days = [made.first + timedelta(days=number) for number in range(0, span + 1, made.curve_days)]
    for start in range(0, made.parcels, CHUNK):
        part = slice(start, min(start + CHUNK, made.parcels))
        value_PD = np.stack([made.ndvi(part, day) for day in days], axis=1)
        row = np.repeat(np.arange(part.start, part.stop), len(days))
        column = np.tile(np.arange(len(days)), part.stop - part.start)
        yield {
            "parcel_id": _strings(made.ids[part], row - part.start),
            "index_name": _named(np.zeros(len(row), int), ("ndvi",)),
            "date": _dates([days[number] for number in range(len(days))], column),
            "value": pa.array(value_PD.ravel(), mask=(row % 7 == 6) & (column < 2)),
            **_made_from(len(row)),
        }


def season_rows(made: Monitored) -> dict[str, Any]:
    count, kind = made.parcels, made.classes_at(made.dates - 1)
    known = np.arange(count) % 29 != 28
    peak = made.ndvi(slice(None), made.days[made.dates // 2])
    seen = np.sum([made.states_at(number) == 0 for number in range(made.dates)], axis=0)
    days = made.days
    return {
        "parcel_id": pa.array(made.ids, pa.string()),
        "season": _named(np.zeros(count, int), (str(made.first.year),)),
        "index_name": _named(np.zeros(count, int), ("ndvi",)),
        "state": _named(np.where(known, 0, 1), STATES),
        "start_date": _dates(days, np.full(count, 1 % len(days)), known),
        "peak_date": _dates(days, np.full(count, len(days) // 2), known),
        "end_date": _dates(days, np.full(count, len(days) - 1), known),
        "base_value": pa.array(np.full(count, 0.2), mask=~known),
        "peak_value": pa.array(peak, mask=~known),
        "amplitude": pa.array(peak - 0.2, mask=~known),
        "observation_count": pa.array(seen.astype(np.int32)),
        "longest_gap_days": pa.array(np.full(count, 2 * made.step_days, np.int32)),
        "class_id": pa.array(kind.astype(np.uint8), mask=~known),
        "class_name": _named(np.where(known, kind, -1), NAMES[: made.classes]),
        "class_share": pa.array(np.full(count, 0.9), mask=~known),
        "class_dates": pa.array(seen.astype(np.int32)),
        **_made_from(count),
    }


def change_rows(made: Monitored) -> dict[str, Any]:
    """In the order of parcels; none has both kinds. A change that no date shows before and after is not told."""
    changed = np.flatnonzero((made.changed_at < made.dates) | (made.fallen_at < made.dates))
    when = np.minimum(made.changed_at, made.fallen_at)[changed]
    known_DP = np.stack([made.states_at(number)[changed] == 0 for number in range(made.dates)])
    number_D1 = np.arange(made.dates)[:, None]
    before_at = np.where(known_DP & (number_D1 < when), number_D1, -1).max(axis=0)
    since_at = np.where(known_DP & (number_D1 >= when), number_D1, made.dates).min(axis=0)
    told = (before_at >= 0) & (since_at < made.dates)
    changed, before_at, since_at = changed[told], before_at[told], since_at[told]
    of_class = made.changed_at[changed] < made.dates
    before, after = made.truth[changed], (made.truth[changed] + 1) % made.classes
    value = made.ndvi(slice(None), made.days[-1])[changed]
    confirmed = np.minimum(since_at + 1, made.dates - 1)

    def number(values: np.ndarray, kind: Any = pa.float64()) -> pa.Array:
        return pa.array(values, kind, mask=of_class)

    return {
        "parcel_id": _strings(made.ids, changed),
        "kind": _named(np.where(of_class, 0, 1), ("class", "index")),
        "before_date": _dates(made.days, before_at),
        "since_date": _dates(made.days, since_at),
        "confirmed_date": _dates(made.days, confirmed),
        "from_class_id": pa.array(before.astype(np.uint8), mask=~of_class),
        "from_class_name": _named(np.where(of_class, before, -1), NAMES[: made.classes]),
        "to_class_id": pa.array(after.astype(np.uint8), mask=~of_class),
        "to_class_name": _named(np.where(of_class, after, -1), NAMES[: made.classes]),
        "index_name": _named(np.where(of_class, -1, 0), ("ndvi",)),
        "value_before": number(value + 0.3),
        "value_after": number(value),
        "expected_after": number(value + 0.28),
        "z": number(np.full(len(changed), 5.5)),
        "p": number(np.full(len(changed), 1e-6)),
        "q": number(np.full(len(changed), 0.001)),
        "neighbour_count": number(np.full(len(changed), 12), pa.int32()),
        **_made_from(len(changed)),
    }


def write_geometry(results: Path, made: Monitored) -> None:
    """GeoParquet 1.1 with a bbox column."""
    west, south, east, north = shapely.bounds(made.shapes).T
    box = pa.StructArray.from_arrays([pa.array(edge) for edge in (west, south, east, north)], ["xmin", "ymin", "xmax", "ymax"])
    rows = {
        "parcel_id": pa.array(made.ids, pa.string()),
        "district_id": _named(made.district, [f"D{number:02d}" for number in range(made.districts)]),
        "area_m2": pa.array(made.area_m2),
        "geometry": pa.array(shapely.to_wkb(made.shapes), pa.binary()),
        "bbox": box,
    }
    cover = {"bbox": {edge: ["bbox", edge] for edge in ("xmin", "ymin", "xmax", "ymax")}}
    column = {"encoding": "WKB", "geometry_types": ["Polygon"], "covering": cover}
    geo = json.dumps({"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}})
    schema = pa.schema([pa.field(name, values.type) for name, values in rows.items()], {"geo": geo})
    _write(results / "parcel_geometry" / f"{made.region}.parquet", schema, [rows], made)


def _of_parcel(made: Monitored, number: int, state: np.ndarray, valid: np.ndarray, row: np.ndarray) -> dict[str, Any]:
    day, outside = made.days[number], state == 2
    scene = made.scene_ids[number] if made.scene_ids else f"S2_{day:%Y%m%d}"
    when = np.full(len(row), np.datetime64(f"{day}T10:00:00", "us"))
    return {
        "parcel_id": _strings(made.ids, row),
        "scene_id": _named(np.where(outside, -1, 0), (scene,)),
        "scene_datetime": pa.array(when, pa.timestamp("us"), mask=outside).cast(pa.timestamp("us", tz="UTC")),
        "state": _named(state, STATES),
        "valid_share": pa.array(valid),
    }


def _made_from(rows: int) -> dict[str, Any]:
    zeros = np.zeros(rows, int)
    return {"model_id": _named(zeros, (MODEL_ID,)), "input_id": _named(zeros, (INPUT_ID,))}


def _named(numbers: np.ndarray, names: Sequence[str]) -> pa.Array:
    """Strings by their numbers; null where that is below 0."""
    return pa.DictionaryArray.from_arrays(pa.array(numbers, pa.int32(), mask=numbers < 0), pa.array(names, pa.string())).cast(pa.string())


def _strings(values: np.ndarray, row: np.ndarray) -> pa.Array:
    return pa.array(values, pa.string()).take(pa.array(row))


def _dates(days: Sequence[date], row: np.ndarray, told: np.ndarray | None = None) -> pa.Array:
    numbers = np.array([(day - EPOCH).days for day in days], np.int32)[row]
    return pa.array(numbers, pa.int32(), mask=None if told is None else ~told).cast(pa.date32())


def _write(path: Path, schema: pa.Schema, chunks: Any, made: Monitored) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {**(schema.metadata or {}), "schema_version": MONITORING_SCHEMA_VERSION, "input_id": INPUT_ID}
    settings = {**file_settings(schema), **made.file}
    rows = settings.pop("row_group_size", ROW_GROUP)
    with pq.ParquetWriter(path, schema.with_metadata(told), **settings) as writer:
        for columns in chunks:
            writer.write_table(pa.table([columns[name] for name in schema.names], schema=schema.with_metadata(told)), rows)


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT")
    for name in ("parcels", "dates", "classes"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Monitored(), name), metavar="N")
    options = parser.parse_args()
    write_results(options.out, Monitored(options.parcels, options.dates, options.classes))
