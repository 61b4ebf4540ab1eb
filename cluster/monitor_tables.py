"""The tables of a region: of each date from its masks, then those that follow from all dates; what is current is left."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.monitor import Model, Seen, with_indices
from cluster.monitor_config import Watch
from pipeline.errors import Refused, Unreadable
from pipeline.imagery import storage
from pipeline.imagery.composites import recipe_of
from pipeline.imagery.parcels import Parcels, read_parcels
from pipeline.imagery.storage import Place
from pipeline.results.mosaic import collection_input_id, item_collection, write_index
from pipeline.results.over_time import write_over_time
from pipeline.results.parcel_geometry import write_districts, write_parcel_geometry
from pipeline.results.parcel_tables import MadeFrom, indices_table, parcels_table
from pipeline.results.region_areas import Districts, count_region, region_areas_table
from pipeline.results.region_dates import DatedScene, input_id_of, publish_table, table_of
from pipeline.results.seen import SeenScene
from pipeline.results.tables import MONITORING_SCHEMA_VERSION, partition_of, write_monitoring
from pipeline.results.zonal import OUTSIDE, Coverages, parcel_statistics


@dataclass(frozen=True)
class Ground:
    """What a region is told by: its parcels and its districts, if it has any."""

    parcels: Parcels
    districts: Parcels | None
    coverages: Coverages  # of the parcels, on every grid that a date had

    @property
    def notes(self) -> list[str]:
        """What was repaired or dropped while they were read."""
        return [*self.parcels.notes, *(self.districts.notes if self.districts else ())]


@dataclass
class Made:
    """What was done: dates whose tables are new, and why those of other dates are not."""

    days: list[date] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)  # dates that stay as they were
    outside: list[str] = field(default_factory=list)  # parcels that no scene of these dates reaches
    flips: int | None = None  # changes of class in all, where they were looked for
    drops: int | None = None  # of an index


def read_ground(watch: Watch) -> Ground:
    """Read the vector files of a region. Raises Refused."""
    districts = read_parcels(watch.districts, watch.district_id) if watch.districts else None
    parcels = read_parcels(watch.parcels, watch.parcel_id)
    return Ground(parcels, districts, Coverages(parcels))


def made_with(watch: Watch, model: Model, ground: Ground) -> dict[str, Any]:
    """All but the scenes that changes a row of a date's tables."""
    evaluation = model.bundle.metrics.get("evaluation") or {}
    return {
        "model_id": model.bundle.model_id, "parcels": ground.parcels.parcels_id,
        "districts": ground.districts.parcels_id if ground.districts else None,
        "indices": {name: formula.text for name, formula in watch.indices.items()},
        "minimum_valid_share": watch.minimum_valid_share, "area": watch.area.label if watch.area else None,
        "confusion": evaluation.get("confusion_truth_predicted"),
    }  # fmt: skip


def due(
    watch: Watch, model: Model, ground: Ground, dates: Mapping[date, Sequence[DatedScene]]
) -> Iterator[tuple[date, Sequence[DatedScene], str]]:  # fmt: skip
    """The dates whose tables are not those of their scenes and of what the region is told by, with what they are to be made of."""
    about = made_with(watch, model, ground)
    for day, scenes in dates.items():
        input_id = input_id_of(scenes, about)
        if collection_input_id(_collection(watch, model, day)) != input_id:
            yield day, scenes, input_id


def _collection(watch: Watch, model: Model, day: date) -> Place:
    return model.folder / "mosaics" / partition_of(day) / f"{watch.region}.json"


def make_dates(watch: Watch, model: Model, seen: Seen, ground: Ground, dates: Mapping[date, Sequence[DatedScene]]) -> Made:
    """Make the tables of every date whose scenes, or what it is told by, changed."""
    made, reached_P = Made(), np.zeros(len(ground.parcels), bool)
    for day, scenes, input_id in due(watch, model, ground, dates):
        if why := _incomplete(_collection(watch, model, day), day, seen):
            made.kept[day.isoformat()] = why
            continue
        try:
            reached_P |= _make_date(watch, model, seen, ground, day, scenes, input_id)
        except (Unreadable, Refused) as error:
            made.failed[day.isoformat()] = str(error)
            continue
        made.days.append(day)
    made.outside = [str(name) for name in ground.parcels.ids[~reached_P]] if made.days else []
    return made


