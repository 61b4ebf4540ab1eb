"""What a person is told of the scenes of a run, in lines: the area of each class, or the values of each scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import one_line

Rows = Sequence[Mapping[str, Any]]  # a scene's table
SCENES_SHOWN = 10  # more are told as one
WIDEST = 32  # characters of a name


def summary(tables: Sequence[Rows]) -> list[str]:
    """The lines that tell of the tables of some scenes, which are all AREAS or all VALUES."""
    if tables and "target_name" in tables[0][0]:
        return values_lines([table[0] for table in tables])
    if len(tables) <= SCENES_SHOWN:
        return [line for rows in tables for line in areas_lines(rows[0]["scene_id"], rows)]
    return areas_lines(f"{len(tables)} scenes", add_areas(tables))


def add_areas(tables: Sequence[Rows]) -> list[dict[str, Any]]:
    """One table of several scenes; areas are those of the scenes that have a place on the ground."""
    total = [dict(row, pixel_count=0, area_m2=0.0) for row in tables[0]]
    for rows in tables:
        for row, more in zip(total, rows, strict=True):
            row["pixel_count"] += more["pixel_count"]
            row["area_m2"] += more["area_m2"] or 0.0
    valid = sum(row["pixel_count"] for row in total)
    return [row | {"share": row["pixel_count"] / valid if valid else None} for row in total]


def areas_lines(title: str, rows: Rows) -> list[str]:
    """A line a class."""
    lines = ["", one_line(title)]
    for row in rows:
        area = "" if row["area_m2"] is None else f"{row['area_m2'] / 1e6:14,.2f} km2"
        share = "" if row["share"] is None else f"{row['share']:8.2%}"
        name = one_line(row["class_name"])[:WIDEST]
        lines.append(f"  {row['class_id']:3d} {name:{WIDEST}s}{row['pixel_count']:14,d} px{area}{share}")
    return lines


def values_lines(rows: Rows) -> list[str]:
    """A line a scene, or one of all."""
    first = rows[0]
    shown = [(row["scene_id"], row) for row in rows] if len(rows) <= SCENES_SHOWN else [(f"{len(rows)} scenes", add_values(rows))]
    unit = f" ({one_line(first['unit'])[:WIDEST]})" if first["unit"] else ""
    return ["", f"{one_line(first['target_name'])[:WIDEST]}{unit}", *(values_line(title, row) for title, row in shown)]


def add_values(rows: Rows) -> dict[str, Any]:
    """The row of all scenes; the area is that of the scenes that have a place on the ground."""
    known = [row for row in rows if row["mean"] is not None]
    pixels = sum(row["valid_pixel_count"] for row in known)
    return {
        "mean": sum(row["mean"] * row["valid_pixel_count"] for row in known) / pixels if known else None,
        "minimum": min((row["minimum"] for row in known), default=None),
        "maximum": max((row["maximum"] for row in known), default=None),
        "valid_pixel_count": pixels,
        "area_m2": sum(row["area_m2"] or 0.0 for row in rows),
    }


def values_line(title: str, row: Mapping[str, Any]) -> str:
    values = "no value" if row["mean"] is None else f"mean {short(row['mean'])}, {short(row['minimum'])} to {short(row['maximum'])}"
    area = "" if row["area_m2"] is None else f"{row['area_m2'] / 1e6:14,.2f} km2"
    return f"  {one_line(title)[:WIDEST]:{WIDEST}s} {values:32s}{row['valid_pixel_count']:14,d} px{area}"


def short(value: float) -> str:
    """A number with four digits, as a person reads it.

    >>> short(12.3456), short(98765.4), short(0.00001234)
    ('12.35', '98,765', '1.234e-05')
    """
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
