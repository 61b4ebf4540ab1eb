"""The tables that analysts query: every schema is here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.imagery import storage
from pipeline.imagery.catalogue import parse_datetime
from pipeline.imagery.storage import Place

if TYPE_CHECKING:  # they bring torch: seconds that who only reads tables should not wait
    from pipeline.inference.plan import Plan
    from pipeline.inference.tally import Tally, ValueTally
    from pipeline.models.bundle import Bundle

AREAS = pa.schema([
    pa.field("scene_id", pa.string(), nullable=False),
    pa.field("scene_datetime", pa.timestamp("us", tz="UTC")),
    pa.field("class_id", pa.uint8(), nullable=False),
    pa.field("class_name", pa.string(), nullable=False),
    pa.field("pixel_count", pa.int64(), nullable=False),
    pa.field("area_m2", pa.float64()),  # null without a place on the ground
    pa.field("share", pa.float64()),  # of the valid area, or of the valid pixels without one; null if there is none
    pa.field("mean_confidence", pa.float64()),  # 0..100; null unless saved
    pa.field("valid_pixel_count", pa.int64(), nullable=False),
    pa.field("model_id", pa.string(), nullable=False),
    pa.field("input_id", pa.string(), nullable=False),
])  # fmt: skip


# A row a scene of a bundle with a target. Of the values, in the target's unit: null where no pixel is valid.
VALUES = pa.schema([
    pa.field("scene_id", pa.string(), nullable=False),
    pa.field("scene_datetime", pa.timestamp("us", tz="UTC")),
    pa.field("target_name", pa.string(), nullable=False),
    pa.field("unit", pa.string(), nullable=False),  # "" where it has none
    pa.field("pixel_count", pa.int64(), nullable=False),  # of the region
    pa.field("valid_pixel_count", pa.int64(), nullable=False),
    pa.field("area_m2", pa.float64()),  # of the valid pixels; null without a place on the ground
    pa.field("mean", pa.float64()),
    pa.field("std", pa.float64()),
    pa.field("minimum", pa.float64()),
    pa.field("maximum", pa.float64()),
    pa.field("model_id", pa.string(), nullable=False),
    pa.field("input_id", pa.string(), nullable=False),
])  # fmt: skip

BBOX = pa.struct([pa.field(name, pa.float64(), nullable=False) for name in ("xmin", "ymin", "xmax", "ymax")])
# A row a polygon of a mask: GeoParquet, in the order of their last rows, then of their first pixels (row, col); `polygon_id` counts
# them from 0. Areas are those of their pixels; the perimeter is that of the geometry, holes included. Both are null without a place on
# the ground. The geometry is WKB, in the scene's CRS, or in the raster's own coordinates where it has none.
POLYGONS = pa.schema([
    pa.field("polygon_id", pa.int64(), nullable=False),
    pa.field("class_id", pa.uint8(), nullable=False),
    pa.field("class_name", pa.string(), nullable=False),
    pa.field("area_m2", pa.float64()),
    pa.field("perimeter_m", pa.float64()),
    pa.field("pixel_count", pa.int64(), nullable=False),
    pa.field("mean_confidence", pa.float64()),  # 0..100; null unless saved
    pa.field("model_id", pa.string(), nullable=False),
    pa.field("input_id", pa.string(), nullable=False),
    pa.field("geometry", pa.binary(), nullable=False),
    pa.field("bbox", BBOX, nullable=False),
])  # fmt: skip


# What jobs/evaluate_model.py writes. `scope` is all or scene, `scene` and `class_*` are null where a row is of all of them;
# `low` and `high` are the ends of a 95 % interval; `value` is null where a measure has none.
OF_BUNDLE = [
    pa.field("bundle", pa.string(), nullable=False),
    pa.field("model_id", pa.string(), nullable=False),
    pa.field("scope", pa.string(), nullable=False),
    pa.field("scene", pa.string()),
]
SCORES = pa.schema([
    *OF_BUNDLE,
    pa.field("class_id", pa.uint8()),
    pa.field("class_name", pa.string()),
    pa.field("metric", pa.string(), nullable=False),
    pa.field("value", pa.float64()),
    pa.field("low", pa.float64()),
    pa.field("high", pa.float64()),
])  # fmt: skip
CONFUSION = pa.schema([
    *OF_BUNDLE,
    pa.field("true_class_id", pa.uint8(), nullable=False),
    pa.field("true_class_name", pa.string(), nullable=False),
    pa.field("predicted_class_id", pa.uint8(), nullable=False),
    pa.field("predicted_class_name", pa.string(), nullable=False),
    pa.field("pixel_count", pa.int64(), nullable=False),
])  # fmt: skip
CALIBRATION = pa.schema([
    *OF_BUNDLE,
    pa.field("confidence_percent", pa.uint8(), nullable=False),
    pa.field("pixel_count", pa.int64(), nullable=False),
    pa.field("correct_pixel_count", pa.int64(), nullable=False),
])  # fmt: skip
ADJUSTED_AREAS = pa.schema([
    *OF_BUNDLE,
    pa.field("class_id", pa.uint8(), nullable=False),
    pa.field("class_name", pa.string(), nullable=False),
    pa.field("sample_pixel_count", pa.int64(), nullable=False),  # labelled pixels that are mapped as the class
    pa.field("mapped_pixel_count", pa.int64(), nullable=False),
    pa.field("mapped_share", pa.float64()),
    pa.field("adjusted_share", pa.float64()),
    pa.field("mapped_area_m2", pa.float64()),  # areas are null without a place on the ground
    pa.field("adjusted_area_m2", pa.float64()),
    pa.field("standard_error_m2", pa.float64()),
    pa.field("low_m2", pa.float64()),  # of the stratified estimator: right for a random sample of pixels
    pa.field("high_m2", pa.float64()),
    pa.field("block_low_m2", pa.float64()),  # from units drawn anew: to be believed where labels cover whole blocks
    pa.field("block_high_m2", pa.float64()),
    pa.field("users_accuracy", pa.float64()),
    pa.field("users_accuracy_standard_error", pa.float64()),
    pa.field("producers_accuracy", pa.float64()),
    pa.field("producers_accuracy_standard_error", pa.float64()),
])  # fmt: skip
# Of numbers, in the target's unit: ranges of the truth, from `range_low` on and below `range_high`; null where they have no end.
ERRORS = pa.schema([
    *OF_BUNDLE,
    pa.field("range_low", pa.float64()),
    pa.field("range_high", pa.float64()),
    pa.field("pixel_count", pa.int64(), nullable=False),
    *(pa.field(f"{name}{end}", pa.float64()) for name in ("rmse", "mae", "bias") for end in ("", "_low", "_high")),
])  # fmt: skip
COMPARISON = pa.schema([
    pa.field("bundle", pa.string(), nullable=False),
    pa.field("other", pa.string(), nullable=False),
    pa.field("metric", pa.string(), nullable=False),
    pa.field("difference", pa.float64()),  # the bundle's value less the other's
    pa.field("low", pa.float64()),
    pa.field("high", pa.float64()),
    pa.field("p", pa.float64()),  # of a paired bootstrap over units, two-sided
    pa.field("clustered_mcnemar_p", pa.float64()),  # of accuracy alone, units independent; null for other metrics
    pa.field("pixel_mcnemar_p", pa.float64()),  # likewise, pixels taken as independent, which they are not
])  # fmt: skip


# What jobs/monitor_crops.py keeps in OUT/results, a file for each region (and date): rows of every parcel, in the order of the geometry
# table. The date is in the folder's name, `date=YYYY-MM-DD`. `state` is known; or unknown, where too little of the parcel is valid;
# or outside, where no scene of the date reaches it. All numbers of a parcel that is not known are null.
# segment_region's table of a scene's parcels has the columns of PARCELS too.
OF_PARCEL = [
    pa.field("parcel_id", pa.string(), nullable=False),
    pa.field("scene_id", pa.string()),  # the scene that tells most of it; null outside
    pa.field("scene_datetime", pa.timestamp("us", tz="UTC")),
    pa.field("state", pa.string(), nullable=False),
    pa.field("valid_share", pa.float64(), nullable=False),  # of the parcel's ground area; 0 outside
]
MADE_FROM = [pa.field("model_id", pa.string(), nullable=False), pa.field("input_id", pa.string(), nullable=False)]
# A row a parcel and class, each class of the model for a known parcel, and one row with null for any other.
PARCELS = pa.schema([
    *OF_PARCEL,
    pa.field("class_id", pa.uint8()),
    pa.field("class_name", pa.string()),
    pa.field("pixel_count", pa.float64()),  # a pixel on the border counts for the share of it that is inside
    pa.field("area_m2", pa.float64()),
    pa.field("share", pa.float64()),  # of the valid area
    pa.field("mean_confidence", pa.float64()),  # 0..100; null unless saved
    pa.field("is_dominant", pa.bool_()),  # it has the largest area; the lower id of two
    pa.field("parcel_area_m2", pa.float64(), nullable=False),
    *MADE_FROM,
])  # fmt: skip
# A row a parcel and index (a formula over bands): over its valid pixels, weighted by the share of each that is inside.
INDICES = pa.schema([
    *OF_PARCEL,
    pa.field("index_name", pa.string(), nullable=False),
    *(pa.field(name, pa.float64()) for name in ("mean", "std", "minimum", "p10", "p25", "median", "p75", "p90", "maximum")),
    *MADE_FROM,
])  # fmt: skip
# A row a district and class, each place on the ground counted once; `district_id` is null in the rows of the whole region, and "" in
# those of what lies in no district. The adjusted areas are those of Olofsson et al. 2014, where the model holds a confusion matrix.
REGION_AREAS = pa.schema([
    pa.field("district_id", pa.string()),
    pa.field("class_id", pa.uint8(), nullable=False),
    pa.field("class_name", pa.string(), nullable=False),
    pa.field("pixel_count", pa.int64(), nullable=False),
    pa.field("area_m2", pa.float64(), nullable=False),
    pa.field("share", pa.float64()),  # of the valid area
    pa.field("valid_area_m2", pa.float64(), nullable=False),
    pa.field("seen_area_m2", pa.float64(), nullable=False),  # valid or not: what scenes of the date reach
    pa.field("adjusted_area_m2", pa.float64()),
    pa.field("standard_error_m2", pa.float64()),
    pa.field("low_m2", pa.float64()),
    pa.field("high_m2", pa.float64()),
    *MADE_FROM,
])  # fmt: skip
# A row a parcel and day of the curve: `value` is smoothed and filled; null where no observation is near enough.
SERIES = pa.schema([
    pa.field("parcel_id", pa.string(), nullable=False),
    pa.field("index_name", pa.string(), nullable=False),
    pa.field("date", pa.date32(), nullable=False),
    pa.field("value", pa.float64()),
    *MADE_FROM,
])  # fmt: skip
# A row a parcel and season: when it grew, from the curve of an index, and what, from the evidence of all dates.
SEASONS = pa.schema([
    pa.field("parcel_id", pa.string(), nullable=False),
    pa.field("season", pa.string(), nullable=False),  # its name: 2017
    pa.field("index_name", pa.string(), nullable=False),
    # known; growing, where the curve has risen and not fallen yet: `peak` is the highest so far, base the minimum before it, no end;
    # or unknown, with too few observations or no curve that rises and falls
    pa.field("state", pa.string(), nullable=False),
    pa.field("start_date", pa.date32()),
    pa.field("peak_date", pa.date32()),
    pa.field("end_date", pa.date32()),
    pa.field("base_value", pa.float64()),
    pa.field("peak_value", pa.float64()),
    pa.field("amplitude", pa.float64()),
    pa.field("observation_count", pa.int32(), nullable=False),
    pa.field("longest_gap_days", pa.int32()),
    pa.field("class_id", pa.uint8()),  # with the most evidence
    pa.field("class_name", pa.string()),
    pa.field("class_share", pa.float64()),  # of the evidence
    pa.field("class_dates", pa.int32(), nullable=False),  # dates that gave evidence
    *MADE_FROM,
])  # fmt: skip
# A row a change of a parcel. `kind` is class (another dominant class, kept over several dates) or index (fallen against the parcel's own
# history and its neighbours).
CHANGES = pa.schema([
    pa.field("parcel_id", pa.string(), nullable=False),
    pa.field("kind", pa.string(), nullable=False),
    pa.field("before_date", pa.date32(), nullable=False),  # last seen as it was
    pa.field("since_date", pa.date32(), nullable=False),  # first seen changed
    pa.field("confirmed_date", pa.date32(), nullable=False),  # when that was sure
    pa.field("from_class_id", pa.uint8()),  # of kind class, as the next five
    pa.field("from_class_name", pa.string()),
    pa.field("to_class_id", pa.uint8()),
    pa.field("to_class_name", pa.string()),
    pa.field("index_name", pa.string()),  # of kind index, as the rest
    pa.field("value_before", pa.float64()),
    pa.field("value_after", pa.float64()),
    pa.field("expected_after", pa.float64()),  # from its own history and the change of its neighbours
    pa.field("z", pa.float64()),  # robust standard deviations that it lies below
    pa.field("p", pa.float64()),
    pa.field("q", pa.float64()),  # p, adjusted over the parcels of its date (Benjamini and Hochberg 1995)
    pa.field("neighbour_count", pa.int32()),
    *MADE_FROM,
])  # fmt: skip
# GeoParquet 1.1 with a bbox column: every parcel of the region, in EPSG:4326, sorted by `parcel_id`; all other tables have that order.
PARCEL_GEOMETRY_COLUMNS = ("parcel_id", "district_id", "area_m2", "geometry", "bbox")
MONITORING_SCHEMA_VERSION = "1"  # in the metadata of each of these files
PARTITION = "date="  # what the folder of a date's tables begins with
ROW_GROUP = 50_000  # rows of these files: a parcel's rows are found in one or two groups by their least and greatest parcel_id


def partition_of(day: date) -> str:
    """The folder of a date's tables."""
    return f"{PARTITION}{day.isoformat()}"


