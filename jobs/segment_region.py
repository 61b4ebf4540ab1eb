"""Segment rasters of any size into class masks, or into the number that a model predicts for each pixel, ground areas and pictures.

    python jobs/segment_region.py SCENE [SCENE ...] --model BUNDLE --output OUT
    ray job submit --working-dir . -- python jobs/segment_region.py ...        the same, on a cluster

A run that is killed anywhere is finished by starting it again: it does only what is missing.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from cluster.environment import add_access, secure_embedded_ray, use_access
from cluster.job import AGAIN, DONE, FAILED_ON_DATA, lasting_place, run_job
from cluster.progress import clock
from cluster.record import RunRecord
from cluster.scenes import OpenedScene, Request, SceneWork, open_scenes, plan_scene, planned_before, published_ledger
from pipeline.errors import Refused, Unreadable, one_line
from pipeline.imagery import storage
from pipeline.imagery.formats import ALLOW_VRT
from pipeline.imagery.parcels import Parcels, read_parcels
from pipeline.imagery.region import Area
from pipeline.imagery.storage import Place
from pipeline.inference.ledger import SceneLedger, compare_dataset, describe_dataset, sweep_dataset
from pipeline.inference.plan import GIB, MIB, QUANTISED, Resources, Settings, memory_allotted
from pipeline.inference.segment import seconds_a_tile
from pipeline.inference.trial import prepare_trial
from pipeline.models.allocator import keep_freed_memory
from pipeline.models.bundle import Bundle, load_bundle
from pipeline.models.choice import REFERENCE, check_precision
from pipeline.models.engine import choose_device, describe_device
from pipeline.models.layers import layers_of
from pipeline.results.polygons import PolygonOptions, check_options
from pipeline.results.publish import PARCELS_FOLDER, TABLES, published_rows
from pipeline.results.scene_parcels import check_parcels, publish_parcels
from pipeline.results.summary import summary
from pipeline.results.zonal import Coverages

WINDOWS_SHOWN = 10
EXAMPLE = """example:
  python jobs/segment_region.py jobs/demo/zion/item.json --model jobs/demo/model --output demo-output

exit code: 0 all done; 2 refused before work began; 3 scenes or windows failed on their data, the rest is published;
1 anything else, interruption included"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code. What is wrong with the input is one line on standard error."""
    return run_job(lambda: segment_region(parse(arguments)), lambda: AGAIN, again=True)


