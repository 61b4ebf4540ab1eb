"""The parcels of one scene: a table made from its published mask, or values, and published as the other tables are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import shapely

from pipeline.errors import Refused, Unreadable
from pipeline.imagery.bands import Band
from pipeline.imagery.catalogue import find_sources
from pipeline.imagery.expressions import Expression
from pipeline.imagery.parcels import Parcels, some
from pipeline.imagery.pixel_space import to_pixels
from pipeline.imagery.raster import Scene, open_scene
from pipeline.imagery.storage import Place
from pipeline.inference.ledger import SceneLedger
from pipeline.models.bundle import Bundle
from pipeline.results.parcel_tables import MadeFrom, indices_table, parcels_table
from pipeline.results.publish import parcels_input_id, parcels_path, raster_input_id
from pipeline.results.region_dates import publish_table
from pipeline.results.seen import SeenScene
from pipeline.results.tables import table_input_id, write_monitoring
from pipeline.results.zonal import OUTSIDE, Coverages, ParcelStatistics, parcel_statistics

VALUE = "value"  # what the band of a raster of values is called in a formula


def check_parcels(name: str, parcels: Parcels, scenes: Sequence[Scene]) -> list[str]:
    """What a person should know of parcels that lie outside of all scenes. Raises Refused where all do, or a scene has no place."""
    outside_P = np.ones(len(parcels), bool)
    for scene in scenes:
        if not scene.on_ground:
            raise Refused(f"{scene.uri}: has no place on the ground, so no parcel lies in it: assign its CRS (gdal_edit.py -a_srs)")
        outside_P &= shapely.is_empty(to_pixels(parcels.polygons, parcels.crs, scene.grid))
    if outside_P.all():
        raise Refused(f"{name}: none of its {len(parcels):,} parcels lies in a scene: check its CRS, and the scenes (--parcels)")
    if outside_P.any():
        return [f"{int(outside_P.sum()):,} of {len(parcels):,} parcels lie in no scene ({some(parcels.ids[outside_P])})"]
    return []


def publish_parcels(ledger: SceneLedger, bundle: Bundle, coverages: Coverages) -> bool:
    """Publish the table of the parcels that a published scene reaches, unless it is there; False where it was.

    It has the columns of PARCELS, of a bundle with a target those of INDICES, with the target as the index. Raises Unreadable where
    the raster is not of the attempt, or is replaced meanwhile.
    """
    place, input_id = parcels_path(ledger), parcels_input_id(ledger, coverages.parcels.parcels_id)
    if table_input_id(place) == input_id:
        return False
    raster = ledger.scene_folder / f"{bundle.layer}.tif"
    _check_attempt(raster, ledger)
    plan = ledger.plan()
    if plan is None:
        raise Unreadable(f"{ledger.folder}: holds no plan: do the scene again (--fresh)")
    made = MadeFrom(bundle.model_id, input_id)
    if bundle.target:
        seen = SeenScene(_value_scene(raster, bundle, plan.scene), None, None, {bundle.target.name: Expression.parse(VALUE)})
        reached = _reached(coverages, parcel_statistics(coverages, [seen], 0))
        table = indices_table(reached.ids, reached.found, [plan.scene], made)
    else:
        confidence = ledger.scene_folder / "confidence.tif" if "confidence" in plan.layers else None
        seen, classes = SeenScene(plan.scene, raster, confidence), {entry.id: entry.name for entry in bundle.classes}
        reached = _reached(coverages, parcel_statistics(coverages, [seen], len(classes)))
        table = parcels_table(reached.ids, reached.area_m2, reached.found, [plan.scene], classes, made)
    _check_attempt(raster, ledger)
    return publish_table(place, input_id, lambda path: write_monitoring(table, path, input_id))


def _check_attempt(raster: Place, ledger: SceneLedger) -> None:
    if raster_input_id(raster) != ledger.attempt:
        raise Unreadable(f"{raster}: is of another attempt at the scene: start again")


def _value_scene(raster: Place, bundle: Bundle, scene: Scene) -> Scene:
    """The published values as a scene of one band."""
    assert bundle.target is not None
    (source,) = find_sources([str(raster)])
    return replace(open_scene(source, [Band(VALUE, common_name=bundle.target.name)]), scene_id=scene.scene_id, datetime=scene.datetime)


class _Reached(NamedTuple):
    """The parcels that a scene reaches, and what it says of them."""

    ids: np.ndarray
    area_m2: np.ndarray
    found: ParcelStatistics


def _reached(coverages: Coverages, found: ParcelStatistics) -> _Reached:
    """Of a million parcels of a country a scene reaches a part; rows of the others would say nothing."""
    inside_P = found.state_P != OUTSIDE
    return _Reached(coverages.parcels.ids[inside_P], coverages.parcels.area_m2[inside_P], found.only(inside_P))