def _incomplete(collection: Place, day: date, seen: Seen) -> str | None:
    """Why a date that is there is not made anew: of the scenes that it was made from one cannot be had now."""
    there = storage.read_json(collection)
    if there is None:
        return None
    before = {link["href"] for item in there["features"] for link in item["links"] if link["rel"] == "derived_from"}
    replaced = {old for old, new in seen.superseded.items() if new in seen.done}
    gone = sorted(before - seen.done.keys() - replaced)
    if gone:
        return f"{day} stays as it was: {gone[0]}, which it was made from, is not in the archive any more, or failed"
    return None


def _make_date(
    watch: Watch, model: Model, seen: Seen, ground: Ground, day: date, scenes: Sequence[DatedScene], input_id: str
) -> np.ndarray:  # fmt: skip
    """The areas of region and districts, the tables of parcels, the mosaic's index; its item collection comes last: then all is there.

    Returns which parcels its scenes reach.
    """
    collection = _collection(watch, model, day)
    folder = collection.parent
    districts = _districts(ground)

    def put(kind: str, table: pa.Table) -> None:
        write = partial(write_monitoring, table, input_id=input_id)
        publish_table(table_of(model.results, kind, day, watch.region), input_id, write, scenes)

    counts = count_region(
        [scene.layer("mask") for scene in scenes], districts, len(model.bundle.classes), watch.area and watch.area.polygons
    )
    put("areas", region_areas_table(counts, districts, model.bundle, input_id))
    shown = [_seen(watch, model, seen, dated) for dated in scenes]
    found = parcel_statistics(ground.coverages, shown, len(model.bundle.classes), watch.minimum_valid_share)
    made, opened = MadeFrom(model.bundle.model_id, input_id), [each.scene for each in shown]
    names = {entry.id: entry.name for entry in model.bundle.classes}
    put("parcels", parcels_table(ground.parcels.ids, ground.parcels.area_m2, found, opened, names, made))
    if found.indices:
        put("indices", indices_table(ground.parcels.ids, found, opened, made))
    else:
        storage.remove(table_of(model.results, "indices", day, watch.region))  # of a config that had some
    with storage.temporary_folder(folder) as shop:
        finished = shop / f"{watch.region}.gti.gpkg"
        write_index(scenes, "mask", finished)
        storage.publish(finished, folder / finished.name)
    storage.replace_json(collection, item_collection(scenes, input_id))
    return found.state_P != OUTSIDE


def _seen(watch: Watch, model: Model, seen: Seen, dated: DatedScene) -> SeenScene:
    """A scene as its parcels are counted. Raises Refused, Unreadable."""
    confidence = dated.layer("confidence") if "confidence" in dated.plan.layers else None
    if recipe_of(model.bundle.bands) or not watch.indices:  # a stack has no bands of one date
        return SeenScene(dated.scene, dated.layer("mask"), confidence)
    scene = with_indices(dated, seen.sources[dated.scene.uri], model, watch.index_bands)
    return SeenScene(scene, dated.layer("mask"), confidence, watch.indices)


def _districts(ground: Ground) -> Districts:
    import geopandas

    if ground.districts is None:
        return Districts([], geopandas.GeoSeries([]))
    return Districts(list(ground.districts.ids), geopandas.GeoSeries(ground.districts.polygons, crs=ground.districts.crs))


def make_over_time(watch: Watch, model: Model, ground: Ground, made: Made) -> bool:
    """Make what follows from all dates, where it is not current; False where it was. What cannot be made is added to `made`, in place."""
    try:
        placed = _place_parcels(watch, model, ground)
        found = write_over_time(model.results, watch.region, watch.over_time, model.bundle.model_id)
    except (Refused, Unreadable) as error:
        made.failed["over time"] = str(error)
        return False
    made.flips, made.drops = found.flips, found.drops
    return found.made or placed


def _place_parcels(watch: Watch, model: Model, ground: Ground) -> bool:
    """Write where parcels and districts are, unless that is there; False where it was."""
    parcels, districts = ground.parcels, ground.districts
    content = f"{MONITORING_SCHEMA_VERSION} {parcels.parcels_id} {districts.parcels_id if districts else None}"
    input_id = hashlib.sha256(content.encode()).hexdigest()[:16]

    def put(kind: str, write: Callable[[Path], object]) -> bool:
        return publish_table(table_of(model.results, kind, None, watch.region), input_id, write)

    written = put("parcel_geometry", lambda file: write_parcel_geometry(file, parcels, districts, input_id))
    if districts is None:
        storage.remove(table_of(model.results, "districts", None, watch.region))
        return written
    return put("districts", lambda file: write_districts(file, districts, input_id)) or written