def segment_region(options: argparse.Namespace) -> int:
    """From scenes to masks: open, plan, segment, publish, report."""
    access = use_access(options)
    bundle = load_bundle(options.model)
    request = read_request(options, access, bundle)
    area, parcels = read_area(options), read_parcel_file(options)
    description = describe_dataset(bundle, request.settings, area.label if area else None)
    for note in storage.check_writable(request.out):
        print(f"note: {note}", file=sys.stderr)
    compare_dataset(request.out, description)
    check = partial(check_options, options=request.polygons) if request.polygons else None
    scenes, refusals = open_scenes(options.scenes, bundle, area, options.allow_vrt, check)
    lost = check_parcels(options.parcels, parcels, [opened.scene for opened in scenes]) if parcels else []
    print_notes(scenes, refusals, bundle)
    for note in (*parcels.notes, *lost) if parcels else ():
        print(f"note: {one_line(options.parcels)}: {one_line(note)}", file=sys.stderr)
    if options.dry_run:
        print_plans(scenes, bundle, request)
        return DONE
    found = {} if request.fresh else {opened.scene.uri: published_ledger(opened, request) for opened in scenes}
    done = {uri: ledger for uri, ledger in found.items() if ledger}
    todo = [opened for opened in scenes if opened.scene.uri not in done]
    with RunRecord(request.out, sys.argv, bundle, list(done), refusals) as record:

        def started(works: list[SceneWork], actors: int) -> None:
            record.start(works, actors)
            shards = sum(len(work.missing) for work in works)
            print(f"{len(works)} scene(s), {shards} shard(s) to do, {actors} worker(s), run {record.run_id}", file=sys.stderr)
            for choice in dict.fromkeys(work.plan.choice for work in works):
                print(f"  {choice}", file=sys.stderr)

        works: list[SceneWork] = []
        if todo:
            secure_embedded_ray()
            from cluster.run import run_scenes  # Ray reads its settings when it is imported

            works = run_scenes(todo, bundle, request, description, record, started)
        failures = write_parcels([*done.values(), *(work.ledger for work in works if not work.failed)], bundle, parcels) if parcels else {}
        code = FAILED_ON_DATA if refusals or failures or any(work.failed for work in works) else DONE
        record.end(code)
    for ledger in done.values():
        ledger.sweep()  # a run may have been killed between the last file and this
    sweep_dataset(request.out)
    if options.clean:
        clean(scenes, request)
    before = [published_rows(ledger, request.settings.layers[0]) for ledger in done.values()]
    print_summary(works, before, refusals, request)
    if parcels:
        print_parcels(request.out, failures)
    return code


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; argparse exits with 2 for bad usage, as a job does."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenes", nargs="+", metavar="SCENE", help="a raster, folder, glob, STAC item or item collection; local or s3://")
    parser.add_argument(
        "--model", required=True, metavar="BUNDLE", help="a model's folder or zip, as train_model.py writes it; local or s3://"
    )
    parser.add_argument("--output", required=True, metavar="OUT", help="the data set: made, resumed or added to; local or s3://")
    region = parser.add_mutually_exclusive_group()
    region.add_argument("--bbox", nargs=4, type=float, metavar=("W", "S", "E", "N"), help="only this box, in degrees (EPSG:4326)")
    region.add_argument("--aoi", metavar="FILE", help="only inside the polygons of this vector file, in the CRS it declares")
    parser.add_argument(
        "--save", metavar="LAYERS", help="mask,confidence,probabilities,polygons (default: mask); of a number a pixel: value"
    )
    parser.add_argument("--min-area", type=float, metavar="M2", help="polygons: smaller regions join the neighbour with the longest border")
    parser.add_argument("--simplify", type=float, metavar="M", help="polygons: smooth borders, which stay shared, by about so many metres")
    parser.add_argument("--parcels", metavar="FILE", help="polygons, such as fields: a table of what is in each; local or s3://")
    parser.add_argument("--parcel-id", metavar="COLUMN", help="the column with their ids (default: id, or another that is well known)")
    parser.add_argument(
        "--workers",
        default="auto",
        metavar="N",
        help="actors, one a core or GPU, at most (default: as many as there is room for, and for which an autoscaler starts nodes)",
    )
    parser.add_argument(
        "--gpus-per-worker", type=float, metavar="N", help="0.5: two share one; 0: none (default: 1 where the cluster has any)"
    )
    parser.add_argument("--precision", default="auto", help="auto, fp32, bf16, fp16 or int8 (default: auto)")
    parser.add_argument("--tile", default="auto", metavar="PX", help="what the network sees at once (default: auto)")
    parser.add_argument("--halo", default="auto", metavar="PX", help="context around a tile's core: PX, exact or auto (default: auto)")
    parser.add_argument("--batch", default="auto", metavar="N", help="tiles a forward pass (default: auto)")
    parser.add_argument("--shard", default="auto", metavar="PX", help="the unit of work, 512 x 2^k (default: auto)")
    parser.add_argument("--memory", type=float, metavar="GB", help="what one worker may use (default: its share of what is allotted)")
    parser.add_argument("--accept-partial", action="store_true", help="take windows that cannot be read as nodata for good")
    parser.add_argument("--allow-vrt", action="store_true", help=ALLOW_VRT)
    parser.add_argument("--fresh", action="store_true", help="redo these scenes (default: resume)")
    parser.add_argument("--clean", action="store_true", help="remove the parts of finished scenes")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and do nothing")
    add_access(parser)
    parser.add_argument("--mpp", metavar="UM", help=argparse.SUPPRESS)
    return parser.parse_intermixed_args(arguments)