def day_of(name: str) -> date | None:
    """The date whose tables a folder of that name holds; None for another folder."""
    try:
        return date.fromisoformat(name.removeprefix(PARTITION)) if name.startswith(PARTITION) else None
    except ValueError:
        return None


def file_settings(schema: pa.Schema) -> dict[str, Any]:
    """How pyarrow writes a monitoring's table: dictionaries of strings alone, since few numbers are twice the same.

    Half the time and three quarters of the size of dictionaries of all columns (tests/benchmarks/RESULTS.md).
    """
    strings = [field.name for field in schema if pa.types.is_string(field.type)]
    return {"compression": "zstd", "use_dictionary": strings}


@contextmanager
def monitoring_writer(path: Path, schema: pa.Schema, input_id: str) -> Iterator[pq.ParquetWriter]:
    """One of the tables of a monitoring, to be written part by part, with what it is made from in its metadata."""
    metadata = {"schema_version": MONITORING_SCHEMA_VERSION, "input_id": input_id}
    with pq.ParquetWriter(path, schema.with_metadata(metadata), **file_settings(schema)) as writer:
        yield writer


def areas_rows(plan: Plan, bundle: Bundle, total: Tally, input_id: str) -> list[dict[str, Any]]:
    """A row a class, with the columns of AREAS."""
    valid = sum(total.pixels)
    whole = total.area_m2 if total.area_m2 is not None else total.pixels
    rows = []
    for entry in bundle.classes:
        pixels = total.pixels[entry.id]
        rows.append({
            "scene_id": plan.scene.scene_id,
            "scene_datetime": parse_datetime(plan.scene.datetime),
            "class_id": entry.id,
            "class_name": entry.name,
            "pixel_count": pixels,
            "area_m2": total.area_m2[entry.id] if total.area_m2 is not None else None,
            "share": whole[entry.id] / sum(whole) if sum(whole) else None,
            "mean_confidence": total.confidence[entry.id] / pixels if total.confidence and pixels else None,
            "valid_pixel_count": valid,
            "model_id": bundle.model_id,
            "input_id": input_id,
        })  # fmt: skip
    return rows


