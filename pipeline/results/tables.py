"""The tables that analysts query: every schema is here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.inference.part import Tally
from pipeline.inference.plan import Plan
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


def add_up(tallies: Sequence[Tally], classes: int) -> Tally:
    """The totals of a scene. They do not depend on the order of its parts: areas are summed exactly, then rounded."""
    pixels = np.zeros(classes, np.int64)
    for tally in tallies:
        pixels += tally.pixels
    areas = [tally.area_m2 for tally in tallies if tally.area_m2 is not None]
    confidence = [tally.confidence for tally in tallies if tally.confidence is not None]
    return Tally(
        pixels=pixels.tolist(),
        area_m2=[round(math.fsum(parts), 6) for parts in zip(*areas, strict=True)] if areas else None,
        confidence=np.sum(confidence, axis=0).tolist() if confidence else None,
    )


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


def write_table(rows: Sequence[dict[str, Any]], schema: pa.Schema, path: Path, input_id: str) -> None:
    """Write rows as one Parquet file, with `input_id` in its metadata too."""
    table = pa.Table.from_pylist(list(rows), schema=schema.with_metadata({"input_id": input_id}))
    pq.write_table(table, path, compression="zstd")


def table_input_id(path: Path) -> str | None:
    """The input that a table was made from; None where there is no table."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return None
    return metadata.get(b"input_id", b"").decode() or None


def parse_datetime(text: str | None) -> datetime | None:
    """ISO 8601 as a time in UTC; a time without a zone is taken as UTC; None for what is not a time."""
    try:
        when = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    return when if when is None else when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
