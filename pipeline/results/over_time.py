"""The tables of a region that follow from all its dates: series, seasons and changes, made anew where anything they follow from changed.

They are made from the tables of the dates as if there were no others: in whatever order dates arrived, were replaced or went away,
the bytes are the same. All three carry one `input_id`, of the tables they were made from, of the parcels, and of the settings.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import Refused
from pipeline.imagery import storage
from pipeline.imagery.storage import Place
from pipeline.results.changes import ChangeSettings, Drops, class_flips, index_drops
from pipeline.results.curves import Curves, CurveSettings, chunks, fit_curves
from pipeline.results.history import History, Region, Sources, find_sources, index_name_of, parcels_input_id, read_history, read_region
from pipeline.results.over_time_tables import Rows, SeasonRows
from pipeline.results.peers import find_peers
from pipeline.results.phenology import UNKNOWN, Phenology, PhenologySettings, find_season
from pipeline.results.region_dates import is_current, publish_table, table_of
from pipeline.results.seasons import SeasonClass, SeasonSettings, SeasonWindow, days_since
from pipeline.results.tables import CHANGES, MONITORING_SCHEMA_VERSION, SEASONS, SERIES, monitoring_writer

METHOD = 1  # raised where the same input gives other rows than before
LEAD_IN_DAYS = 365  # before a season, from which parcels have a history
TABLES = ("series", "seasons", "changes")


@dataclass(frozen=True)
class OverTimeSettings:
    """How a region is followed over time. index: the one that curves are of; None where there is one only."""

    index: str | None = None
    curve: CurveSettings = field(default_factory=CurveSettings)
    season: SeasonSettings = field(default_factory=SeasonSettings)
    changes: ChangeSettings = field(default_factory=ChangeSettings)

    @classmethod
    def parse(cls, said: Mapping[str, Mapping[str, Any]]) -> OverTimeSettings:
        """Settings from the mappings `curve`, `season` and `changes` of a config, each of which may be missing.

        `season` may hold `index`, `windows` (a list of name, from, to), `fraction` and `minimum_amplitude`. Raises Refused.
        """
        season = dict(said.get("season") or {})
        index = season.pop("index", None)
        windows = season.pop("windows", None) or []
        if not isinstance(windows, list):
            raise Refused("season: windows: must be a list of name, from and to")
        shape = {key: season.pop(key) for key in [one.name for one in fields(PhenologySettings)] if key in season}
        phenology = _settings(PhenologySettings, shape, "season")
        given = {**season, "windows": tuple(SeasonWindow.parse(window) for window in windows), "phenology": phenology}
        return cls(
            str(index) if index is not None else None, _settings(CurveSettings, said.get("curve") or {}, "curve"),
            _settings(SeasonSettings, given, "season"), _settings(ChangeSettings, said.get("changes") or {}, "changes"),
        )  # fmt: skip


class Summary(NamedTuple):
    """What was done for a region. `made`: False where the tables were current; the counts are then None."""

    made: bool
    dates: int
    ignored: tuple[str, ...]  # tables that are of another model, by name
    flips: int | None = None
    drops: int | None = None


def write_over_time(results: Place, region: str, settings: OverTimeSettings, model_id: str) -> Summary:
    """Make series, seasons and changes of a region from the tables of its dates in `results`; nothing where they are current.

    Raises Refused where the tables do not fit together, Unreadable where another run put something else there meanwhile.
    """
    sources = find_sources(results, region, model_id)
    input_id = over_time_input_id(sources, parcels_input_id(results, region), settings, model_id)
    wanted = {kind: table_of(results, kind, None, region) for kind in TABLES}
    if all(is_current(table, input_id) for table in wanted.values()):
        return Summary(False, len(sources.days), sources.ignored)
    place = read_region(results, region)
    index_name = index_name_of(sources, settings.index)
    history = read_history(sources, place.ids, index_name, settings.season.windows_of([days_since(day) for day in sources.days]))
    rows = Rows(place.ids, index_name, model_id, input_id, history.classes)
    flips = class_flips(history.classes_TP, settings.changes.dates)
    drops = _drops(history, place, settings.changes)
    with storage.temporary_folder(results) as shop:
        finished = {kind: shop / f"{kind}.parquet" for kind in TABLES}
        _write_curves(history, settings, rows, finished["series"], finished["seasons"])
        with monitoring_writer(finished["changes"], CHANGES, input_id) as changes:
            rows.write_changes(changes, history, flips, drops)
        for kind, table in wanted.items():
            publish_table(table, input_id, partial(os.replace, finished[kind]))
    return Summary(True, len(sources.days), sources.ignored, len(flips.parcel), len(drops.parcel))


def over_time_input_id(sources: Sources, parcels: str, settings: OverTimeSettings, model_id: str) -> str:
    """What the three tables are made from; `parcels` is the `input_id` of their geometries' table."""
    tables = [[source.kind, str(source.day), source.input_id] for source in sources.tables]
    content = [METHOD, MONITORING_SCHEMA_VERSION, model_id, parcels, tables, asdict(settings)]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _drops(history: History, region: Region, settings: ChangeSettings) -> Drops:
    """Drops of each season against parcels of its own class; of dates in none, against all."""
    days, untold = history.days_T, np.ones(len(history.days_T), bool)
    found = []
    kinds = [evidence.decide().position for evidence in history.evidence]
    for window, kind in [*zip(history.windows, kinds, strict=True), (None, np.zeros(len(region.ids), np.uint8))]:
        wanted = untold & ((days >= window.days[0]) & (days <= window.days[1]) if window else True)
        untold &= ~wanted
        if wanted.any():
            first, last = days[wanted][[0, -1]] + (-LEAD_IN_DAYS, settings.history_days * settings.dates)
            rows = slice(*np.searchsorted(days, (first, last + 1)))
            peers = find_peers(region.xy_P2, kind, settings.neighbours)
            drops = index_drops(days[rows], history.values_TP[rows], peers, settings, wanted[rows])
            found.append(drops._replace(**{name: getattr(drops, name) + rows.start for name in ("before", "since", "confirmed")}))
    nothing = Drops(*(np.empty(0, np.int64) for _ in Drops._fields))
    return Drops(*(np.concatenate(column) for column in zip(nothing, *found, strict=True)))


