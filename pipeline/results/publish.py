"""Make a scene's results from its parts: manifest first, then each file, old or new as a whole.

The manifest commits a scene: what is published follows from it and from the parts, so a run that is killed anywhere is
finished by the next. Each file carries the attempt it was made from (`input_id`), which is how a scene is known to be done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.errors import Refused, Unreadable
from pipeline.geometry.windows import Window
from pipeline.imagery import storage
from pipeline.imagery.raster import Scene, check_unchanged, opened_dataset
from pipeline.imagery.storage import Place, Taken, json_bytes
from pipeline.inference.cog import write_layer
from pipeline.inference.ledger import SceneLedger
from pipeline.inference.part import FailedWindow, read_part
from pipeline.inference.plan import Plan
from pipeline.inference.tally import total
from pipeline.models.bundle import Bundle
from pipeline.results.polygons import PolygonOptions, polygons_made_from, write_polygons
from pipeline.results.quicklook import draw_quicklook, quicklook_input_id
from pipeline.results.stac import MadeFile, item_made_from, make_item
from pipeline.results.tables import AREAS, VALUES, areas_rows, read_rows, table_input_id, values_rows, write_table


class Table(NamedTuple):
    """The table that belongs to a mask or to values: its folder in OUT/results, its schema, and what makes its rows."""

    folder: str
    schema: pa.Schema
    rows: Callable[[Plan, Bundle, Any, str], list[dict[str, Any]]]


PARCELS_FOLDER = "parcels"  # in OUT/results
TABLES = {"mask": Table("areas", AREAS, areas_rows), "value": Table("values", VALUES, values_rows)}  # by a plan's first layer


POLYGONS_NAME = "polygons.parquet"


@dataclass(frozen=True)
class Published:
    """What is there for a scene: its `raster`, mask or values, the `rows` of its table, and the windows that failed."""

    raster: Place
    rows: list[dict[str, Any]]
    failed: list[FailedWindow]
    complete: bool
    committed: bool  # this driver's manifest holds


def table_path(ledger: SceneLedger, layer: str) -> Place:
    """Where the table of a scene's mask or values is."""
    return storage.place_of(ledger.out) / "results" / TABLES[layer].folder / f"{ledger.scene}.parquet"


def parcels_path(ledger: SceneLedger) -> Place:
    """Where the table of a scene's parcels is, if one was asked for."""
    return storage.place_of(ledger.out) / "results" / PARCELS_FOLDER / f"{ledger.scene}.parquet"


def parcels_input_id(ledger: SceneLedger, parcels_id: str) -> str:
    """What the table of a scene's parcels is made from: the attempt at the scene, and the parcels."""
    return f"{ledger.attempt}+{parcels_id}"


def published_rows(ledger: SceneLedger, layer: str) -> list[dict[str, Any]]:
    """The rows of a published scene's table."""
    return read_rows(table_path(ledger, layer))


def is_done(ledger: SceneLedger, layers: tuple[str, ...], polygons: PolygonOptions | None = None) -> bool:
    """Whether the manifest is there and every published file was made from this attempt, with `polygons` those too."""
    if ledger.manifest() is None:
        return False
    folder, attempt = ledger.scene_folder, ledger.attempt
    return (
        all(raster_input_id(folder / f"{layer}.tif") == attempt for layer in layers)
        and table_input_id(table_path(ledger, layers[0])) == attempt
        and quicklook_input_id(folder / "quicklook.png") == attempt
        and item_made_from(folder / "item.json", polygons) == attempt
        and (polygons is None or polygons_input_id(folder / POLYGONS_NAME, polygons) == attempt)
    )


def polygons_input_id(path: Place, options: PolygonOptions) -> str | None:
    """The attempt that a file of polygons was made from; None where there is none, or one with other options."""
    found = polygons_made_from(path)
    return found[0] if found and found[1] == options else None


def raster_input_id(path: Place) -> str | None:
    """The attempt that a raster was made from; None where there is none."""
    try:
        with opened_dataset(path) as dataset:
            return dataset.tags().get("INPUT_ID")
    except Refused:
        return None


def publish_scene(
    ledger: SceneLedger, plan: Plan, bundle: Bundle, run_id: str, *, accept_partial: bool, polygons: PolygonOptions | None = None
) -> Published:  # fmt: skip
    """Publish what the parts hold: the scene, or a partial raster where shards or windows failed.

    Where another driver has published all of it, nothing is done; where all but the polygons is there, no part is needed. Raises
    Unreadable, with nothing more published, where the input no longer has the version that was read.
    """
    check_unchanged(plan.scene)
    if is_done(ledger, plan.layers, polygons):
        return _published_before(ledger, plan.layers[0], run_id)
    if polygons and is_done(ledger, plan.layers):
        published = _published_before(ledger, plan.layers[0], run_id)
        _publish_files(ledger, plan, bundle, [], published.rows, polygons)
        return published
    whole = not ledger.missing(plan)  # before the parts are listed: another driver may add some between the two
    places = ledger.parts(plan)
    with storage.all_here([place for _, place in places]) as copies:
        parts = Parts([(shard, path) for (shard, _), path in zip(places, copies, strict=True)], [place.name for _, place in places], whole)
        return _publish_parts(ledger, plan, bundle, run_id, parts, accept_partial, polygons)


