"""From what a person asked for to planned scenes: open, check, plan, adopt. Nothing is written before all checks are passed."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from cluster.environment import Device, Node, ray_address
from pipeline.errors import Refused, one_line
from pipeline.geometry.windows import Window
from pipeline.imagery import storage
from pipeline.imagery.catalogue import Source, find_sources
from pipeline.imagery.raster import Scene, open_scene
from pipeline.imagery.reader import check_scaling
from pipeline.imagery.region import Area, Region, region_of
from pipeline.imagery.storage import Place, Remote
from pipeline.inference.ledger import SceneLedger, adopt_dataset, scene_folder
from pipeline.inference.part import FailedWindow
from pipeline.inference.plan import GIB, QUANTISED, Plan, Resources, Settings, make_plan
from pipeline.inference.segment import ShardResult
from pipeline.inference.stages import totals
from pipeline.models.bundle import Bundle
from pipeline.models.choice import REFERENCE, Choice
from pipeline.results.polygons import PolygonOptions
from pipeline.results.publish import Published, is_done
from pipeline.software import other_versions

ROOMY_BYTES = 4 * GIB  # a worker may use at least this much, if need be with fewer workers


@dataclass(frozen=True)
class Request:
    """What was asked for of a run. `settings` make the data set; the rest may differ from run to run."""

    out: Place
    settings: Settings
    workers: int | Literal["auto"] = "auto"
    gpus: float | None = None  # of one worker; 0: none, although there are some
    batch: int | Literal["auto"] = "auto"
    memory_bytes: int | None = None  # of one worker
    fresh: bool = False
    accept_partial: bool = False
    polygons: PolygonOptions | None = None
    access: Mapping[str, str] = field(default_factory=dict)  # variables of the AWS environment that options gave


class OpenedScene(NamedTuple):
    """A scene whose headers were read and that fits the bundle, and the part of it that was asked for."""

    scene: Scene
    region: Region


@dataclass
class SceneWork:
    """One scene of a run: what is planned, what is left to do, and what came of it."""

    plan: Plan
    ledger: SceneLedger
    missing: list[Window]
    committed_before: bool
    attempts: dict[str, int] = field(default_factory=dict)  # of each shard that this run began
    quarantined: dict[Window, str] = field(default_factory=dict)
    seconds: float = 0.0  # of actors, for its shards
    stages: dict[str, float] = field(default_factory=dict)  # of which, by stage
    began: float | None = None  # when its first shard did, in seconds since 1970
    ended: float | None = None  # when it was published
    batch: int = 0  # the largest that ran
    published: Published | None = None
    failure: str | None = None

    def add(self, result: ShardResult) -> None:
        """Count what a finished shard took."""
        self.seconds += result.seconds
        self.batch = max(self.batch, result.batch)
        self.began = min(self.began or math.inf, *(span.began for span in result.spans))
        for stage, seconds in totals(result.spans).items():
            self.stages[stage] = self.stages.get(stage, 0.0) + seconds

    @property
    def failed_windows(self) -> list[FailedWindow]:
        """The windows that are nodata because they failed, with the reason as far as it is known."""
        if self.published is None:
            return [FailedWindow(*shard, reason) for shard, reason in self.quarantined.items()]
        return [window._replace(reason=self.quarantined.get(Window(*window[:4]), window.reason)) for window in self.published.failed]

    @property
    def failed(self) -> bool:
        return self.failure is not None or self.published is None or not self.published.complete


def open_scenes(
    places: Sequence[str], bundle: Bundle, area: Area | None, trusted: bool = False, check: Callable[[Scene], None] | None = None
) -> tuple[list[OpenedScene], dict[str, str]]:
    """Open the scenes that `places` name. Returns those that can be segmented, and why each of the others cannot.

    Those that are `trusted` may follow what they name (`pipeline/imagery/formats`). `check` may raise Refused for a scene.

    Scenes outside the region are left out. Raises Refused where none is left.
    """
    opened: list[OpenedScene] = []
    outside: list[str] = []
    refusals: dict[str, str] = {}
    for source in _find(places, refusals, trusted):
        try:
            scene = open_scene(source, bundle.bands)
            region = region_of(scene, area)
            if region is None:
                outside.append(f"{source.uri}: lies outside the region that was asked for")
                continue
            check_scaling(scene, bundle.bands)
            if check:
                check(scene)
            opened.append(OpenedScene(scene, region))
        except Refused as error:
            refusals[source.uri] = str(error)
    if not opened:
        first, *others = [*refusals.values(), *outside]
        raise Refused(f"{first} (and {len(others)} more scenes)" if others else first)
    return opened, refusals


def _find(places: Sequence[str], refusals: dict[str, str], trusted: bool) -> list[Source]:
    found: dict[str, Source] = {}
    for place in places:
        try:
            found |= {source.uri: source for source in find_sources([place], trusted)}
        except Refused as error:
            refusals[place] = str(error)
    return list(found.values())


def published_ledger(opened: OpenedScene, request: Request) -> SceneLedger | None:
    """The ledger of a scene whose results OUT holds, made from the input as it is now; None where it does not."""
    folder = scene_folder(request.out, opened.scene.scene_id, opened.scene.uri, claim=False)
    ledger = SceneLedger.open(request.out, folder, opened.scene.input_id)
    return ledger if is_done(ledger, request.settings.layers, request.polygons) else None


def planned_before(opened: OpenedScene, request: Request) -> Plan | None:
    """The plan that an earlier run or another driver made for this scene, if there is one that this run adopts."""
    folder = scene_folder(request.out, opened.scene.scene_id, opened.scene.uri, claim=False)
    return SceneLedger.open(request.out, folder, opened.scene.input_id, fresh=request.fresh).plan()


def plan_scene(opened: OpenedScene, bundle: Bundle, request: Request, choice: Choice, resources: Resources) -> Plan:
    """The plan of a scene as this run would make it; nothing is written."""
    return make_plan(opened.scene, opened.region, bundle, request.settings, batch=request.batch, choice=choice, resources=resources)


def begin_scenes(
    todo: Sequence[OpenedScene], bundle: Bundle, request: Request, dataset: Mapping[str, Any], resources: Resources,
    choose: Callable[[list[tuple[Scene, Region]]], Choice], *, workers: int,
) -> list[SceneWork]:  # fmt: skip
    """Plan scenes, check that there is room for what they give, and only then write: the data set's description, and their plans.

    `choose` says how the network is run, for scenes that have no plan yet.
    """
    before = [planned_before(opened, request) for opened in todo]
    new = [(opened.scene, opened.region) for opened, plan in zip(todo, before, strict=True) if plan is None]
    choice = choose(new) if new else REFERENCE
    plans = [plan or plan_scene(opened, bundle, request, choice, resources) for opened, plan in zip(todo, before, strict=True)]
    check_space(plans, request.out, workers)
    adopt_dataset(request.out, dataset)
    choice.keep(request.out / QUANTISED)
    works = [adopt_scene(opened, plan, request, resources.device) for opened, plan in zip(todo, plans, strict=True)]
    _note_other_versions(works)
    return works


def _note_other_versions(works: Sequence[SceneWork]) -> None:
    """Say what was begun by other versions than those that will end it."""
    begun = {work.plan.scene.uri: others for work in works if work.missing and (others := other_versions(work.plan.software))}
    if begun:
        uri, others = next(iter(begun.items()))
        more = f" and {len(begun) - 1} more" if len(begun) > 1 else ""
        print(
            f"note: {one_line(uri)}{more} was begun with {others}: what is left may be rounded differently; --fresh starts anew",
            file=sys.stderr,
        )


def adopt_scene(opened: OpenedScene, plan: Plan, request: Request, device: str) -> SceneWork:
    """Claim the scene's folder and create its plan, or adopt the plan that an earlier run or another driver made.

    Raises Refused where shards are missing and were begun on another kind of device than `device`.
    """
    folder = scene_folder(request.out, opened.scene.scene_id, opened.scene.uri, claim=True)
    ledger = SceneLedger.open(request.out, folder, opened.scene.input_id, fresh=request.fresh)
    adopted = ledger.adopt_plan(plan)
    there = request.polygons and is_done(ledger, adopted.layers)  # then polygons are made of the mask, also where its parts are gone
    missing = [] if there else ledger.missing(adopted)
    if missing and adopted.device != device:
        raise Refused(
            f"{opened.scene.uri}: was begun on {adopted.device}, this is {device}, and results would differ:"
            f" finish it there, or start it anew with --fresh"
        )
    return SceneWork(adopted, ledger, missing, ledger.manifest() is not None)


def worker_budget(request: Request, device: Device, nodes: Sequence[Node]) -> int:
    """Bytes that one worker may use: what was asked for, or its share of the smallest node."""
    if request.memory_bytes:
        return request.memory_bytes
    shares = []
    for node in nodes:
        slots = device.slots(node)
        if slots:
            wanted = min(slots, request.workers) if request.workers != "auto" else slots
            shares.append(max(node.memory_bytes // wanted, min(node.memory_bytes, ROOMY_BYTES)))
    return min(shares)


def expected_workers(request: Request, device: Device, nodes: Sequence[Node]) -> int:
    """How many actors there would be if memory and work were no limit."""
    slots = sum(device.slots(node) for node in nodes)
    return slots if request.workers == "auto" else min(slots, request.workers)


def count_workers(request: Request, works: Sequence[SceneWork], device: Device, nodes: Sequence[Node], peak: int) -> int:
    """How many actors of `peak` bytes to start: no more than cores (or GPUs), memory and missing shards allow. Raises Refused for none."""
    if not (room := room_for(request, device, nodes, peak)):
        largest = max(node.memory_bytes for node in nodes) / GIB
        raise Refused(f"one worker needs {peak / GIB:.1f} GiB and no node allots more than {largest:.1f} GiB: choose a smaller --tile")
    return min(room, sum(len(work.missing) or 1 for work in works))


def room_for(request: Request, device: Device, nodes: Sequence[Node], peak: int) -> int:
    """How many actors of `peak` bytes some nodes have room for; or, on a cluster that nodes may join, as many as were asked for."""
    slots = sum(min(device.slots(node), node.memory_bytes // peak) for node in nodes)
    if request.workers == "auto" or not slots:
        return slots
    return min(request.workers, slots) if ray_address() == "local" else request.workers


def check_space(plans: Sequence[Plan], out: Place, workers: int) -> None:
    """Raise Refused where the disk on which results are made has less free space than they may take.

    What goes to a bucket is made on the local disk, a scene a worker at a time.
    """
    sizes, free = sorted((plan.disk_bytes for plan in plans), reverse=True), storage.free_bytes(out)
    if isinstance(out, Remote):
        needed, fix = sum(sizes[:workers]), f"set TMPDIR to a folder with more than {tempfile.gettempdir()} has"
    else:
        needed, fix = sum(sizes), "choose another --output"
    if needed > free:
        raise Refused(f"{out}: the results may take {needed / GIB:.2f} GiB and {free / GIB:.2f} GiB are free: {fix}")
