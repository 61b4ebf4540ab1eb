"""The part of a region's report that shows its changed parcels: from what to what, and a card each with pictures and curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from html import escape

import duckdb

from pipeline.results.monitoring import Monitoring
from pipeline.results.page import amount, area_unit, table
from pipeline.results.provenance import Provenance, named
from pipeline.results.report_changes import SHOWN, Change, Seen, change_counts, curves_of, flows, latest_changes, pictures_of
from pipeline.results.svg import FAINT
from pipeline.results.time_charts import Mark, Series, time_chart

TITLES = {"class": "Another class", "index": "Less green than expected"}
ABOUT = {
    "class": "Another dominant class, kept over several dates.",
    "index": "The index lies below what the parcel's own history and its neighbours let expect. q is the share of false alarms"
    " among flags as sure as this one.",
}
CURVE = "#3c9d6b"


def changes_section(
    monitoring: Monitoring, connection: duckdb.DuckDBPyConnection, origin: Provenance, region: str, index: str | None, days: Sequence[date]
) -> str:  # fmt: skip
    """Counts, flows, and the latest changes of each kind."""
    counts = change_counts(connection)
    if not counts:
        return '<p class="faint">No parcel has changed.</p>'
    parts = [_flow_table(connection, origin)]
    for kind, count in counts.items():
        changes = latest_changes(connection, kind)
        geometry = monitoring.results / "parcel_geometry" / f"{region}.parquet"
        colours = {number: _rgb(colour) for number, colour in origin.classes.items()}
        seen = pictures_of(connection, geometry, origin.model, changes, colours)
        curves = _curves(connection, changes, index, days)
        told = f"{count.changes:,} changes of {count.parcels:,} parcels."
        if count.parcels > SHOWN:
            told += f" The latest of {SHOWN} are shown; all are in {'--query changed_parcels' if kind == 'class' else 'results/changes'}."
        about = f"{ABOUT.get(kind, '')} {told}".strip()
        parts.append(f'<h3>{escape(TITLES.get(kind, kind))}</h3><p class="faint">{escape(about)}</p>')
        parts.append(f'<div class="cards">{"".join(_card(change, seen, curves) for change in changes)}</div>')
    return "".join(parts)


def _flow_table(connection: duckdb.DuckDBPyConnection, origin: Provenance) -> str:
    found = flows(connection)
    if not found:
        return ""
    factor, unit = area_unit(max(flow.area_m2 for flow in found))
    rows = [
        [
            f"{named(origin, flow.from_class_id, flow.from_class_name)} → {named(origin, flow.to_class_id, flow.to_class_name)}",
            f"{flow.times:,}",
            amount(flow.area_m2 / factor),
        ]
        for flow in found
    ]
    return f"<h3>From what to what</h3>{table(['', 'times', unit], rows)}"


def _curves(
    connection: duckdb.DuckDBPyConnection, changes: Sequence[Change], index: str | None, days: Sequence[date]
) -> Mapping[str, Sequence[Series]]:  # fmt: skip
    """Of each parcel the curve of the index that fell, or of the one that seasons are told by."""
    found: dict[str, Sequence[Series]] = {}
    for name in sorted({change.index_name or index for change in changes} - {None}, key=str):
        ids = [change.parcel_id for change in changes if (change.index_name or index) == name]
        found |= curves_of(connection, ids, str(name), days, (FAINT, CURVE))
    return found


def _card(change: Change, seen: Mapping[tuple[str, date], Seen], curves: Mapping[str, Sequence[Series]]) -> str:
    before, since = (seen.get((change.parcel_id, day)) for day in (change.before_date, change.since_date))
    chart = time_chart(
        curves.get(change.parcel_id, ()), width=330, height=130, marks=[Mark(change.since_date, str(change.since_date))],
        title=f"curve of {change.parcel_id}",
    )  # fmt: skip
    figures = "".join(_figure(change.parcel_id, day, what) for day, what in ((change.before_date, before), (change.since_date, since)))
    pair = f'<div class="pair">{figures}</div>' if figures else ""
    return f'<div class="card"><h3>{escape(change.parcel_id)}</h3><p>{_told(change)}</p>{pair}{chart}</div>'


def _figure(parcel: str, day: date, seen: Seen | None) -> str:
    if seen is None or seen.pictures is None:
        return ""
    images = [("scene", seen.pictures.scene), ("classes", seen.pictures.mask)]
    shown = "".join(f'<img src="{uri}" alt="{escape(f"{what} of {parcel} on {day}")}">' for what, uri in images if uri)
    return f"<figure>{shown}<figcaption>{day}: {escape(seen.class_name or '')}</figcaption></figure>"


def _told(change: Change) -> str:
    """What changed, when, and how sure that is, escaped."""
    if change.kind == "class":
        what = f"<b>{escape(change.from_class_name or '')} → {escape(change.to_class_name or '')}</b>"
        sure = ""
    else:
        what = f"<b>{escape(change.index_name or '')} {_number(change.value_before)} → {_number(change.value_after)}</b>"
        sure = f", expected {_number(change.expected_after)}, q {_number(change.q)}"
    place = "" if change.area_m2 is None else f" · {amount(change.area_m2 / 1e4)} ha"
    district = f" · district {escape(change.district_id)}" if change.district_id else ""
    return f"{what}{sure}<br>between {change.before_date} and {change.since_date}, sure since {change.confirmed_date}{place}{district}"


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.2g}"


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour[1:])
    return red, green, blue
