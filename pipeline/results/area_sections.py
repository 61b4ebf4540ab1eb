"""The parts of a region's report that tell areas: of classes over time, on the latest date, and by district."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import duckdb

from pipeline.results.page import amount, area_unit, legend, table
from pipeline.results.provenance import Provenance, named
from pipeline.results.report_facts import ClassArea, Coverage, district_areas, districts_by_change
from pipeline.results.time_charts import Series, both, time_chart

DISTRICTS_SHOWN, CLASSES_ACROSS = 60, 8


def areas_section(areas: Sequence[ClassArea], seen: Coverage, origin: Provenance) -> str:
    """Shares of what was seen, since clouds take a part of the area away that is another one each day."""
    told, adjusted = set(seen.told), any(area.adjusted_area_m2 is not None for area in areas)
    series = []
    for number, name in {area.class_id: area.class_name for area in areas}.items():
        rows = [area for area in areas if area.class_id == number and area.day in told and area.valid_area_m2]
        values = [(area.area_m2 if area.adjusted_area_m2 is None else area.adjusted_area_m2) / area.valid_area_m2 for area in rows]
        low, high = _limits(rows)
        line = Series(name, origin.colour(number), [area.day for area in rows], values, low, high)
        series += [line, line._replace(dots=True)]
    chart = both(lambda width: time_chart(series, width=width, percent=True, title="class areas over time"))
    what = "error-adjusted (Olofsson et al. 2014), with 95 % intervals" if adjusted else "as mapped; the model holds no confusion matrix"
    left_out = len(seen.days) - len(told)
    more = f" {left_out} dates that show less than half of the region are left out." if left_out else ""
    entries = [(line.colour, line.name) for line in series[::2]]
    return (
        f'<p class="faint">Share of the area that was seen without cloud, {what}.{more}</p>{legend(entries)}{chart}'
        f"<h3>On {seen.latest}</h3>{_area_table(areas, seen, origin, adjusted)}"
    )


def _limits(rows: Sequence[ClassArea]) -> tuple[list[float], list[float]]:
    """The ends of intervals as shares of what was seen; NaN where there is none."""
    ends = [
        [math.nan if end is None else min(1.0, max(0.0, end / area.valid_area_m2)) for area, end in column]
        for column in ([(area, area.low_m2) for area in rows], [(area, area.high_m2) for area in rows])
    ]
    return ends[0], ends[1]


def _area_table(areas: Sequence[ClassArea], seen: Coverage, origin: Provenance, adjusted: bool) -> str:
    rows = [area for area in areas if area.day == seen.latest]
    factor, unit = area_unit(rows[0].seen_area_m2)
    heads = ["", f"mapped, {unit}", "share", *([f"adjusted, {unit}"] if adjusted else [])]
    cells = [
        [
            named(origin, area.class_id, area.class_name), amount(area.area_m2 / factor), _share(area.share),
            *([_interval(area, factor)] if adjusted else []),
        ]
        for area in rows
    ]  # fmt: skip
    reach = f"Its scenes reach {amount(rows[0].seen_area_m2 / factor)} {unit}, {amount(rows[0].valid_area_m2 / factor)} of it clear."
    return f'{table(heads, cells)}<p class="faint">{reach}</p>'


def districts_section(connection: duckdb.DuckDBPyConnection, seen: Coverage, origin: Provenance) -> str:
    areas = district_areas(connection, seen.latest)
    ranked = [row for row in districts_by_change(connection) if row["district_id"] is not None]
    if not {area.district_id for area in areas} - {""}:
        return '<p class="faint">No districts were given to this monitoring.</p>'
    changed = {row["district_id"]: row for row in ranked}
    order = [*changed, *sorted({area.district_id or "" for area in areas} - set(changed) - {""}), ""]
    classes = {area.class_id: area.class_name for area in areas}
    shown = dict(list(classes.items())[:CLASSES_ACROSS])
    found = {(area.district_id, area.class_id): area for area in areas}
    order = [name for name in order if any((name, number) in found for number in classes)]
    factor, unit = area_unit(max(area.seen_area_m2 for area in areas))
    rows = [
        [escape(name) or "in none", *_changed(changed.get(name)), *(_interval(found.get((name, number)), factor) for number in shown)]
        for name in order[:DISTRICTS_SHOWN]
    ]
    heads = ["district", "parcels", "changed", "of area", *(named(origin, number, name) for number, name in shown.items())]
    more = f" The first {DISTRICTS_SHOWN} of {len(order)}; --query districts_by_change gives all." if len(order) > DISTRICTS_SHOWN else ""
    cut = f" Of {len(classes)} classes {CLASSES_ACROSS} are shown." if len(classes) > CLASSES_ACROSS else ""
    ends = ", and their 95 % intervals" if any(area.low_m2 is not None for area in areas) else ""
    about = f"The most changed first; class areas in {unit} on {seen.latest}{ends}.{more}{cut}"
    return f'<p class="faint">{about}</p>{table(heads, rows)}'


def _changed(row: dict[str, Any] | None) -> list[str]:
    if row is None:
        return ["0", "0", ""]
    return [f"{row['parcel_count']:,}", f"{row['changed_count']:,}", _share(row["changed_share"])]


def _interval(area: ClassArea | None, factor: float) -> str:
    if area is None:
        return ""
    if area.adjusted_area_m2 is None:
        return amount(area.area_m2 / factor)
    ends = "" if area.low_m2 is None or area.high_m2 is None else f"{amount(area.low_m2 / factor)} to {amount(area.high_m2 / factor)}"
    return f"{amount(area.adjusted_area_m2 / factor)}<small>{ends}</small>"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
