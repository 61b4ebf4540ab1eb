"""Make a scene's results from its parts: manifest first, then each file, old or new as a whole.

The manifest commits a scene: what is published follows from it and from the parts, so a run that is killed anywhere is
finished by the next. Each file carries the attempt it was made from (`input_id`), which is how a scene is known to be done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.errors import Refused, Unreadable
from pipeline.geometry.windows import Window
from pipeline.imagery import storage
from pipeline.imagery.catalogue import Source
from pipeline.imagery.raster import open_scene, opened_dataset
from pipeline.imagery.storage import Place, Taken, json_bytes
from pipeline.inference.cog import write_layer
from pipeline.inference.ledger import SceneLedger
from pipeline.inference.part import FailedWindow, add_up, read_part
from pipeline.inference.plan import Plan
from pipeline.models.bundle import Bundle
from pipeline.results.quicklook import draw_quicklook, quicklook_input_id
from pipeline.results.stac import MadeFile, item_input_id, make_item
from pipeline.results.tables import AREAS, areas_rows, table_input_id, write_table


@dataclass(frozen=True)
class Published:
    """What is there for a scene: `rows` of the areas table, and the windows that failed."""

    mask: Place
    rows: list[dict[str, Any]]
    failed: list[FailedWindow]
    complete: bool
    committed: bool  # this driver's manifest holds


def areas_path(ledger: SceneLedger) -> Place:
    return storage.place_of(ledger.out) / "results" / "areas" / f"{ledger.scene}.parquet"


def published_rows(ledger: SceneLedger) -> list[dict[str, Any]]:
    """The rows of a published scene's areas table."""
    with storage.opened(areas_path(ledger)) as file:
        return pq.read_table(file).to_pylist()


def is_done(ledger: SceneLedger, layers: tuple[str, ...]) -> bool:
    """Whether the manifest is there and every published file was made from this attempt."""
    if ledger.manifest() is None:
        return False
    folder, attempt = ledger.scene_folder, ledger.attempt
    return (
        all(raster_input_id(folder / f"{layer}.tif") == attempt for layer in layers)
        and table_input_id(areas_path(ledger)) == attempt
        and quicklook_input_id(folder / "quicklook.png") == attempt
        and item_input_id(folder / "item.json") == attempt
    )


def raster_input_id(path: Place) -> str | None:
    """The attempt that a raster was made from; None where there is none."""
    try:
        with opened_dataset(path) as dataset:
            return dataset.tags().get("INPUT_ID")
    except Refused:
        return None


def publish_scene(ledger: SceneLedger, plan: Plan, source: Source, bundle: Bundle, run_id: str, *, accept_partial: bool) -> Published:
    """Publish what the parts hold: the scene, or its partial mask where shards or windows failed.

    Raises Unreadable, with nothing published, where the input no longer has the version that was read.
    """
    _check_unchanged(plan, source, bundle)
    places = ledger.parts(plan)
    with storage.all_here([place for _, place in places]) as copies:
        parts = [(shard, path) for (shard, _), path in zip(places, copies, strict=True)]
        return _publish_parts(ledger, plan, bundle, run_id, parts, [place.name for _, place in places], accept_partial)


def _publish_parts(
    ledger: SceneLedger, plan: Plan, bundle: Bundle, run_id: str, parts: list[tuple[Window, Path]], names: list[str], accept_partial: bool
) -> Published:
    """Publish the parts, which lie here; `names` are what the ledger calls them."""
    contents = [read_part(path) for _, path in parts]
    tallies, failed = [content.tally for content in contents], [window for content in contents for window in content.failed]
    done = {shard for shard, _ in parts}
    failed += [FailedWindow(*shard, "the shard failed") for shard in plan.shards() if shard not in done]
    complete = accept_partial or not (failed and ledger.missing(plan))
    total = add_up(tallies, plan.classes)
    rows = areas_rows(plan, bundle, total, ledger.attempt)
    if not complete:
        mask = ledger.scene_folder / "mask.partial.tif"
        with storage.discarded(ledger.temporary(mask.name)) as finished:
            write_layer("mask", parts, finished, plan, bundle, input_id=ledger.attempt)
            storage.publish(finished, mask)
        return Published(mask, rows, failed, False, False)
    committed = ledger.commit({
        "input_id": ledger.attempt, "scene": plan.scene.uri, "run_id": run_id,
        "parts": names, "pixel_count": total.pixels, "failed_windows": [list(window) for window in failed],
    })  # fmt: skip
    _publish_files(ledger, plan, bundle, parts, rows)
    return Published(ledger.scene_folder / "mask.tif", rows, failed, True, committed)


def _check_unchanged(plan: Plan, source: Source, bundle: Bundle) -> None:
    try:
        version = open_scene(source, bundle.bands).version
    except Refused as error:
        raise Unreadable(f"cannot be opened any more: {error}") from None
    if version != plan.scene.version:
        raise Unreadable(f"{plan.scene.uri}: changed while it was read: nothing of it was published, start again")


def _publish_files(ledger: SceneLedger, plan: Plan, bundle: Bundle, parts: list[tuple[Window, Path]], rows: list[dict[str, Any]]) -> None:
    """Publish each final file that this attempt has not published yet; the item comes last, since it names the others."""
    folder, attempt = ledger.scene_folder, ledger.attempt
    made: dict[str, MadeFile] = {}
    for layer in plan.layers:
        write = partial(write_layer, layer, parts, plan=plan, bundle=bundle, input_id=attempt)
        made[layer] = _publish(ledger, folder / f"{layer}.tif", raster_input_id, write)
    _publish(ledger, areas_path(ledger), table_input_id, lambda file: write_table(rows, AREAS, file, attempt))
    draw = partial(draw_quicklook, plan, bundle, folder / "mask.tif", rows, input_id=attempt)
    made["quicklook"] = _publish(ledger, folder / "quicklook.png", quicklook_input_id, draw)
    item = json_bytes(make_item(plan, bundle, made, attempt))
    _publish(ledger, folder / "item.json", item_input_id, lambda file: file.write_bytes(item))
    storage.remove(folder / "mask.partial.tif")
    ledger.sweep()


def _publish(ledger: SceneLedger, place: Place, made_from: Callable[[Place], str | None], write: Callable[[Path], object]) -> MadeFile:
    """Publish a file unless this attempt, or another driver that finishes it, has done so.

    Raises Unreadable where another attempt's file was put there since we looked.
    """
    before = storage.version(place)
    if made_from(place) == ledger.attempt:
        return MadeFile.of(place)
    with storage.discarded(ledger.temporary(place.name)) as finished:
        write(finished)
        made = MadeFile.of(finished)._replace(name=place.name)
        try:
            storage.publish(finished, place, onto=before)
        except Taken:
            if made_from(place) != ledger.attempt:
                raise Unreadable(f"{place}: another run put another result there meanwhile: start again") from None
    return made
