"""What is known of a region on each date: its scenes in order of priority, and the tables made from their masks."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from pipeline.errors import Unreadable
from pipeline.imagery import storage
from pipeline.imagery.catalogue import parse_datetime
from pipeline.imagery.raster import Scene, check_unchanged
from pipeline.imagery.storage import Place, Taken
from pipeline.inference.ledger import SceneLedger
from pipeline.inference.plan import Plan
from pipeline.results.tables import MONITORING_SCHEMA_VERSION, partition_of, table_input_id


@dataclass(frozen=True)
class DatedScene:
    """A scene whose mask is published, with what orders the scenes of a date."""

    plan: Plan
    ledger: SceneLedger
    valid_share: float  # of the pixels of its region
    off_nadir: float | None  # degrees

    @property
    def scene(self) -> Scene:
        return self.plan.scene

    @property
    def day(self) -> date:
        """The date in UTC on which it was seen."""
        when = parse_datetime(self.scene.datetime)
        assert when is not None
        return when.date()

    def layer(self, name: str) -> Place:
        return self.ledger.scene_folder / f"{name}.tif"


def by_date(scenes: Iterable[DatedScene]) -> dict[date, list[DatedScene]]:
    """The scenes of each date, dates in order. First comes the scene with the fewest nodata (in hundredths of its pixels), then the
    one seen nearest to nadir, then the one whose id comes first: where scenes overlap, the first that shows a place is believed."""
    groups: dict[date, list[DatedScene]] = defaultdict(list)
    for scene in scenes:
        groups[scene.day].append(scene)
    return {day: sorted(groups[day], key=_priority) for day in sorted(groups)}


def _priority(dated: DatedScene) -> tuple[Any, ...]:
    return -round(dated.valid_share, 2), dated.off_nadir if dated.off_nadir is not None else 90.0, dated.scene.scene_id, dated.scene.uri


def input_id_of(scenes: Sequence[DatedScene], made_with: Mapping[str, Any]) -> str:
    """What the tables of a date are made from: the scenes' attempts, in order, and all that changes a row."""
    attempts = [[dated.scene.uri, dated.ledger.attempt] for dated in scenes]
    content = json.dumps([MONITORING_SCHEMA_VERSION, attempts, made_with], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def table_of(results: Place, kind: str, day: date | None, region: str) -> Place:
    """Where a table of a region lies: `kind` is parcels, indices, areas (of a date), series, seasons, changes, parcel_geometry..."""
    folder = results / kind
    return (folder / partition_of(day) if day else folder) / f"{region}.parquet"


def is_current(place: Place, input_id: str) -> bool:
    return table_input_id(place) == input_id


def publish_table(place: Place, input_id: str, write: Callable[[Path], object], scenes: Sequence[DatedScene] = ()) -> bool:
    """Write a table and put it in place of what was there when this began, unless it is made of `input_id` already.

    False where there was nothing to do. Raises Unreadable where a scene changed meanwhile, or where another run put something else
    there.
    """
    before = storage.version(place)
    if is_current(place, input_id):
        return False
    with storage.discarded(storage.temporary(place.parent, place.name)) as finished:
        write(finished)
        for dated in scenes:
            check_unchanged(dated.scene)
        try:
            storage.publish(finished, place, onto=before)
        except Taken:
            if not is_current(place, input_id):
                raise Unreadable(f"{place}: another run put another table there meanwhile: start again") from None
    return True
