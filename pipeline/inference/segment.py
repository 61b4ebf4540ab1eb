"""Segment one shard in one process: read, infer, stitch, write; and a whole scene without Ray.

A reader thread keeps the next tiles ready and a writer thread puts finished strips into the part while the network runs.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from threading import Lock
from typing import TypeVar

import numpy as np
import torch

from pipeline.errors import Refused, Unreadable
from pipeline.geometry.stitch import Strips
from pipeline.geometry.windows import Tile, Window, largest_first
from pipeline.imagery import storage
from pipeline.imagery.catalogue import find_sources
from pipeline.imagery.raster import Scene, check_unchanged, open_scene
from pipeline.imagery.reader import Pixels, SceneReader, check_scaling
from pipeline.imagery.region import Region
from pipeline.imagery.storage import Place
from pipeline.inference.cog import write_layer
from pipeline.inference.ledger import SceneLedger
from pipeline.inference.part import FailedWindow, PartWriter, check_part
from pipeline.inference.plan import QUANTISED, Auto, Plan, Resources, Settings, make_plan, memory_allotted
from pipeline.inference.stages import Span, Stages
from pipeline.inference.tally import Tallied, total
from pipeline.inference.trial import prepare_trial
from pipeline.models.allocator import keep_freed_memory, where_memory_is_kept
from pipeline.models.bundle import Bundle, load_bundle
from pipeline.models.engine import Engine, Execution, Scaling, choose_device, describe_device, threads
from pipeline.models.layers import layer_count

Item = TypeVar("Item")
Done = TypeVar("Done")


@dataclass(frozen=True)
class ShardResult:
    """What became of a shard: what was counted in it, the windows that failed, where the time went and on which worker, the
    largest batch that ran (0: none had to), and the bytes of windows that were read, decoded, and of the part."""

    shard: str
    pixels: int
    tally: Tallied
    failed: list[FailedWindow]
    spans: list[Span]
    batch: int
    worker: str
    read_bytes: int
    written_bytes: int

    @property
    def seconds(self) -> float:
        """From the shard's turn on the device to the end."""
        turn = sum(span.seconds for span in self.spans if span.stage == "turn")
        ends = [span.began + span.seconds for span in self.spans]
        return max(ends) - min(span.began for span in self.spans) - turn


def segment_shard(
    shard: Window, plan: Plan, reader: SceneReader, engine: Engine, scaling: Scaling, part: Path, turn: Lock, attempt: int = 1
) -> ShardResult:  # fmt: skip
    """Segment a shard and write its part to the path `part`.

    From attempt to attempt the batch is halved: memory may be what ended the one before, and whoever kills for it says nothing.

    One shard at a time has the device, by `turn`; the next one has read its first tiles meanwhile, and the one before
    writes its last. Windows that cannot be read or inferred are nodata in the part, and named in the result.
    """
    stages, failed, batch, read_before = Stages(), list[FailedWindow](), 0, reader.read_bytes
    size = max(1, plan.batch >> (attempt - 1))
    strips = Strips(shard, layer_count(plan.layers, plan.classes), plan.dtype)
    rows = plan.tile_rows(shard)
    with ThreadPoolExecutor(1) as reading, PartWriter(part, shard, plan, stages) as writer:
        ahead = prefetched(reading, lambda tile: _read(tile, plan, reader, stages), chain.from_iterable(rows), 2 * plan.batch)
        with stages("turn"):
            turn.acquire()
        try:
            flying: deque[Callable[[], None]] = deque()  # one batch is on the device while the one before is stitched
            for row in rows:
                for start in range(0, len(row), plan.batch):
                    group = row[start : start + plan.batch]
                    with stages("wait"):
                        inputs = [next(ahead) for _ in group]
                    with stages("device"):
                        finish = _begin(group, inputs, size, engine, scaling, strips, failed)
                    flying.append(partial(_end, finish, stages))
                    if len(flying) > 1:
                        flying.popleft()()
                flying.append(partial(_hand_over, row[0].core.rows.stop, strips, writer, stages))
            while flying:
                flying.popleft()()
            batch = engine.batch
        finally:
            turn.release()
        tally = writer.finish(failed)
    with stages("publish"):
        check_part(part, tally)
    worker = f"{platform.node()} {os.getpid()} {id(turn)}"
    return ShardResult(
        plan.shard_name(shard), shard.pixels, tally, failed, stages.spans, batch, worker, reader.read_bytes - read_before,
        part.stat().st_size,
    )  # fmt: skip


def _end(finish: Callable[[], None], stages: Stages) -> None:
    with stages("device"):
        finish()