def values_rows(plan: Plan, bundle: Bundle, total: ValueTally, input_id: str) -> list[dict[str, Any]]:
    """One row, with the columns of VALUES, of a bundle with a target."""
    target = bundle.target
    assert target is not None
    return [{
        "scene_id": plan.scene.scene_id,
        "scene_datetime": parse_datetime(plan.scene.datetime),
        "target_name": target.name,
        "unit": target.unit,
        "pixel_count": plan.region.pixels,
        "valid_pixel_count": total.pixels[0],
        "area_m2": total.area_m2[0] if total.area_m2 is not None else None,
        "mean": total.mean,
        "std": total.std,
        "minimum": total.minimum,
        "maximum": total.maximum,
        "model_id": bundle.model_id,
        "input_id": input_id,
    }]  # fmt: skip


def write_table(rows: Sequence[dict[str, Any]], schema: pa.Schema, path: Path, input_id: str | None = None) -> None:
    """Write rows as one Parquet file, with `input_id`, where there is one, in its metadata too."""
    table = pa.Table.from_pylist(list(rows), schema=schema.with_metadata({"input_id": input_id} if input_id else None))
    pq.write_table(table, path, compression="zstd")


def write_monitoring(table: pa.Table, path: Path, input_id: str) -> None:
    """Write one of the tables of a monitoring, with what it was made from in its metadata.

    Dictionaries, which hold a column of millions of equal strings in memory, are written as the strings they stand for.
    """
    fields = [field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field for field in table.schema]
    with monitoring_writer(path, pa.schema(fields), input_id) as writer:
        for start in range(0, table.num_rows, ROW_GROUP):
            writer.write_table(table.slice(start, ROW_GROUP).cast(writer.schema), row_group_size=ROW_GROUP)


def publish_tables(out: Place, tables: Mapping[str, tuple[Iterable[dict[str, Any]], pa.Schema]]) -> None:
    """Write tables, rows and schema by name, into the folder `out`, in place of what is there."""
    for name, (rows, schema) in tables.items():
        finished = storage.temporary(out, f"{name}.parquet")
        with storage.discarded(finished):
            write_table(list(rows), schema, finished)
            storage.publish(finished, out / f"{name}.parquet")


def read_rows(path: Place) -> list[dict[str, Any]]:
    """The rows of a table of ours, in this thread alone.

    `read_table`, and reading ahead, leave a thread behind that wants the interpreter once more: where that is ending, the process
    aborts with exit code 134 (pyarrow 26: 18 of 75 processes that ended right after it).
    """
    with storage.opened(path) as file, pq.ParquetFile(file, pre_buffer=False) as table:
        return table.read(use_threads=False).to_pylist()


def table_input_id(path: Place) -> str | None:
    """The input that a table was made from; None where there is no table."""
    try:
        with storage.sought(path) as file:
            metadata = pq.read_schema(file).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return None
    return metadata.get(b"input_id", b"").decode() or None
