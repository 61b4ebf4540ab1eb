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
import rasterio
from rasterio.errors import RasterioError

from pipeline.geometry.windows import Window
from pipeline.imagery import storage
from pipeline.imagery.catalogue import Source
from pipeline.imagery.raster import check_unchanged
from pipeline.inference.cog import write_layer
from pipeline.inference.ledger import SceneLedger
from pipeline.inference.part import FailedWindow, add_up, read_part
from pipeline.inference.plan import Plan
from pipeline.models.bundle import Bundle
from pipeline.results.quicklook import draw_quicklook, quicklook_input_id
from pipeline.results.stac import item_input_id, make_item
from pipeline.results.tables import AREAS, areas_rows, table_input_id, write_table


@dataclass(frozen=True)
class Published:
    """What is there for a scene: `rows` of the areas table, and the windows that failed."""

    mask: Path
    rows: list[dict[str, Any]]
    failed: list[FailedWindow]
    complete: bool
    committed: bool  # this driver's manifest holds


def areas_path(ledger: SceneLedger) -> Path:
    return Path(ledger.out, "results", "areas", f"{ledger.scene}.parquet")


def published_rows(ledger: SceneLedger) -> list[dict[str, Any]]:
    """The rows of a published scene's areas table."""
    return pq.read_table(areas_path(ledger)).to_pylist()


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


def raster_input_id(path: Path) -> str | None:
    """The attempt that a raster was made from; None where there is none."""
    try:
        with rasterio.open(path) as dataset:
            return dataset.tags().get("INPUT_ID")
    except RasterioError:
        return None


def publish_scene(ledger: SceneLedger, plan: Plan, source: Source, bundle: Bundle, run_id: str, *, accept_partial: bool) -> Published:
    """Publish what the parts hold: the scene, or its partial mask where shards or windows failed.

    Where another driver has published all of it, nothing is done. Raises Unreadable, with nothing more published, where the
    input no longer has the version that was read.
    """
    check_unchanged(plan.scene, source, bundle.bands)
    if is_done(ledger, plan.layers):
        return _published_before(ledger, run_id)
    missing = ledger.missing(plan)  # before the parts are listed: another driver may add some between the two
    parts = ledger.parts(plan)
    tallies, failed = [], []
    for _, path in parts:
        content = read_part(path)
        tallies.append(content.tally)
        failed += content.failed
    done = {shard for shard, _ in parts}
    failed += [FailedWindow(*shard, "the shard failed") for shard in plan.shards() if shard not in done]
    complete = accept_partial or not (failed and missing)
    total = add_up(tallies, plan.classes)
    rows = areas_rows(plan, bundle, total, ledger.attempt)
    unchanged = partial(check_unchanged, plan.scene, source, bundle.bands)
    if not complete:
        mask = ledger.scene_folder / "mask.partial.tif"
        _publish(ledger, mask, partial(write_layer, "mask", parts, plan=plan, bundle=bundle, input_id=ledger.attempt), unchanged)
        if ledger.manifest():  # another driver has finished it meanwhile
            mask.unlink(missing_ok=True)
        return Published(mask, rows, failed, False, False)
    ledger.commit({
        "input_id": ledger.attempt, "scene": plan.scene.uri, "run_id": run_id,
        "parts": [path.name for _, path in parts], "pixel_count": total.pixels, "failed_windows": [list(window) for window in failed],
    })  # fmt: skip
    _publish_files(ledger, plan, bundle, parts, rows, unchanged)
    return Published(ledger.scene_folder / "mask.tif", rows, failed, True, _is_ours(ledger, run_id))


def _published_before(ledger: SceneLedger, run_id: str) -> Published:
    """What is there for a scene that is done."""
    failed = [FailedWindow(*window) for window in (ledger.manifest() or {})["failed_windows"]]
    return Published(ledger.scene_folder / "mask.tif", published_rows(ledger), failed, True, _is_ours(ledger, run_id))


def _is_ours(ledger: SceneLedger, run_id: str) -> bool:
    """Whether the manifest that holds is this run's, which may have made it in an attempt that was cut short."""
    return (ledger.manifest() or {}).get("run_id") == run_id


def _publish_files(
    ledger: SceneLedger, plan: Plan, bundle: Bundle, parts: list[tuple[Window, Path]], rows: list[dict[str, Any]],
    unchanged: Callable[[], None],
) -> None:  # fmt: skip
    """Publish each final file that this attempt has not published yet; the item comes last, since it names the others."""
    folder, attempt = ledger.scene_folder, ledger.attempt
    files = {layer: folder / f"{layer}.tif" for layer in plan.layers}
    for layer, path in files.items():
        if raster_input_id(path) != attempt:
            _publish(ledger, path, partial(write_layer, layer, parts, plan=plan, bundle=bundle, input_id=attempt), unchanged)
    table, quicklook = areas_path(ledger), folder / "quicklook.png"
    if table_input_id(table) != attempt:
        _publish(ledger, table, lambda file: write_table(rows, AREAS, file, attempt), unchanged)
    if quicklook_input_id(quicklook) != attempt:
        _publish(ledger, quicklook, lambda file: draw_quicklook(plan, bundle, files["mask"], rows, file, attempt), unchanged)
    (folder / "mask.partial.tif").unlink(missing_ok=True)  # before the item, with which the scene is done
    if item_input_id(folder / "item.json") != attempt:
        storage.replace_json(folder / "item.json", make_item(plan, bundle, files | {"quicklook": quicklook}, attempt))
    ledger.sweep()


def _publish(ledger: SceneLedger, path: Path, write: Callable[[Path], None], unchanged: Callable[[], None]) -> None:
    """Write a file and give it its name, if the input is still what it was made from: else it might replace a newer one."""
    with storage.discarded(ledger.temporary(path.name)) as finished:
        write(finished)
        unchanged()
        storage.publish(finished, path)