def _hand_over(stop: int, strips: Strips, writer: PartWriter, stages: Stages) -> None:
    with stages("hand over"):
        for window, strip_LHW in strips.finished(stop):
            writer.write(window, strip_LHW)


@dataclass(frozen=True)
class _TileInput:
    """A tile as it was read: `wanted_HW` says which pixels of its core are valid and inside the region."""

    pixels: Pixels | None
    wanted_HW: np.ndarray | None
    reason: str | None = None


def _read(tile: Tile, plan: Plan, reader: SceneReader, stages: Stages) -> _TileInput:
    with stages("read"):
        return _read_tile(tile, plan, reader)


def _read_tile(tile: Tile, plan: Plan, reader: SceneReader) -> _TileInput:
    inside_HW = plan.region.inside(tile.core)
    if inside_HW is not None and not inside_HW.any():
        return _TileInput(None, None)
    try:
        pixels = reader.read(tile.read)
    except Unreadable as error:
        return _TileInput(None, inside_HW, str(error))
    wanted_HW = np.ones((tile.core.height, tile.core.width), bool) if inside_HW is None else inside_HW
    if pixels.valid_CHW is not None:
        wanted_HW &= pixels.valid_CHW[:, *tile.core.relative_to(tile.read).slices()].all(axis=0)
    return _TileInput(pixels if wanted_HW.any() else None, wanted_HW)


def _begin(
    group: Sequence[Tile], inputs: Sequence[_TileInput], size: int, engine: Engine, scaling: Scaling, strips: Strips,
    failed: list[FailedWindow],
) -> Callable[[], None]:  # fmt: skip
    """Start tiles, `size` at once; the function that is returned pastes their cores, in place, and adds what failed to `failed`.

    Tiles with nothing to infer stay nodata.
    """
    failed += [FailedWindow(*tile.core, read.reason) for tile, read in zip(group, inputs, strict=True) if read.reason]
    work = [(tile, read) for tile, read in zip(group, inputs, strict=True) if read.pixels is not None]
    if not work:
        return lambda: None
    cores = [tile.core.relative_to(tile.read) for tile, _ in work]
    try:
        finish = engine.begin([read.pixels for _, read in work if read.pixels], cores, scaling, size)
    except Unreadable as error:
        failed += [FailedWindow(*tile.core, str(error)) for tile, _ in work]
        return lambda: None

    def paste() -> None:
        for (tile, read), layers_LHW in zip(work, finish(), strict=True):
            if layers_LHW is None:
                failed.append(FailedWindow(*tile.core, "the network's output is not finite"))
                continue
            layers_LHW[:, ~read.wanted_HW] = strips.nodata  # type: ignore[operator]
            strips.paste_core(layers_LHW, tile.core)

    return paste


def prefetched(pool: ThreadPoolExecutor, work: Callable[[Item], Done], items: Iterable[Item], ahead: int) -> Iterator[Done]:
    """`work` of each item, in order, with `ahead` items under way in the pool from now on; exceptions reach the caller."""
    left = iter(items)
    waiting = deque(pool.submit(work, item) for item in islice(left, ahead))

    def results() -> Iterator[Done]:
        while waiting:
            waiting.extend(pool.submit(work, item) for item in islice(left, 1))
            yield waiting.popleft().result()

    return results()