def read_request(options: argparse.Namespace, access: Mapping[str, str], bundle: Bundle) -> Request:
    """Check the options that need no file. Raises Refused, naming the option."""
    if options.mpp is not None:
        raise Refused("--mpp is not supported yet")
    check_precision(options.precision)
    out = lasting_place(options.output)
    if options.memory is not None and not options.memory > 0:
        raise Refused(f"--memory {options.memory:g}: must be above 0 GB")
    if (gpus := options.gpus_per_worker) is not None and not (gpus >= 0 and (gpus <= 1 or gpus == int(gpus))):
        raise Refused(f"--gpus-per-worker {gpus:g}: must be a part of 1, or a whole number")
    asked = [layer.strip() for layer in (options.save or bundle.layer).split(",")]
    polygons = read_polygons(options, asked)
    layers = layers_of(bundle, [layer for layer in asked if layer != "polygons" or bundle.target])
    settings = Settings(
        precision=options.precision, tile=number("tile", options.tile), halo=number("halo", options.halo, "auto", "exact"),
        shard=number("shard", options.shard), layers=layers,
    )  # fmt: skip
    return Request(
        out=out, settings=settings, workers=number("workers", options.workers), gpus=gpus,
        batch=number("batch", options.batch), memory_bytes=int(options.memory * 1e9) if options.memory else None,
        fresh=options.fresh, accept_partial=options.accept_partial, polygons=polygons, access=access,
    )  # fmt: skip


def read_polygons(options: argparse.Namespace, asked: Sequence[str]) -> PolygonOptions | None:
    """How polygons are made, if they were asked for. Raises Refused, naming the option."""
    given = {"min-area": options.min_area, "simplify": options.simplify}
    for option, value in given.items():
        if value is not None and "polygons" not in asked:
            raise Refused(f"--{option} {value:g}: is of polygons: add --save polygons")
        if value is not None and not 0 <= value < math.inf:
            raise Refused(f"--{option} {value:g}: must be 0 or above")
    return PolygonOptions(options.min_area or 0.0, options.simplify or 0.0) if "polygons" in asked else None


def number(option: str, text: str, *words: str) -> Any:
    """A whole number, at least 0 for a halo and 1 for all else, or one of the words (auto)."""
    if text in (words or ("auto",)):
        return text
    if not text.isdigit() or (text == "0" and option != "halo"):
        raise Refused(f"--{option} {text}: must be a whole number or {' or '.join(words or ('auto',))}")
    return int(text)


def read_area(options: argparse.Namespace) -> Area | None:
    """The region that was asked for, if one was."""
    if options.bbox:
        return Area.from_bbox(*options.bbox)
    return Area.from_file(storage.place_of(options.aoi)) if options.aoi else None


def read_parcel_file(options: argparse.Namespace) -> Parcels | None:
    """The parcels that were asked for, if any were."""
    if options.parcel_id is not None and options.parcels is None:
        raise Refused(f"--parcel-id {options.parcel_id}: is a column of a file of parcels: add --parcels FILE")
    return read_parcels(storage.place_of(options.parcels), options.parcel_id) if options.parcels else None


def write_parcels(ledgers: Sequence[SceneLedger], bundle: Bundle, parcels: Parcels) -> dict[str, str]:
    """Publish the tables of parcels that are missing; returns why those of some scenes could not be."""
    coverages, failures = Coverages(parcels), {}
    for ledger in ledgers:
        try:
            publish_parcels(ledger, bundle, coverages)
        except (Refused, Unreadable) as error:
            failures[ledger.scene] = str(error)
    return failures


def clean(scenes: Sequence[OpenedScene], request: Request) -> None:
    """Remove the parts of the scenes that are published."""
    for opened in scenes:
        if ledger := published_ledger(opened, request):
            ledger.clean()


def print_notes(scenes: Sequence[OpenedScene], refusals: Mapping[str, str], bundle: Bundle) -> None:
    """Say once what a person should know of the model and the scenes before they wait."""
    if bundle.reach.exact_halo is None:
        why = f"{bundle.architecture} can never be exact at tile borders ({bundle.reach.why_not})"
        print(f"note: {why}; halo auto is {bundle.halo} px", file=sys.stderr)
    for reason in refusals.values():
        print(f"skipped: {one_line(reason)}", file=sys.stderr)
    for opened in scenes:
        for note in (*opened.scene.notes, *bundle.notes_on(opened.scene.resolution_m)):
            print(f"note: {one_line(opened.scene.scene_id)}: {one_line(note)}", file=sys.stderr)


