"""Watch a region: segment the scenes that are new, make the tables of their dates, and what follows from all dates."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from cluster.environment import secure_embedded_ray
from cluster.here import is_little, run_here
from cluster.monitor_config import Watch
from cluster.monitor_stacks import stacked
from cluster.record import RunRecord
from cluster.scenes import OpenedScene, Request, SceneWork, published_ledger
from pipeline.errors import Refused, Unreadable
from pipeline.imagery import storage
from pipeline.imagery.archive import find_dated
from pipeline.imagery.bands import Band
from pipeline.imagery.catalogue import Source, parse_datetime
from pipeline.imagery.composites import recipe_of
from pipeline.imagery.raster import Scene, open_scene
from pipeline.imagery.reader import check_scaling
from pipeline.imagery.region import region_of
from pipeline.imagery.storage import Place
from pipeline.inference.ledger import SceneLedger, compare_dataset, describe_dataset
from pipeline.inference.plan import Settings
from pipeline.models.bundle import Bundle, load_bundle
from pipeline.models.rules import ARCHITECTURE, save_rules
from pipeline.results.pinned import model_folder, read_current, tables_folder
from pipeline.results.region_dates import DatedScene, by_date


@dataclass(frozen=True)
class Model:
    """A bundle and its own data set in OUT."""

    bundle: Bundle
    folder: Place
    rules: Sequence[Mapping[str, Any]] = ()  # that the bundle is made of, where it is not written yet

    @property
    def results(self) -> Place:
        """Where its tables of the region are."""
        return tables_folder(self.folder)


@dataclass
class Seen:
    """What was found of a region: scenes whose mask is there or can be made, and why others cannot."""

    sources: dict[str, Source] = field(default_factory=dict)  # by URI
    opened: dict[str, OpenedScene] = field(default_factory=dict)
    done: dict[str, SceneLedger] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # by name
    superseded: dict[str, str] = field(default_factory=dict)
    outside: int = 0
    listed: int = 0  # by the archive, wanted or not

    @property
    def todo(self) -> list[OpenedScene]:
        return [opened for uri, opened in self.opened.items() if uri not in self.done]


def model_of(watch: Watch, out: Place) -> Model:
    """The model that the config names: a bundle, or one made of its rules. Raises Refused."""
    return rules_model(watch.rules, out) if watch.model is None else bundle_model(watch.model, out)


def bundle_model(path: str, out: Place) -> Model:
    """A bundle that predicts classes. Raises Refused."""
    bundle = load_bundle(path)
    if bundle.target:
        raise Refused(f"{path}: predicts a number a pixel; a region is watched with classes")
    return Model(bundle, model_folder(out, bundle.model_id))


def rules_model(rules: Sequence[Mapping[str, Any]], out: Place) -> Model:
    """The bundle of some rules, which belongs into the folder of its data set in OUT: `kept` writes it. Raises Refused."""
    if (current := read_current(out)) and storage.is_file(model_folder(out, current.model_id) / "model" / "model.json"):
        place = model_folder(out, current.model_id)
        bundle = load_bundle(place / "model")
        if bundle.provenance.get("rules") == [dict(entry) for entry in rules]:
            return Model(bundle, place)
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        bundle = save_rules(Path(folder, "model"), rules)
    place = model_folder(out, bundle.model_id)
    return Model(replace(bundle, path=str(place / "model")), place, rules)


def kept(model: Model) -> Model:
    """The model, its bundle written to where workers load it if it is made of rules."""
    if not model.rules:
        return model
    place = model.folder / "model"
    if not storage.is_file(place / "model.json"):
        save_rules(place, model.rules)
    return Model(load_bundle(place), model.folder)


def request_for(watch: Watch, model: Model, access: Mapping[str, str]) -> Request:
    """How the scenes of a region are segmented: rules in fp32, at whose steps a rounding would be a class."""
    rules = model.bundle.architecture == ARCHITECTURE
    layers = ("mask",) if rules else ("mask", "confidence")
    settings = Settings(precision="fp32" if rules else watch.precision, layers=layers)
    return Request(out=model.folder, settings=settings, workers=watch.workers or "auto", access=access)


def look(watch: Watch, model: Model, request: Request, newest: date | None = None, *, build: bool = True) -> Seen:
    """Find the scenes of a region's archive, from `lookback_days` before `newest` on, and open those that are wanted.

    For a multi-temporal model they are its stacks, which are made here from all that the archive has; without `build`, only said.
    """
    asked, recipe = watch.asked, recipe_of(model.bundle.bands)
    if watch.lookback_days and newest and not recipe:
        start = newest - timedelta(days=watch.lookback_days)
        asked = replace(asked, since=max(start, asked.since or start))
    names = recipe.bands if recipe else [name for band in model.bundle.bands for name in (band.name, band.common_name) if name]
    found = find_dated(watch.scenes, asked, [*names, *watch.index_bands])
    seen = Seen(failed=dict(found.refused), superseded=found.superseded, listed=found.listed)
    sources = found.sources
    if recipe:
        sources = stacked(sources, recipe, model.folder / "stacks", asked.until, seen.failed, build=build)
    for source in sources:
        try:
            _open(source, watch, model, request, seen)
        except Refused as error:
            seen.failed[source.scene_id] = str(error)
    return seen


def _open(source: Source, watch: Watch, model: Model, request: Request, seen: Seen) -> None:
    """Open a scene and add it to `seen`, in place. Raises Refused."""
    scene = open_scene(source, model.bundle.bands)
    if parse_datetime(scene.datetime) is None:
        raise Refused(f"{source.uri}: has no date: give its STAC item a datetime, its name a date as in 20170430, or a TIFFTAG_DATETIME")
    if not watch.asked.has(parse_datetime(scene.datetime)):
        return
    if not scene.on_ground:
        raise Refused(f"{source.uri}: has no place on the ground: assign its CRS (gdal_edit.py -a_srs)")
    region = region_of(scene, watch.area)
    if region is None:
        seen.outside += 1
        return
    opened = OpenedScene(scene, region)
    if ledger := published_ledger(opened, request):
        seen.done[scene.uri] = ledger
    else:
        check_scaling(scene, model.bundle.bands)
    seen.sources[scene.uri], seen.opened[scene.uri] = source, opened


def segment_new(seen: Seen, model: Model, request: Request, watch: Watch) -> list[SceneWork]:
    """Segment the scenes that have no mask yet; what is done and what failed is added to `seen`, in place."""
    todo = seen.todo
    if not todo:
        return []
    description = describe_dataset(model.bundle, request.settings, watch.area.label if watch.area else None)
    compare_dataset(request.out, description)

    def started(works: list[SceneWork], actors: int) -> None:
        record.start(works, actors)
        print(f"{len(works)} new scene(s), {actors} worker(s), run {record.run_id}", file=sys.stderr)

    with RunRecord(request.out, sys.argv, model.bundle, list(seen.done), seen.failed) as record:
        if is_little(todo):
            works = run_here(todo, model.bundle, request, description, record, started)
        else:
            secure_embedded_ray()
            from cluster.run import run_scenes  # Ray reads its settings when it is imported

            works = run_scenes(todo, model.bundle, request, description, record, started)
        record.end(3 if seen.failed or any(work.failed for work in works) else 0)
    for work in works:
        if work.failed:
            windows = f"{len(work.failed_windows)} window(s) failed: {next((w.reason for w in work.failed_windows), '')}"
            seen.failed[work.plan.scene.scene_id] = work.failure or windows
        else:
            seen.done[work.plan.scene.uri] = work.ledger
    return works


def dated_scenes(seen: Seen) -> dict[date, list[DatedScene]]:
    """The scenes whose masks are there, by date and priority."""
    return by_date(_dated(seen.sources[uri], ledger) for uri, ledger in seen.done.items())


def _dated(source: Source, ledger: SceneLedger) -> DatedScene:
    plan, manifest = ledger.plan(), ledger.manifest()
    assert plan is not None and manifest is not None
    return DatedScene(plan, ledger, sum(manifest["pixel_count"]) / plan.region.window.pixels, source.off_nadir)


def with_indices(dated: DatedScene, source: Source, model: Model, names: Sequence[str]) -> Scene:
    """The scene on its mask's grid, with the bands of indices. Raises Refused where it lacks one, Unreadable where it changed."""
    scene = open_scene(source, [model.bundle.bands[0], *map(Band, names)])
    if scene.grid != dated.scene.grid:
        raise Unreadable(f"{source.uri}: changed since it was segmented: start again")
    return scene