class Segmenter:
    """A model resident on a device, and the scenes that it has open: what an actor is, without Ray."""

    SCENES_OPEN = 8

    def __init__(self, bundle: str | Place, device: str):
        self.bundle, self.device = load_bundle(bundle), device
        self._engines: dict[tuple[Execution, tuple[str, ...]], Engine] = {}
        self._idle: list[SceneReader] = []  # the one that was used last comes last
        self._turn, self._lock = threading.Lock(), threading.Lock()

    def segment(self, plan: Plan, shard: Window, ledger: SceneLedger, accept_partial: bool, attempt: int = 1) -> ShardResult:
        """Segment a shard and publish its part in the ledger; for two threads at once, so that the device does not wait.

        Raises Unreadable where the scene cannot be opened any more, or changed: before, so that no time is lost on it, or
        while it was read, when what was read may be a mixture; Refused where the bundle is not the plan's.
        """
        check_unchanged(plan.scene)
        with storage.discarded(ledger.temporary(plan.shard_name(shard))) as part:
            result = self.write_part(plan, shard, ledger.out, part, attempt)
            check_unchanged(plan.scene)
            ledger.publish_part(result.shard, part, partial=bool(result.failed) and not accept_partial)
        return result

    def write_part(self, plan: Plan, shard: Window, out: str | Place, part: Path, attempt: int = 1) -> ShardResult:
        """Segment a shard and write its part; `out` is where the data set lies."""
        if plan.model_id != self.bundle.model_id:
            raise Refused(f"{self.bundle.path}: is not the model that this was planned with: put the same bundle on every node")
        torch.set_num_threads(plan.threads)
        engine = self.engine(plan, out)
        with self._reader(plan.scene) as reader:
            return segment_shard(shard, plan, reader, engine, plan.scaling(self.bundle), part, self._turn, attempt)

    def engine(self, plan: Plan, out: str | Place) -> Engine:
        """The engine of a plan, built when it is first asked for, while no network runs here: to fold its BatchNorm torch.fx
        traces a network, and catches the calls of every other one in the process."""
        execution, layers = plan.execution(out), plan.layers
        with self._lock:
            if (execution, layers) not in self._engines:
                with self._turn:
                    self._engines[execution, layers] = Engine(self.bundle, self.device, execution, layers)
            return self._engines[execution, layers]

    @contextmanager
    def _reader(self, scene: Scene) -> Iterator[SceneReader]:
        """A reader that no other shard uses: scenes stay open from shard to shard."""
        with self._lock:
            number = next((number for number, idle in enumerate(self._idle) if idle.scene == scene), None)
            reader = None if number is None else self._idle.pop(number)
        if reader is None:
            try:
                reader = SceneReader(scene)
            except Refused as error:
                raise Unreadable(f"cannot be opened any more: {error}") from None
        try:
            yield reader
        finally:
            with self._lock:
                self._idle.append(reader)
                if len(self._idle) > self.SCENES_OPEN:
                    self._idle.pop(0).close()


@dataclass(frozen=True)
class Segmented:
    """What came of a scene that was segmented in this process: the files by layer, what was counted, and the windows that failed.

    Where windows failed there is one file, `<stem>.partial.tif`.
    """

    files: dict[str, Path]
    tally: Tallied
    failed: list[FailedWindow]


