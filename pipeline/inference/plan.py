"""What is decided once for a scene: every `auto` is resolved here, before a pixel is read."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from pipeline.errors import Refused
from pipeline.geometry.windows import BLOCK, Span, Tile, Window, ceil_to, cells, even, largest_first, shards, spans, tile_rows
from pipeline.imagery import storage
from pipeline.imagery.catalogue import CloudMask
from pipeline.imagery.raster import Grid, Scene, SceneBand
from pipeline.imagery.region import Region
from pipeline.imagery.storage import Place
from pipeline.models.allocator import TOP_PAD
from pipeline.models.bundle import Bundle
from pipeline.models.choice import Choice
from pipeline.models.engine import Execution, Scaling
from pipeline.models.forward import ANY_SHAPE
from pipeline.models.layers import LAYERS, bands_of, layers_of
from pipeline.software import software

Auto = Literal["auto"]
TileSize = tuple[int, int]  # height and width in px
QUANTISED = "int8.openvino.zip"  # in OUT: the int8 network that its scenes share
MIB, GIB = 2**20, 2**30
AUTO_SHARDS = {"cpu": (1024, 2048, 4096), "cuda": (1024, 2048, 4096, 8192)}  # px
NEAR = 0.01  # of the work: where a larger shard gains less, a smaller one loses less when it is cut short
SMALLEST_TILE, TILE_STEP = 64, 128  # px, for `auto`: the sizes that are compared
LARGEST_CORE = 2048, 4096  # px of height and width, for `auto`: beyond it memory grows and overlap hardly falls
MANY_SHARDS = 64  # a worker: half a shard each is near enough then
SHARD_S = 0.03  # that a shard costs an actor beside its pixels
RATES = {"cpu": 0.5e6, "cuda": 300e6}  # pixels a second of one worker, to weigh that against
PROCESS_BYTES = 1050 * MIB  # Python, torch with its libraries, rasterio, publishing: 865 to 971 MiB seen with next to no network
# What a forward pass holds on a CPU, with an allocator that keeps what is freed, against the tensors that are counted: up
# to 1.9 seen in bf16 by eager and OpenVINO, 2.5 in fp32, 2.8 compiled; and weights while engines are made and tested.
SCRATCH, SCRATCH_FP32, SCRATCH_COMPILED = 2.0, 2.6, 2.9
COPIES = 5
# An octave above 512 px, where activations leave the caches and memory is taken for the first time: on the CPUs with AMX that were
# seen, and on others (tests/benchmarks/RESULTS.md).
LARGE_TILE_COST_AMX, LARGE_TILE_COST = 0.1, 0.01
SMALL_TILE_COST = 0.05  # a guess at what each halving below 512 px costs in calls, so that a network without halo gets no tiny tiles
# A pixel of a band, parts and COG with their overviews. Seen on jobs/demo: masks 0.22, or 0.75 for patches of 2 px; confidence
# 1.52; values of U-Nets with random weights 8.7 in fp32, 7.2 in bf16, of which all bits vary.
DISK_BYTES = {"mask": 0.6, "confidence": 1.6, "probabilities": 1.6, "value": 11.0}


@dataclass(frozen=True)
class Settings:
    """What was asked for. These make a data set: another value of any of them is another OUT. Sizes in px."""

    precision: str = "auto"
    tile: int | Auto = "auto"
    halo: int | Literal["auto", "exact"] = "auto"
    shard: int | Auto = "auto"
    layers: tuple[str, ...] = ()  # by default the bundle's own: mask, or value


@dataclass(frozen=True)
class Plan:
    """How one scene is segmented. It is created once, and every later run and driver adopts it."""

    scene: Scene
    region: Region
    model_id: str
    stride: int
    tile: TileSize
    halo: int
    batch: int
    shard: int
    fine: int  # px: the size that the last shards are cut to, so that workers end nearly together; or `shard`
    finer: int  # so many, the last to be done, are cut to it
    engine: str
    precision: str
    network: str | None  # the file of an int8 network, in OUT
    choice: str  # why this engine and precision
    threads: int  # of one stream of tiles: fp32 results change with it
    device: str  # the kind of device, as `describe_device` says it
    layers: tuple[str, ...]
    classes: int
    memory_bytes: int  # the peak of one actor, computed
    cache_bytes: int  # of which GDAL may keep decoded blocks
    software: dict[str, str]

    @property
    def padded_height(self) -> int:
        return ceil_to(self.scene.grid.height, self.stride)

    @property
    def padded_width(self) -> int:
        return ceil_to(self.scene.grid.width, self.stride)

    def shards(self) -> list[Window]:
        """The shards that cover the region: each holds its tiles, and none reaches into another."""
        return _shards(self.region.window, Sizes(self.shard, self.fine, self.finer, self.tile))

    def tile_rows(self, shard: Window) -> list[list[Tile]]:
        return list(tile_rows(shard, self.padded_height, self.padded_width, self.tile, self.halo, self.trim))

    @property
    def trim(self) -> int | None:
        """The stride where tiles are only as large as they must be; some engines and batches take tiles of one shape."""
        return _trim(self.engine, self.batch, self.stride)

    def shard_name(self, shard: Window) -> str:
        """By its place in blocks, of which no other shard has one."""
        return f"r{shard.row // BLOCK:05d}c{shard.col // BLOCK:05d}"

    @property
    def tiles(self) -> int:
        return sum(cut.tiles for cut in self._cuts())

    @property
    def redundancy(self) -> float:
        """Pixels that go through the network for each pixel of the region."""
        return sum(cut.read for cut in self._cuts()) / self.region.window.pixels

    def _cuts(self) -> Iterator[_Cut]:
        return (_cut(shard, self.scene.grid, self.stride, self.tile, self.halo, self.trim) for shard in self.shards())

    @property
    def disk_bytes(self) -> int:
        """An upper estimate of what parts and results take while the scene is made."""
        return int(self.region.window.pixels * sum(DISK_BYTES[layer] for layer in bands_of(self.layers, self.classes))) + MIB

    @property
    def dtype(self) -> type[np.generic]:
        """Of the layers, which have one for all."""
        return LAYERS[self.layers[0]].dtype

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Plan:
        scene, region = content["scene"], content["region"]
        grid = scene["grid"]
        return cls(**{
            **content,
            "scene": Scene(**{
                **scene,
                "grid": Grid(**{**grid, "transform": tuple(grid["transform"])}),
                "bands": tuple(SceneBand(**band) for band in scene["bands"]),
                "files": tuple(scene["files"]),
                "block": tuple(scene["block"]),
                "notes": tuple(scene["notes"]),
                "clouds": (clouds := scene["clouds"]) and CloudMask(clouds["path"], tuple(clouds["hidden"])),
            }),
            "region": Region(Window(*region["window"]), region["geometry"]),
            "layers": tuple(content["layers"]),
            "tile": tuple(content["tile"]),
        })  # fmt: skip

    def execution(self, out: str | Place) -> Execution:
        """How the network is run; `out` is where the data set lies."""
        return Execution(self.engine, self.precision, str(storage.place_of(out) / self.network) if self.network else None)

    def scaling(self, bundle: Bundle) -> Scaling:
        return Scaling.of(self.scene.bands, bundle.bands)


@dataclass(frozen=True)
class Resources:
    """What a run has: the kind of device, as `describe_device` says it, a worker's memory, how many work at once, on how
    many pixels in all."""

    device: str
    budget_bytes: int
    workers: int = 1
    pixels: int = 0  # 0: those of the scene

    @property
    def kind(self) -> str:
        return self.device.split()[0]


def make_plan(
    scene: Scene, region: Region, bundle: Bundle, settings: Settings, *, batch: int | Auto, choice: Choice, resources: Resources
) -> Plan:  # fmt: skip
    """Resolve what was asked for into a plan whose peak memory keeps within the budget of one worker.

    Raises Refused, naming the option, for what cannot be.
    """
    stride, on_gpu, budget_bytes = bundle.reach.stride, resources.kind == "cuda", resources.budget_bytes
    halo = _halo(settings.halo, bundle)
    execution = choice.execution
    size = batch if batch != "auto" else 4 if on_gpu else 1
    if size < 1:
        raise Refused(f"--batch {size}: must be at least 1")
    layers = layers_of(bundle, settings.layers)

    def memory(tile: TileSize, shard: int) -> int:
        working = _memory_bytes(scene, bundle, execution, tile, halo, size, shard, layers)
        return working + _cache_bytes(scene, shard, tile, halo)

    asked = settings.tile
    if asked != "auto" and (asked % stride or asked <= 2 * halo):
        raise Refused(f"--tile {asked}: must be a multiple of the network's stride {stride} px and above twice the halo of {halo} px")
    shard, fine, finer, tile = _best_sizes(scene, region, stride, halo, _trim(execution.engine, size, stride), settings, memory, resources)
    cache = _cache_bytes(scene, shard, tile, halo)
    if memory(tile, shard) > budget_bytes:
        raise Refused(
            f"{scene.uri}: one worker needs {memory(tile, shard) / GIB:.1f} GiB and may use {budget_bytes / GIB:.1f} GiB:"
            f" choose a smaller --tile, --shard or --batch, or fewer --workers, or raise --memory"
            + (f"; its blocks alone take {cache / GIB:.1f} GiB: make it a COG first (rio cogeo create)" if cache > budget_bytes / 2 else "")
        )
    small = execution.engine == "compiled" and (scene.grid.height <= tile[0] or scene.grid.width <= tile[1])
    return Plan(
        scene=scene, region=region, model_id=bundle.model_id, stride=stride, tile=tile, halo=halo, batch=size,
        shard=shard, fine=fine, finer=finer,
        engine="eager" if small else execution.engine, precision=execution.precision,
        network=QUANTISED if execution.precision == "int8" else None,
        choice=f"{choice.why}{'; not compiled for a shape of its own' if small else ''}",
        threads=1, device=resources.device, layers=layers, classes=len(bundle.classes),
        memory_bytes=memory(tile, shard), cache_bytes=cache, software=software(),
    )  # fmt: skip


def memory_allotted() -> int:
    """Bytes that this process may use: the cgroup's limit, or the machine's free memory."""
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            allotted = int(limit.read_text())
        except (OSError, ValueError):
            continue
        if allotted < 2**60:
            return allotted
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("MemAvailable"))) * 1024
    except (OSError, StopIteration):
        return 8 * GIB


def _trim(engine: str, batch: int, stride: int) -> int | None:
    return stride if engine in ANY_SHAPE and batch == 1 else None


class Sizes(NamedTuple):
    """How a scene is cut, in px: shards, the last `finer` of them into pieces of `fine`, and each into tiles."""

    shard: int
    fine: int
    finer: int
    tile: TileSize


def _shards(region: Window, sizes: Sizes) -> list[Window]:
    whole = shards(region, sizes.shard)
    last = set(largest_first(whole)[len(whole) - sizes.finer :])
    return [piece for one in whole for piece in (shards(one, sizes.fine) if one in last else [one])]


class _Cut(NamedTuple):
    """Tiles, and the pixels that they read."""

    tiles: int
    read: int


def _cut(window: Window, grid: Grid, stride: int, tile: TileSize, halo: int, trim: int | None) -> _Cut:
    """How a shard is cut."""
    rows = _axis_cut(window.rows, ceil_to(grid.height, stride), tile[0], halo, trim)
    cols = _axis_cut(window.cols, ceil_to(grid.width, stride), tile[1], halo, trim, wide=True)
    return _Cut(rows.tiles * cols.tiles, rows.read * cols.read)


def _axis_cut(inside: Span, length: int, tile: int, halo: int, trim: int | None, wide: bool = False) -> _Cut:
    """How a span of an axis is cut. All that lie far enough from its ends are cut as the first of their length is."""
    if inside.start >= halo and inside.stop + min(tile, length) <= length:
        step = trim or 1
        there = (inside.start - halo) // step * step
        inside = Span(inside.start - there, inside.stop - there)
    return _span_cut(inside, length, tile, halo, trim, wide)


@lru_cache(10_000)
def _span_cut(inside: Span, length: int, tile: int, halo: int, trim: int | None, wide: bool) -> _Cut:
    reads = [read.length for read, _ in spans(inside, length, tile, halo, trim, wide)]
    return _Cut(len(reads), sum(reads))


@lru_cache(10_000)
def _axis_read(inside: Span, length: int, shard: int, tile: int, halo: int, trim: int | None, wide: bool = False) -> int:
    """The pixels that are read along an axis, in all shards."""
    first = min(ceil_to(max(inside.start, halo), shard), inside.stop)
    last = max(first, min(inside.stop, length - min(tile, length)) // shard * shard)  # whole shards between the two, alike
    ends = [*cells(Span(inside.start, first), shard), *cells(Span(last, inside.stop), shard)]
    alike = (last - first) // shard
    middle = alike * _axis_cut(Span(first, first + shard), length, tile, halo, trim, wide).read if alike else 0
    return middle + sum(_axis_cut(span, length, tile, halo, trim, wide).read for span in ends)


def _halo(asked: int | str, bundle: Bundle) -> int:
    reach = bundle.reach
    if asked == "auto":
        return bundle.halo
    if asked == "exact":
        if reach.exact_halo is None:
            raise Refused(f"--halo exact: {bundle.architecture} can never be exact ({reach.why_not}); use --halo auto or a size in px")
        return reach.exact_halo
    if not isinstance(asked, int) or asked < 0 or asked % reach.stride:
        raise Refused(f"--halo {asked}: must be a multiple of the network's stride, {reach.stride} px")
    return asked


def _check_shard(asked: int) -> int:
    if asked < BLOCK or asked % BLOCK or (asked // BLOCK) & (asked // BLOCK - 1):
        raise Refused(f"--shard {asked}: must be 512, 1024, 2048 or another 512 x 2^k px")
    return asked


def _best_sizes(
    scene: Scene, region: Region, stride: int, halo: int, trim: int | None, settings: Settings,
    memory: Callable[[TileSize, int], int], resources: Resources,
) -> Sizes:  # fmt: skip
    """The shard and the tile with the least estimated work among those that fit in memory.

    Overlap falls with the tile, which cannot be larger than its shard, and may be wider than high, since a strip of wide
    tiles is finished sooner. Few large shards leave workers idle at the end of a run, but for some that are cut smaller;
    many small ones cost calls.
    """
    window, grid = region.window, scene.grid
    asked_shards = AUTO_SHARDS[resources.kind] if settings.shard == "auto" else [_check_shard(settings.shard)]
    tiles = {shard: _tiles(scene, stride, halo, shard, settings.tile) for shard in asked_shards}
    fitting = {shard: [tile for tile in some if memory(tile, shard) <= resources.budget_bytes] for shard, some in tiles.items()}

    def read(shard: int, tile: TileSize) -> int:
        """The pixels that whole shards read."""
        rows = _axis_read(window.rows, ceil_to(grid.height, stride), shard, tile[0], halo, trim)
        cols = _axis_read(window.cols, ceil_to(grid.width, stride), shard, tile[1], halo, trim, wide=True)
        return rows * cols

    def compute(shard: int, tile: TileSize) -> float:
        """The network's work, with whole shards."""
        return read(shard, tile) * _cost(tile, resources.device)

    def work(sizes: Sizes) -> float:
        """The same for a pixel of the region, and what goes with it."""
        if (count := counts[sizes.shard]) > many:
            total, idle = read(sizes.shard, sizes.tile), idle_at_the_end(count, resources.workers)
        else:
            loads = [_cut(one, grid, stride, sizes.tile, halo, trim).read for one in _shards(window, sizes)]
            total, count, idle = sum(loads), len(loads), idle_share(loads, resources.workers)
        idle *= min(1.0, window.pixels / (resources.pixels or window.pixels))
        calls = SHARD_S * RATES[resources.kind] * count
        return (total * _cost(sizes.tile, resources.device) * (1 + idle) + calls) / window.pixels

    counts = {shard: len(cells(window.rows, shard)) * len(cells(window.cols, shard)) for shard in fitting}
    many = MANY_SHARDS * resources.workers
    found = []
    for shard, some in fitting.items():
        count = counts[shard]
        last = {min(count, count % resources.workers + more * resources.workers) for more in range(3)} - {0}
        finer = settings.shard == "auto" and count <= many
        cuts = [(fine, pieces) for fine in (shard // 2, shard // 4) if fine >= BLOCK for pieces in last if finer]
        if some:
            tile = min(some, key=partial(compute, shard))
            found += [Sizes(shard, *cut, tile) for cut in [(shard, 0), *cuts]]
    if not found:
        return min(Sizes(shard, shard, 0, some[0]) for shard, some in tiles.items())
    works = {sizes: work(sizes) for sizes in found}
    return min(found, key=lambda sizes: (round(works[sizes] / NEAR), sizes.finer, sizes.shard, works[sizes]))


def _cost(tile: TileSize, device: str) -> float:
    """What a pixel of such a tile costs, against one of 512 px square."""
    octaves = math.log2(math.sqrt(tile[0] * tile[1]) / 512)
    return 1 + max((LARGE_TILE_COST_AMX if "amx" in device else LARGE_TILE_COST) * octaves, -SMALL_TILE_COST * octaves)


def idle_at_the_end(shards: int, workers: int) -> float:
    """The same of so many shards that it does not matter how large each is: workers wait for half of one."""
    return workers / (2 * shards)


def idle_share(loads: Sequence[int], workers: int) -> float:
    """The time that workers wait for the last one, against what they work, where the largest shards are done first."""
    if len(loads) > MANY_SHARDS * workers:
        return idle_at_the_end(len(loads), workers)
    busy = [0] * workers
    for load in sorted(loads, reverse=True):
        heapq.heapreplace(busy, busy[0] + load)
    return max(busy) * workers / sum(busy) - 1


def _tiles(scene: Scene, stride: int, halo: int, shard: int, asked: int | Auto) -> list[TileSize]:
    """The tile sizes that are worth a thought for a shard, or the one that was asked for."""
    if asked != "auto":
        return [(asked, asked)]
    heights, widths = (_lengths(scene, stride, halo, min(shard, largest)) for largest in LARGEST_CORE)
    widest = max(scene.grid.width, scene.grid.height)
    widths = sorted({width if width >= widest else even(width, stride) for width in widths})
    return [(height, width) for height in heights for width in widths if height <= width]


def _lengths(scene: Scene, stride: int, halo: int, largest_core: int) -> list[int]:
    """A tile's lengths along one axis."""
    smallest, largest = (ceil_to(core + 2 * halo, stride) for core in (max(stride, SMALLEST_TILE - 2 * halo), largest_core))
    whole = max(ceil_to(scene.grid.height, stride), ceil_to(scene.grid.width, stride))
    rims = (halo, 2 * halo)  # at an edge, or inside
    usual = [largest_core // count + rim for count in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64) for rim in rims]
    sizes = {ceil_to(size, stride) for size in (*usual, whole, *range(smallest, largest, TILE_STEP))}
    return sorted(size for size in sizes if smallest <= size <= min(whole, largest)) or [max(smallest, whole)]


def _cache_bytes(scene: Scene, shard: int, tile: TileSize, halo: int) -> int:
    """What GDAL must keep so that no block is decoded twice: the blocks under one row of a shard's tiles."""
    block_height, block_width = scene.block
    height = min(scene.grid.height, tile[0] + 2 * block_height)
    width = min(scene.grid.width, shard + 2 * halo + 2 * block_width)
    return max(64 * MIB, ceil_to(height, block_height) * ceil_to(width, block_width) * len(scene.bands) * _file_itemsize(scene))


def _file_itemsize(scene: Scene) -> int:
    return max(np.dtype(band.dtype).itemsize for band in scene.bands)


def _memory_bytes(
    scene: Scene, bundle: Bundle, execution: Execution, tile: TileSize, halo: int, batch: int, shard: int,
    layers: Sequence[str],
) -> int:  # fmt: skip
    """The peak of one actor, which has two shards under way, without GDAL's cache."""
    lengths = (scene.grid.height, scene.grid.width)
    height, width = (min(size, ceil_to(length, bundle.reach.stride)) for size, length in zip(tile, lengths, strict=True))
    tile_px = height * width
    bands, logits = len(bundle.bands), bundle.outputs * (layers != ("mask",))  # that are brought to the tile's size
    stored = sum(np.dtype(LAYERS[layer].dtype).itemsize for layer in bands_of(layers, len(bundle.classes)))
    in_fp32 = execution.precision == "fp32"
    scratch = SCRATCH_COMPILED if execution.engine == "compiled" else SCRATCH_FP32 if in_fp32 else SCRATCH
    activations = bundle.activation_bytes_per_pixel * scratch * (1.0 if in_fp32 else 0.5)
    in_shard = math.ceil(shard / (tile[0] - 2 * halo)) * math.ceil(shard / (tile[1] - 2 * halo))
    ahead = 2 * min(2 * batch + 1, in_shard) * tile_px * bands * (scene.dtype.itemsize + 1)
    inputs = batch * tile_px * bands * (4 + scene.dtype.itemsize)
    results = tile_px * (9 + (4 + 4 + 1) * logits)  # int64 and uint8 ids; fp32 logits, softmax, percent
    strips = 6 * min(shard, scene.grid.width) * (tile[0] - 2 * halo + BLOCK) * stored
    process = PROCESS_BYTES + TOP_PAD + COPIES * bundle.weight_bytes
    return int(process + batch * tile_px * activations + ahead + inputs + results + strips)