def print_plans(scenes: Sequence[OpenedScene], bundle: Bundle, request: Request) -> None:
    """Print what a run on this machine would do, with one tile timed here."""
    keep_freed_memory()  # as workers do: what is measured here is remembered for them
    kind, cores = choose_device(), os.cpu_count() or 1
    workers = request.workers if request.workers != "auto" else 1 if kind == "cuda" else cores
    pixels = sum(opened.region.window.pixels for opened in scenes)
    resources = Resources(describe_device(kind), request.memory_bytes or memory_allotted() // workers, workers, pixels)
    before = [planned_before(opened, request) for opened in scenes]
    new = [(opened.scene, opened.region) for opened, plan in zip(scenes, before, strict=True) if plan is None]
    choice = REFERENCE
    if new:
        trial = prepare_trial(bundle, kind, request.settings.precision, new, workers=workers, kept=request.out / QUANTISED)
        choice = trial.choose()
    seconds: dict[tuple[int, int, str, str], float] = {}
    for opened, planned in zip(scenes, before, strict=True):
        plan = planned or plan_scene(opened, bundle, request, choice, resources)
        execution = planned.execution(request.out) if planned else replace(choice.execution, engine=plan.engine)
        key = (*plan.tile, plan.precision, plan.engine)
        if key not in seconds:
            seconds[key] = seconds_a_tile(plan, bundle, execution)
        window = plan.region.window
        print(f"{one_line(plan.scene.scene_id)}: {window.height} x {window.width} px, {len(plan.scene.bands)} bands")
        smaller = f", the last {plan.finer} cut to {plan.fine} px" if plan.finer else ""
        print(f"  {len(plan.shards())} shards of {plan.shard} px{smaller}")
        print(f"  {plan.tiles} tiles of {plan.tile[0]} x {plan.tile[1]} px, halo {plan.halo} px, batch {plan.batch}")
        print(f"  {plan.precision} by {plan.engine} on {plan.device}; redundant compute {plan.redundancy:.2f} x")
        print(f"  why: {plan.choice}")
        print(f"  memory {plan.memory_bytes / GIB:.2f} GiB a worker, disk at most {plan.disk_bytes / MIB:.0f} MiB")
        tile_px = min(plan.tile[0], plan.padded_height) * min(plan.tile[1], plan.padded_width)
        tiles = plan.redundancy * window.pixels / tile_px
        print(f"  about {clock(tiles * seconds[key] / workers)} with {workers} worker(s), from one tile timed here")


def print_summary(works: Sequence[SceneWork], done: Sequence[list[dict[str, Any]]], refusals: Mapping[str, str], request: Request) -> None:
    """Print the class areas or the values, what failed, and where the files are. `done` are the tables that were there before."""
    for line in summary([work.published.rows for work in works if work.published] + list(done)):
        print(line)
    for work in works:
        print_failures(work)
    if done:
        print(f"\n{len(done)} scene(s) were done already: nothing to do for them")
    for reason in refusals.values():
        print(f"\nskipped: {one_line(reason)}")
    out, layer = request.out, request.settings.layers[0]
    print(f"\n{layer}s, pictures and STAC items are in {out / 'scenes'}, tables in {out / 'results' / TABLES[layer].folder}")


def print_parcels(out: Place, failures: Mapping[str, str]) -> None:
    """Where the tables of parcels are, and which are not."""
    for scene, reason in failures.items():
        print(f"failed: parcels of {one_line(scene)}: {one_line(reason)}")
    print(f"tables of parcels are in {out / 'results' / PARCELS_FOLDER}")


def print_failures(work: SceneWork) -> None:
    """What failed of a scene, or was finished by another run."""
    lines = [f"failed: {work.failure}"] if work.failure else []
    for window in work.failed_windows[:WINDOWS_SHOWN]:
        lines.append(f"failed window row {window.row} col {window.col} {window.height} x {window.width} px: {window.reason}")
    if len(work.failed_windows) > WINDOWS_SHOWN:
        lines.append(f"and {len(work.failed_windows) - WINDOWS_SHOWN} more, in the run record")
    if work.published and not work.published.complete:
        lines.append(f"what could be segmented is in {work.published.raster}")
    elif work.published and not work.published.committed and not work.committed_before:
        lines.append("another run finished this scene first; its manifest holds")
    if lines:
        print("\n" + "\n".join(f"  {one_line(line)}" for line in [work.plan.scene.scene_id, *lines]))


if __name__ == "__main__":
    sys.exit(main())