class LocalRun:
    """Segments scenes in this process, without Ray, one after another: networks stay on the device, and one choice of engine
    and precision holds for all of `scenes`, each with the region that is wanted of it.

    On a CPU `workers` threads (by default one a core) run a stream of shards each. From then on the process keeps the
    memory that it frees (`pipeline/models/allocator.py`).
    """

    def __init__(
        self, bundle: Bundle, scenes: Sequence[tuple[Scene, Region]], *, settings: Settings = Settings(), batch: int | Auto = "auto",
        workers: int | None = None,
    ):  # fmt: skip
        keep_freed_memory()
        self.bundle, self.settings, self.batch, self.kind = bundle, settings, batch, choose_device()
        self.streams = 1 if self.kind == "cuda" else workers or len(os.sched_getaffinity(0))
        trial = prepare_trial(bundle, self.kind, settings.precision, scenes, workers=self.streams)
        self.choice = trial.choose()
        self._segmenters: list[Segmenter] = []

    def plan(self, scene: Scene, region: Region) -> Plan:
        """How a scene will be segmented. Raises Refused, naming the option, for what cannot be."""
        resources = Resources(describe_device(self.kind), memory_allotted() // self.streams, self.streams)
        return make_plan(scene, region, self.bundle, self.settings, batch=self.batch, choice=self.choice, resources=resources)

    def segment(self, plan: Plan, target: Path, folder: Path) -> Segmented:
        """Segment a scene to the COG `target`, its mask or values, and its other layers beside it, `<stem>.<layer>.tif`.

        `folder`, on the same disk, is for parts and for what scenes of a run share. Raises Unreadable where the scene changed
        while it was read.
        """
        self.choice.keep(folder / QUANTISED)
        self._segmenters = self._segmenters or [Segmenter(self.bundle.path, self.kind) for _ in range(self.streams)]
        parts = [(shard, folder / f"{plan.shard_name(shard)}.part") for shard in plan.shards()]
        try:
            results = share_shards(plan, self._segmenters, folder)
            check_unchanged(plan.scene)
            failed = [window for result in results for window in result.failed]
            first, *others = plan.layers
            if failed:
                files = {first: target.with_name(f"{target.stem}.partial.tif")}
            else:
                files = {first: target, **{layer: target.with_name(f"{target.stem}.{layer}.tif") for layer in others}}
            for layer, path in files.items():
                with storage.discarded(folder / f"{layer}.tmp") as finished:
                    write_layer(layer, parts, finished, plan, self.bundle, input_id=plan.scene.input_id)
                    storage.publish(finished, path)
        finally:
            for _, part in parts:
                part.unlink(missing_ok=True)
        return Segmented(files, total(plan, [result.tally for result in results]), failed)


def segment_scene(
    scene: str | Place | Scene, model: str | Place, output: str | Place, *, settings: Settings = Settings(), batch: int | Auto = "auto",
    workers: int | None = None, trusted: bool = False,
) -> dict[str, int]:  # fmt: skip
    """Segment one scene to the COG `output` in this process, without Ray, and return the pixel count of each class, or of the
    bundle's target.

    `scene` is a raster, a STAC item, or a scene that was opened with the bundle's bands; `model` is a bundle. Other layers
    than the mask come beside it, as `<stem>.confidence.tif` and `<stem>.probabilities.tif`. A `trusted` scene may follow what
    it names (`pipeline/imagery/formats`). For the rest see `LocalRun`.
    Raises Refused for input that does not fit, and Unreadable where windows failed: then `output` is not written, and
    what could be segmented lies beside it as `<stem>.partial.tif`.
    """
    target, bundle = storage.place_of(output), load_bundle(model)
    opened = scene if isinstance(scene, Scene) else _open_one(scene, bundle, trusted)
    storage.check_writable(target.parent)
    check_scaling(opened, bundle.bands)
    region = Region(opened.grid.window)
    run = LocalRun(bundle, [(opened, region)], settings=settings, batch=batch, workers=workers)
    plan = run.plan(opened, region)
    with storage.temporary_folder(target.parent) as folder:
        done = run.segment(plan, folder / target.name, folder)
        for path in reversed(done.files.values()):
            storage.publish(path, target.parent / path.name)
    if done.failed:
        rest = target.parent / done.files[plan.layers[0]].name
        raise Unreadable(f"{len(done.failed)} windows failed, {rest} holds the rest; the first: {done.failed[0].reason}")
    names = [bundle.target.name] if bundle.target else [entry.name for entry in bundle.classes]
    return dict(zip(names, done.tally.pixels, strict=True))


def _open_one(scene: str | Place, bundle: Bundle, trusted: bool) -> Scene:
    sources = find_sources([str(scene)], trusted)
    if len(sources) != 1:
        raise Refused(f"{scene}: holds {len(sources)} scenes; segment_scene takes one")
    return open_scene(sources[0], bundle.bands)


def segment_shards(plan: Plan, bundle: Bundle, device: str, folder: Path, streams: int) -> list[ShardResult]:
    """All shards of a plan, by `streams` segmenters with two threads each, as actors have; parts are put into `folder`."""
    return share_shards(plan, [Segmenter(bundle.path, device) for _ in range(streams)], folder)


def share_shards(plan: Plan, segmenters: Sequence[Segmenter], folder: Path) -> list[ShardResult]:
    """All shards of a plan, shared by segmenters with two threads each; parts are put into `folder`."""
    streams = len(segmenters)
    for segmenter in segmenters:
        segmenter.engine(plan, folder)  # one after another, before any of them runs
    left, loads, change = deque(largest_first(plan.shards())), [0] * streams, threading.Condition()

    def work(number: int, segmenter: Segmenter) -> list[ShardResult]:
        done: list[ShardResult] = []
        while True:
            with change:  # the last shards are for the segmenter that has the least to do, as in `cluster/dispatch`
                change.wait_for(lambda: not left or len(left) > 2 * streams or loads[number] <= min(loads))
                if not left:
                    return done
                shard = left.popleft()
                loads[number] += shard.pixels
            try:
                done.append(segmenter.write_part(plan, shard, folder, folder / f"{plan.shard_name(shard)}.part"))
            except BaseException:
                with change:
                    left.clear()  # the others end, too
                raise
            finally:
                with change:
                    loads[number] -= shard.pixels
                    change.notify_all()

    with threads(plan.threads), ThreadPoolExecutor(2 * streams) as pool:
        running = [
            pool.submit(where_memory_is_kept, partial(work, number, segmenter))
            for _ in range(2)
            for number, segmenter in enumerate(segmenters)
        ]
        return [result for one in running for result in one.result()]


def seconds_a_tile(plan: Plan, bundle: Bundle, execution: Execution) -> float:
    """How long one tile of a plan takes on this machine: the second of two, on zeros."""
    engine = Engine(bundle, plan.device.split()[0], execution, plan.layers)
    height, width = min(plan.tile[0], plan.padded_height), min(plan.tile[1], plan.padded_width)
    blank = Pixels(np.zeros((len(bundle.bands), height, width), plan.scene.dtype), None)
    with threads(plan.threads):
        for _ in range(2):
            began = time.monotonic()
            engine([blank], [Window(0, 0, height, width)], plan.scaling(bundle), 1)
        return time.monotonic() - began