class Parts(NamedTuple):
    """The parts of a scene, where they lie on this machine; `names` are those that the ledger knows."""

    files: list[tuple[Window, Path]]
    names: list[str]
    whole: bool  # every shard has one without failed windows


def _publish_parts(
    ledger: SceneLedger, plan: Plan, bundle: Bundle, run_id: str, parts: Parts, accept_partial: bool, polygons: PolygonOptions | None
) -> Published:  # fmt: skip
    contents = [read_part(path) for _, path in parts.files]
    tallies, failed = [content.tally for content in contents], [window for content in contents for window in content.failed]
    done = {shard for shard, _ in parts.files}
    failed += [FailedWindow(*shard, "the shard failed") for shard in plan.shards() if shard not in done]
    complete = accept_partial or parts.whole or not failed
    counted = total(plan, tallies)
    layer = plan.layers[0]
    rows = TABLES[layer].rows(plan, bundle, counted, ledger.attempt)
    if not complete:
        raster = ledger.scene_folder / f"{layer}.partial.tif"
        with storage.discarded(ledger.temporary(raster.name)) as finished:
            write_layer(layer, parts.files, finished, plan, bundle, input_id=ledger.attempt)
            check_unchanged(plan.scene)
            storage.publish(finished, raster)
        if ledger.manifest():  # another driver has finished it meanwhile
            storage.remove(raster)
        return Published(raster, rows, failed, False, False)
    ledger.commit({
        "input_id": ledger.attempt, "scene": plan.scene.uri, "run_id": run_id,
        "parts": parts.names, "pixel_count": counted.pixels, "failed_windows": [list(window) for window in failed],
    })  # fmt: skip
    _publish_files(ledger, plan, bundle, parts.files, rows, polygons)
    return Published(ledger.scene_folder / f"{layer}.tif", rows, failed, True, _is_ours(ledger, run_id))


def _published_before(ledger: SceneLedger, layer: str, run_id: str) -> Published:
    """What is there for a scene that is done."""
    failed = [FailedWindow(*window) for window in (ledger.manifest() or {})["failed_windows"]]
    return Published(ledger.scene_folder / f"{layer}.tif", published_rows(ledger, layer), failed, True, _is_ours(ledger, run_id))


def _is_ours(ledger: SceneLedger, run_id: str) -> bool:
    """Whether the manifest that holds is this run's, which may have made it in an attempt that was cut short."""
    return (ledger.manifest() or {}).get("run_id") == run_id


def _publish_files(
    ledger: SceneLedger, plan: Plan, bundle: Bundle, parts: list[tuple[Window, Path]], rows: list[dict[str, Any]],
    polygons: PolygonOptions | None,
) -> None:  # fmt: skip
    """Publish each final file that this attempt has not published yet; the item comes last, since it names the others.

    Polygons that nobody asks for stay where they are of this attempt, and go where they are of another.
    """
    folder, attempt = ledger.scene_folder, ledger.attempt
    publish = partial(_publish, ledger, plan.scene)
    made: dict[str, MadeFile] = {}
    for saved in plan.layers:
        write = partial(write_layer, saved, parts, plan=plan, bundle=bundle, input_id=attempt)
        made[saved] = publish(folder / f"{saved}.tif", raster_input_id, write)
    layer, schema = plan.layers[0], TABLES[plan.layers[0]].schema
    publish(table_path(ledger, layer), table_input_id, lambda file: write_table(rows, schema, file, attempt))
    draw = partial(draw_quicklook, plan, bundle, folder / f"{layer}.tif", rows, input_id=attempt)
    made["quicklook"] = publish(folder / "quicklook.png", quicklook_input_id, draw)
    if (table_input_id(parcels_path(ledger)) or "").partition("+")[0] != attempt:
        storage.remove(parcels_path(ledger))  # of another attempt: made again where parcels are asked for
    place = folder / POLYGONS_NAME
    if polygons:
        outline = partial(write_polygons, plan=plan, bundle=bundle, folder=folder, input_id=attempt, rows=rows, options=polygons)
        made["polygons"] = publish(place, partial(polygons_input_id, options=polygons), outline)
    elif (found := polygons_made_from(place)) and found[0] == attempt:
        polygons, made["polygons"] = found[1], MadeFile.of(place)
    else:
        storage.remove(place)
    storage.remove(folder / f"{layer}.partial.tif")  # before the item, with which the scene is done
    item = json_bytes(make_item(plan, bundle, made, attempt, rows, polygons))
    publish(folder / "item.json", partial(item_made_from, polygons=polygons), lambda file: file.write_bytes(item))
    ledger.sweep()


def _publish(
    ledger: SceneLedger, scene: Scene, place: Place, made_from: Callable[[Place], str | None], write: Callable[[Path], object]
) -> MadeFile:  # fmt: skip
    """Publish a file unless this attempt, or another driver that finishes it, has done so.

    Raises Unreadable where the input is no longer what it was made from, or where another attempt's file was put there since
    we looked: else it might replace a newer one.
    """
    before = storage.version(place)
    if made_from(place) == ledger.attempt:
        return MadeFile.of(place)
    with storage.discarded(ledger.temporary(place.name)) as finished:
        write(finished)
        made = MadeFile.of(finished)._replace(name=place.name)
        check_unchanged(scene)
        try:
            storage.publish(finished, place, onto=before)
        except Taken:
            if made_from(place) != ledger.attempt:
                raise Unreadable(f"{place}: another run put another result there meanwhile: start again") from None
    return made
