"""What is decided once for a scene: every `auto` is resolved here, before a pixel is read."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import torch

from pipeline.errors import Refused
from pipeline.geometry.windows import BLOCK, Span, Tile, Window, ceil_to, shards, spans, tile_rows
from pipeline.imagery.raster import Grid, Scene, SceneBand
from pipeline.imagery.region import Region
from pipeline.models.bundle import Bundle
from pipeline.models.engine import Scaling, choose_precision, layer_count

Auto = Literal["auto"]
MIB, GIB = 2**20, 2**30
SMALLEST_SHARD, LARGEST_SHARD = 1024, 4096  # px, for `auto`
ENOUGH_SHARDS = 64  # for `auto`: so many keep some tens of actors busy to the end
PROCESS_BYTES = 1050 * MIB  # Python, torch with its libraries, rasterio, publishing: 865 to 971 MiB seen with next to no network
SCRATCH = 1.3  # what a forward pass holds on a CPU against the tensors it counts: 1.14 to 1.27 seen at 1024 px
LARGE_TILE_COST = 0.12  # a tile of 1024 px is about that much slower a pixel than one of 512 px on a CPU (cache)
SMALL_TILE_COST = 0.05  # a guess at what each halving below 512 px costs in calls, so that a network without halo gets no tiny tiles
MASK_DISK_BYTES = 0.6  # a pixel, parts and COG with their overviews: 0.22 seen on jobs/demo, 0.75 for patches of 2 px
LAYER_DISK_BYTES = 1.6  # likewise of each other layer: 1.52 seen on jobs/demo


@dataclass(frozen=True)
class Settings:
    """What was asked for. These make a data set: another value of any of them is another OUT. Sizes in px."""

    precision: str = "auto"
    tile: int | Auto = "auto"
    halo: int | Literal["auto", "exact"] = "auto"
    shard: int | Auto = "auto"
    layers: tuple[str, ...] = ("mask",)


@dataclass(frozen=True)
class Plan:
    """How one scene is segmented. It is created once, and every later run and driver adopts it."""

    scene: Scene
    region: Region
    model_id: str
    stride: int
    tile: int
    halo: int
    batch: int
    shard: int
    precision: str
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
        """The shards that cover the region, row by row."""
        return shards(self.region.window, self.shard)

    def tile_rows(self, shard: Window) -> list[list[Tile]]:
        return list(tile_rows(shard, self.padded_height, self.padded_width, self.tile, self.halo))

    def shard_name(self, shard: Window) -> str:
        return f"r{shard.row // self.shard:05d}c{shard.col // self.shard:05d}"

    @property
    def tiles(self) -> int:
        rows, cols = _tile_counts(self.region.window, self.scene.grid, self.stride, self.shard, self.tile, self.halo)
        return rows * cols

    @property
    def redundancy(self) -> float:
        """Pixels that go through the network for each pixel of the region."""
        return redundancy(self.region.window, self.scene.grid, self.stride, self.shard, self.tile, self.halo)

    @property
    def disk_bytes(self) -> int:
        """An upper estimate of what parts and results take while the scene is made."""
        others = layer_count(self.layers, self.classes) - 1
        return int(self.region.window.pixels * (MASK_DISK_BYTES + others * LAYER_DISK_BYTES)) + MIB

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
                "block": tuple(scene["block"]),
                "notes": tuple(scene["notes"]),
            }),
            "region": Region(Window(*region["window"]), region["geometry"]),
            "layers": tuple(content["layers"]),
        })  # fmt: skip

    def scaling(self, bundle: Bundle) -> Scaling:
        return Scaling.of(self.scene.bands, bundle.bands)


def make_plan(
    scene: Scene, region: Region, bundle: Bundle, settings: Settings, *, batch: int | Auto, device: str, budget_bytes: int
) -> Plan:
    """Resolve what was asked for into a plan whose peak memory keeps within `budget_bytes` for one actor.

    `device` is what `describe_device` says. Raises Refused, naming the option, for what cannot be.
    """
    stride, on_gpu = bundle.reach.stride, device.startswith("cuda")
    halo = _halo(settings.halo, bundle)
    shard = _shard(settings.shard, region.window)
    precision = choose_precision(settings.precision, "cuda" if on_gpu else "cpu", bundle)
    size = batch if batch != "auto" else 4 if on_gpu else 1
    if size < 1:
        raise Refused(f"--batch {size}: must be at least 1")
    layers = layer_count(settings.layers, len(bundle.classes))

    def memory(tile: int) -> int:
        working = _memory_bytes(scene, bundle, precision, tile, halo, size, shard, layers)
        return working + _cache_bytes(scene, shard, tile, halo)

    tile = settings.tile
    if tile == "auto":
        tile = _best_tile(scene, region, stride, halo, shard, memory, budget_bytes)
    if tile % stride or tile <= 2 * halo:
        raise Refused(f"--tile {tile}: must be a multiple of the network's stride {stride} px and above twice the halo of {halo} px")
    cache = _cache_bytes(scene, shard, tile, halo)
    if memory(tile) > budget_bytes:
        raise Refused(
            f"{scene.uri}: one worker needs {memory(tile) / GIB:.1f} GiB and may use {budget_bytes / GIB:.1f} GiB:"
            f" choose a smaller --tile, --shard or --batch, or fewer --workers, or raise --memory"
            + (f"; its blocks alone take {cache / GIB:.1f} GiB: make it a COG first (rio cogeo create)" if cache > budget_bytes / 2 else "")
        )
    return Plan(
        scene=scene, region=region, model_id=bundle.model_id, stride=stride, tile=tile, halo=halo, batch=size, shard=shard,
        precision=precision, threads=1, device=device, layers=settings.layers, classes=len(bundle.classes),
        memory_bytes=memory(tile), cache_bytes=cache, software=software(),
    )  # fmt: skip


def software() -> dict[str, str]:
    """The versions that a result may depend on."""
    return {
        "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
        "rasterio": rasterio.__version__, "gdal": rasterio.__gdal_version__,
    }  # fmt: skip


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


def redundancy(region: Window, grid: Grid, stride: int, shard: int, tile: int, halo: int) -> float:
    """Pixels that go through the network for each pixel of `region`."""
    rows, cols = _tile_counts(region, grid, stride, shard, tile, halo)
    read_height, read_width = (min(tile, ceil_to(length, stride)) for length in (grid.height, grid.width))
    return rows * read_height * cols * read_width / region.pixels


def _tile_counts(region: Window, grid: Grid, stride: int, shard: int, tile: int, halo: int) -> tuple[int, int]:
    """Rows and columns of tiles over the region, each shard cut on its own."""
    return _count(region.rows, grid.height, stride, shard, tile, halo), _count(region.cols, grid.width, stride, shard, tile, halo)


def _count(inside: Span, length: int, stride: int, shard: int, tile: int, halo: int) -> int:
    count = 0
    for start in range(inside.start // shard * shard, inside.stop, shard):
        cut = Span(max(start, inside.start), min(start + shard, inside.stop))
        count += sum(1 for _ in spans(cut, ceil_to(length, stride), tile, halo))
    return count


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


def _shard(asked: int | str, region: Window) -> int:
    if asked == "auto":
        shard = LARGEST_SHARD
        while shard > SMALLEST_SHARD and len(shards(region, shard)) < ENOUGH_SHARDS:
            shard //= 2
        return shard
    if not isinstance(asked, int) or asked < BLOCK or asked % BLOCK or (asked // BLOCK) & (asked // BLOCK - 1):
        raise Refused(f"--shard {asked}: must be 512, 1024, 2048 or another 512 x 2^k px")
    return asked


def _best_tile(scene: Scene, region: Region, stride: int, halo: int, shard: int, memory: Any, budget_bytes: int) -> int:
    """The tile with the least estimated work among those that fit: overlap falls with its size, cache misses rise."""

    def work(tile: int) -> float:
        octaves = math.log2(tile / 512)
        slower = 1 + max(LARGE_TILE_COST * octaves, -SMALL_TILE_COST * octaves)
        return redundancy(region.window, scene.grid, stride, shard, tile, halo) * slower

    smallest = ceil_to(2 * halo + stride, stride)
    sizes = [core + 2 * halo for core in _halvings(shard) if core + 2 * halo >= smallest]
    whole = max(ceil_to(scene.grid.height, stride), ceil_to(scene.grid.width, stride))
    sizes = [size for size in sizes if size < whole] + ([whole] if smallest <= whole <= shard + 2 * halo else [])
    fitting = [size for size in sizes if memory(size) <= budget_bytes]
    return min(fitting, key=work) if fitting else min(sizes, default=max(smallest, whole))


def _halvings(shard: int) -> Sequence[int]:
    return [shard >> k for k in range(shard.bit_length()) if shard >> k >= 64]


def _cache_bytes(scene: Scene, shard: int, tile: int, halo: int) -> int:
    """What GDAL must keep so that no block is decoded twice: the blocks under one row of a shard's tiles."""
    block_height, block_width = scene.block
    height = min(scene.grid.height, tile + 2 * block_height)
    width = min(scene.grid.width, shard + 2 * halo + 2 * block_width)
    return max(64 * MIB, ceil_to(height, block_height) * ceil_to(width, block_width) * len(scene.bands) * _file_itemsize(scene))


def _file_itemsize(scene: Scene) -> int:
    return max(np.dtype(band.dtype).itemsize for band in scene.bands)


def _memory_bytes(scene: Scene, bundle: Bundle, precision: str, tile: int, halo: int, batch: int, shard: int, layers: int) -> int:
    """The peak of one actor, without GDAL's cache."""
    height, width = (min(tile, ceil_to(length, bundle.reach.stride)) for length in (scene.grid.height, scene.grid.width))
    tile_px = height * width
    bands, classes = len(bundle.bands), len(bundle.classes)
    activations = bundle.activation_bytes_per_pixel * SCRATCH * (1.0 if precision == "fp32" else 0.5)
    ahead = (2 * batch + 1) * tile_px * bands * (scene.dtype.itemsize + 1)
    inputs = batch * tile_px * bands * (4 + scene.dtype.itemsize)
    outputs = tile_px * (9 + (4 + 4 + 1) * classes * (layers > 1))  # int64 and uint8 ids; fp32 logits, softmax, percent
    strips = 3 * min(shard, scene.grid.width) * (tile - 2 * halo + BLOCK) * layers
    return int(PROCESS_BYTES + 2 * bundle.weight_bytes + batch * tile_px * activations + ahead + inputs + outputs + strips)
