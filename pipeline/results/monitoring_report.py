"""A region's monitoring as one HTML page that loads nothing: map, areas, curves, changes, gaps, districts, and where they come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any

import duckdb

from pipeline.errors import Refused
from pipeline.imagery.storage import Place
from pipeline.results.area_sections import areas_section, districts_section
from pipeline.results.change_cards import changes_section
from pipeline.results.monitoring import Monitoring, listed
from pipeline.results.page import amount, area_unit, legend, page, section, table, write_page
from pipeline.results.parcel_map import PALETTE, UNKNOWN, draw_map
from pipeline.results.provenance import Provenance, named, read_provenance
from pipeline.results.report_changes import change_counts, changed_ids
from pipeline.results.report_facts import (
    ClassArea,
    Coverage,
    Gaps,
    class_areas,
    class_curves,
    coverage,
    curve_days,
    data_gaps,
    main_index,
    parcel_classes,
    parcel_totals,
)  # fmt: skip
from pipeline.results.time_charts import both, strip_chart, time_chart

RUNS_SHOWN, FAILED_SHOWN = 8, 40
TILES = {"class": "changed class", "index": "less green than expected"}
NO_PARCELS = '<p class="faint">No parcels were given to this monitoring.</p>'
STYLE = """
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(104px,1fr));gap:10px;margin:16px 0 4px}
.tiles div{background:var(--paper);border:1px solid var(--rule);border-radius:10px;padding:10px 14px}
.tiles b{display:block;font-size:22px;letter-spacing:-.01em;line-height:1.25}.tiles span{color:var(--faint);font-size:13px}
.map{display:table;position:relative;margin:12px auto 0;max-width:100%}
.map img{display:block;max-width:100%;max-height:86vh;width:auto;height:auto}
.ruler{display:flex;align-items:flex-end;justify-content:space-between;font-size:12px;color:var(--faint);margin-top:6px}
.ruler i{display:block;border:1.5px solid var(--ink);border-top:0;height:6px}.ruler div{flex:none}
.hand{display:none}@media (max-width:600px){.desk{display:none}.hand{display:block}
.tiles b{font-size:18px;white-space:nowrap}.tiles div{padding:8px 10px}}
.small{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));gap:10px 18px}
.small h3,.card h3{margin:8px 0 2px;overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr));gap:14px;margin-top:10px}
.card{border:1px solid var(--rule);border-radius:8px;padding:8px 12px 12px;min-width:0}.card p{margin:2px 0 8px;font-size:13.5px}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:10px;margin-bottom:8px}.pair figure{display:block;margin:0;min-width:0}
.pair img{width:100%;max-width:none;margin-bottom:4px}.pair figcaption{max-width:none;color:var(--ink)}
.from{display:grid;grid-template-columns:max-content 1fr;gap:4px 16px;margin:0 0 12px;font-size:13.5px}
.from dt{color:var(--faint)}.from dd{margin:0;overflow-wrap:anywhere;min-width:0}
td.text,.texts td{white-space:normal;text-align:left;overflow-wrap:anywhere;min-width:90px}.texts th{text-align:left}
"""


def write_report(monitoring: Monitoring, path: Place, when: datetime) -> None:
    """Write the page of a region, in place of what is there. Raises Refused, and Unreadable where the tables cannot be read."""
    write_page(report_html(monitoring, when), path)


def report_html(monitoring: Monitoring, when: datetime) -> str:
    """The page. All text that has another origin is escaped. Raises Refused where several regions are there and none is named."""
    region = monitoring.region or _only(monitoring)
    chosen = Monitoring(monitoring.out, region)
    origin = read_provenance(chosen.out, region)
    with chosen.connected() as connection, chosen.reading():
        return _page(chosen, connection, origin, region, when)


def _only(monitoring: Monitoring) -> str:
    if len(monitoring.regions) != 1:
        raise Refused(f"{monitoring.out}: has the regions {listed(monitoring.regions)}: say which with --of NAME")
    return monitoring.regions[0]


def _page(monitoring: Monitoring, connection: duckdb.DuckDBPyConnection, origin: Provenance, region: str, when: datetime) -> str:
    areas = class_areas(connection)
    seen = coverage(areas)
    if not seen.days:
        raise Refused(f"{monitoring.results}: has no areas of {region}: run jobs/monitor_crops.py again")
    parcels, area_m2 = parcel_totals(connection)
    counts, gaps = change_counts(connection), data_gaps(connection) if parcels else None
    factor, unit = area_unit(area_m2)
    facts = ["crop monitoring", f"{seen.days[0]} to {seen.days[-1]}", f"model {origin.model_id[:12]}", f"made {when:%Y-%m-%d %H:%M} UTC"]
    tiles = [(f"{len(seen.days):,}", "dates")]
    if gaps:
        tiles = [
            (f"{parcels:,}", "parcels"), (f"{amount(area_m2 / factor)} {unit}", "of parcels"), *tiles,
            *((f"{counts[kind].parcels if kind in counts else 0:,}", told) for kind, told in TILES.items()),
            (f"{gaps.never:,}", "never known"),
        ]  # fmt: skip
    index = main_index(connection)
    body = [
        f'<h1>{escape(region)}</h1><p class="faint">{escape(" · ".join(facts))}</p>',
        '<div class="tiles">'
        + "".join(f"<div><b>{escape(number)}</b><span>{escape(what)}</span></div>" for number, what in tiles)
        + "</div>",
        section("Parcels", _map(monitoring, connection, origin, region, parcels) if parcels else NO_PARCELS),
        section("Class areas over time", areas_section(areas, seen, origin)),
    ]
    days = curve_days(connection, index) if index else []
    if index and days:
        body.append(section(f"Season curves: {escape(index)}", _curves(connection, areas, origin, index, days)))
    if gaps:
        body.append(section("Changed parcels", changes_section(monitoring, connection, origin, region, index, days)))
        body.append(section("Data gaps", _gaps(seen, gaps)))
    body.append(section("Districts", districts_section(connection, seen, origin)))
    body.append(section("Where this comes from", _origin(connection, origin, seen)))
    return page(f"{escape(region)}: crop monitoring", body, STYLE)


def _map(monitoring: Monitoring, connection: duckdb.DuckDBPyConnection, origin: Provenance, region: str, parcels: int) -> str:
    kinds = parcel_classes(connection)
    drawn = draw_map(
        monitoring.results / "parcel_geometry" / f"{region}.parquet", kinds.ids, kinds.classes,
        {number: origin.colour(number) for number in set(kinds.classes)}, changed_ids(connection),
    )  # fmt: skip
    names = dict(connection.execute("SELECT DISTINCT class_id, class_name FROM areas ORDER BY class_id").fetchall())
    counts = Counter(kinds.classes)
    entries = [(origin.colour(number), f"{name} {counts[number]:,}") for number, name in names.items()]
    entries.append((PALETTE[UNKNOWN], f"unknown {parcels - len(kinds.ids):,}"))
    told = " Dark edges: parcels that changed." if drawn.outlined else ""
    ruler = (
        f'<div class="ruler"><div style="width:{drawn.scale_share:.2%}">{_length(drawn.scale_m)}<i></i></div><div>north is up</div></div>'
    )
    alt = f"map of {region}: {kinds.title}"
    return (
        f'<p class="faint">{escape(kinds.title.capitalize())}.{told}</p>{legend(entries)}<div class="map">'
        f'<img src="{drawn.uri}" width="{drawn.width}" height="{drawn.height}" alt="{escape(alt)}">{ruler}</div>'
    )


def _length(metres: float) -> str:
    return f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"


def _curves(
    connection: duckdb.DuckDBPyConnection, areas: Sequence[ClassArea], origin: Provenance, index: str, days: Sequence[Any]
) -> str:  # fmt: skip
    names = {area.class_id: area.class_name for area in areas}
    curves = class_curves(connection, index, days)
    if not curves:
        return '<p class="faint">No parcel with a curve has a class.</p>'
    limits = (min(min(curve.low) for curve in curves), max(max(curve.high) for curve in curves))
    span = (min(days), max(days))
    parts = []
    for curve in curves:
        name = names.get(curve.class_id, str(curve.class_id))
        chart = time_chart(
            [curve.series(name, origin.colour(curve.class_id))], width=330, height=170, limits=limits, span=span, title=f"{index} of {name}"
        )
        parts.append(f"<div><h3>{named(origin, curve.class_id, name)} <small>{curve.parcels:,} parcels</small></h3>{chart}</div>")
    return (
        '<p class="faint">Of the parcels of each class in the map: median, and the quarter of them below and above it.</p>'
        f'<div class="small">{"".join(parts)}</div>'
    )


def _gaps(seen: Coverage, gaps: Gaps) -> str:
    heads = ["parcel", "dates known", "unknown", "outside", "last known", "longest gap"]
    rows = [
        [
            escape(row["parcel_id"]), str(row["known_dates"]), str(row["unknown_dates"]), str(row["outside_dates"]),
            str(row["last_known_date"] or "never"), f"{row['longest_gap_days']} days",
        ]
        for row in gaps.rows
    ]  # fmt: skip
    strip = both(lambda width: strip_chart(seen.days, seen.shares, "#2563a8", width=width))
    return (
        f'<p class="faint">How much of the region each date tells: what its scenes reach and no cloud covers.</p>{strip}'
        f"<p>The longest gap of a parcel is {gaps.median_days} days in the median; {gaps.long:,} of {gaps.parcels:,} parcels have one of"
        f" 30 days or more, {gaps.never:,} are never known.</p><h3>Longest gaps</h3>{table(heads, rows)}"
    )


def _origin(connection: duckdb.DuckDBPyConnection, origin: Provenance, seen: Coverage) -> str:
    (scenes,) = connection.execute("SELECT count(DISTINCT scene_id) FROM parcels").fetchone() or (0,)
    software = ", ".join(f"{name} {version}" for name, version in origin.software.items())
    facts = {
        "model": f"{origin.model_id or 'not named'}{f' ({origin.path})' if origin.path else ''}",
        "dates": f"{len(seen.days)}, {seen.days[0]} to {seen.days[-1]}",
        "scenes": f"{scenes:,} tell of parcels",
        "software": software or "no run has said it",
    }
    parts = ['<dl class="from">', *(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items()), "</dl>"]
    if origin.runs:
        rows = [_run(run) for run in origin.runs[:RUNS_SHOWN]]
        parts.append(f"<h3>Runs</h3>{table(['started', 'outcome', 'exit code', 'dates', 'scenes', 'failed'], rows)}")
        if origin.run_count > len(rows):
            parts.append(f'<p class="faint">The latest {len(rows)} of {origin.run_count:,}.</p>')
    if origin.failed:
        failed = [[escape(name), escape(reason)] for name, reason in list(origin.failed.items())[:FAILED_SHOWN]]
        parts.append(f"<h3>Not used</h3>{table(['scene or date', 'why'], failed, kind='texts')}")
        if len(origin.failed) > FAILED_SHOWN:
            parts.append(f'<p class="faint">The first {FAILED_SHOWN} of {len(origin.failed):,}.</p>')
    return "".join(parts)


def _run(run: Mapping[str, Any]) -> list[str]:
    said = [escape(str(run.get(name, ""))) for name in ("started", "outcome", "exit_code")]
    return [*said, *(f"{len(run.get(name) or ()):,}" for name in ("dates", "scenes_segmented", "scenes_failed"))]