def _write_curves(history: History, settings: OverTimeSettings, rows: Rows, series_path: Path, seasons_path: Path) -> None:
    """Series and seasons, some parcels at a time: no more curves are in memory at once."""
    with (
        monitoring_writer(series_path, SERIES, rows.input_id) as series,
        monitoring_writer(seasons_path, SEASONS, rows.input_id) as seasons,
    ):
        if not len(history.days_T):
            return
        decided = [evidence.decide() for evidence in history.evidence]
        for part in chunks(len(rows.ids)):
            curves = fit_curves(history.days_T, history.values_TP[:, part], history.shares_TP[:, part], settings.curve)
            rows.write_series(series, part.start, curves)
            told = [
                _season(window, curves, history, part, SeasonClass(*(column[part] for column in grown)), settings.season)
                for window, grown in zip(history.windows, decided, strict=True)
            ]
            rows.write_seasons(seasons, part.start, told)


def _season(
    window: SeasonWindow, curves: Curves, history: History, part: slice, grown: SeasonClass, settings: SeasonSettings
) -> SeasonRows:  # fmt: skip
    """A window of some parcels; with too few observations in it the season is unknown."""
    first, last = max(window.days[0], int(history.days_T[0])), min(window.days[1], int(history.days_T[-1]))
    inside = (history.days_T >= first) & (history.days_T <= last)
    seen = np.isfinite(history.values_TP[inside, part])
    count = seen.sum(axis=0)
    found = find_season(curves.days_G, curves.values_GP, window.days, settings.phenology)
    few = count < settings.minimum_observations
    state = np.where(few, UNKNOWN, found.state).astype(np.uint8)
    phenology = Phenology(state, *(np.where(few, np.nan, column) for column in found[1:]))
    return SeasonRows(window.name, phenology, grown, count, longest_gaps(history.days_T[inside], seen, first, last))


def longest_gaps(days_T: np.ndarray, seen_TP: np.ndarray, first: int, last: int) -> np.ndarray:
    """The most days between two observations, or one and an end of the window, of each parcel; -1 without any."""
    latest = np.full(seen_TP.shape[1], first)
    longest = np.zeros(seen_TP.shape[1], np.int64)
    for day, seen in zip(days_T, seen_TP, strict=True):
        longest = np.where(seen, np.maximum(longest, day - latest), longest)
        latest = np.where(seen, day, latest)
    return np.where(seen_TP.any(axis=0), np.maximum(longest, last - latest), -1)


def _settings(kind: type[Any], said: Mapping[str, Any], key: str) -> Any:
    """A dataclass of settings from a part of the config. Raises Refused that names the key."""
    if unknown := sorted(set(said) - {one.name for one in fields(kind)}):
        raise Refused(f"{key}: {unknown[0]}: no such setting")
    try:
        return kind(**said)
    except (TypeError, ValueError) as error:
        raise Refused(f"{key}: {error}") from None
