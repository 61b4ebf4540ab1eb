"""What is decided once: every `auto`, the tiles of each shard, memory, and what is refused before work begins."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.errors import Refused
from pipeline.geometry.windows import Span, Window, cells, even, spans
from pipeline.imagery.raster import Grid, Scene, SceneBand
from pipeline.imagery.region import Region
from pipeline.inference import plan as planning
from pipeline.inference.plan import GIB, Plan, Resources, Settings, idle_share, make_plan, memory_allotted
from pipeline.models.bundle import Bundle
from pipeline.models.choice import REFERENCE

CPU = "cpu x86_64 AVX512"


def scene_of(height: int, width: int, block: tuple[int, int] = (512, 512), dtype: str = "uint8") -> Scene:
    band = SceneBand("band_1", "/scene.tif", 1, dtype, None, 1.0, 0.0, masked=False, warped=False, categorical=False)
    grid = Grid(height, width, (10.0, 0.0, 0.0, 0.0, -10.0, 0.0), None)
    return Scene("scene", "/scene.tif", None, "v1", grid, (band, band, band), block, None)


def plan_of(scene: Scene, bundle: Bundle, budget_bytes: int = 8 * GIB, region: Region | None = None, **settings: object) -> Plan:
    return make_plan(
        scene, region or Region(scene.grid.window), bundle, Settings(**settings), batch="auto",
        choice=REFERENCE, resources=Resources(CPU, budget_bytes),
    )  # fmt: skip


def test_a_plan_survives_json(unet: Bundle):
    region = Region(Window(512, 0, 512, 1024), {"type": "Polygon", "coordinates": [[[0, 600], [900, 600], [900, 900], [0, 600]]]})
    plan = plan_of(scene_of(2000, 3000), unet, region=region, layers=("mask", "confidence"))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.parametrize(("height", "width"), [(1, 1), (500, 700), (1428, 1128), (5000, 3000), (10000, 10000)])
@pytest.mark.parametrize("halo", [0, 8, 48])
def test_redundancy_is_what_the_tiles_read(unet: Bundle, height: int, width: int, halo: int):
    plan = plan_of(scene_of(height, width), unet, halo=halo)
    tiles = [tile for shard in plan.shards() for row in plan.tile_rows(shard) for tile in row]
    assert plan.tiles == len(tiles)
    assert plan.redundancy == pytest.approx(sum(tile.read.pixels for tile in tiles) / (height * width))
    assert sum(tile.core.pixels for tile in tiles) == height * width


def test_auto_tile_wastes_less_than_the_usual_tiles(unet: Bundle):
    scene = scene_of(10_000, 10_000)
    auto = plan_of(scene, unet)
    assert auto.redundancy < min(plan_of(scene, unet, tile=tile).redundancy for tile in (256, 512)) and auto.redundancy < 1.5


def test_tiles_are_smaller_where_large_ones_are_slow(unet: Bundle):
    """On the CPUs with AMX that were seen; where overlap is much they stay large."""
    scene = scene_of(10_000, 10_000)

    def tile_px(device: str, halo: int) -> int:
        height, width = make_plan(
            scene,
            Region(scene.grid.window),
            unet,
            Settings(halo=halo),
            batch="auto",
            choice=REFERENCE,
            resources=Resources(device, 8 * GIB),
        ).tile
        return height * width

    assert tile_px(f"{CPU} amx_bf16", 8) < 800**2 and tile_px(CPU, 8) > 2000**2
    assert tile_px(f"{CPU} amx_bf16", 192) > 1500**2


@pytest.mark.parametrize("workers", [1, 2, 7, 64])
@pytest.mark.parametrize("side", [5_000, 20_000, 100_000])
def test_auto_shards_keep_workers_busy(unet: Bundle, workers: int, side: int):
    """None waits for more than a quarter of the run, or the shards are the smallest there are."""
    scene = scene_of(side, side)
    resources = Resources(CPU, 8 * GIB, workers)
    plan = make_plan(scene, Region(scene.grid.window), unet, Settings(), batch="auto", choice=REFERENCE, resources=resources)
    loads = [0] * workers
    for shard in sorted(plan.shards(), key=lambda shard: -shard.pixels):
        loads[loads.index(min(loads))] += sum(len(row) for row in plan.tile_rows(shard))
    assert max(loads) * workers <= 1.25 * sum(loads) or plan.shard == 1024
    assert plan.shard == 1024 or len(plan.shards()) >= workers


def test_many_shards_are_estimated_and_few_are_counted():
    assert idle_share([4, 2, 4, 2, 4, 4, 2, 2, 1], 2) == pytest.approx(13 * 2 / 25 - 1)
    assert idle_share([4], 2) == 1.0
    assert idle_share([1] * 10_000, 10) == 10 / 20_000


def test_the_tile_is_no_larger_than_its_count_asks(unet: Bundle):
    """Two tiles along an axis need the halo on one side only; a scene that fits into one needs none."""
    exact = plan_of(scene_of(2048, 2048), unet, shard=1024)
    size = 1024 + exact.halo
    assert exact.tile == (size, even(size, unet.reach.stride)) and plan_of(scene_of(900, 900), unet).redundancy < 1.02


def test_memory_does_not_grow_with_the_scene(unet: Bundle):
    """Law 3, as computed: the same for 0.1, 1 and 10 gigapixels, plus a row of the file's own blocks where it is striped."""
    tiled = [plan_of(scene_of(side, side), unet, shard=2048, tile=512).memory_bytes for side in (10_000, 32_000, 100_000)]
    assert max(tiled) <= 1.001 * min(tiled)
    striped = plan_of(scene_of(100_000, 100_000, block=(1, 100_000)), unet, shard=2048, tile=512).memory_bytes
    assert striped - tiled[0] <= 3 * 100_000 * (512 + 2)


def test_less_memory_gives_smaller_tiles_and_too_little_is_refused(unet: Bundle):
    scene = scene_of(20_000, 20_000)
    plans = [plan_of(scene, unet, budget_bytes=int(budget * GIB)) for budget in (4.0, 1.7, 1.55)]
    areas = [plan.tile[0] * plan.tile[1] for plan in plans]
    assert areas == sorted(areas, reverse=True) and areas[0] > areas[-1]
    with pytest.raises(Refused, match=r"one worker needs .* GiB and may use 0\.5 GiB: choose a smaller --tile"):
        plan_of(scene, unet, budget_bytes=GIB // 2)
    huge = scene_of(65_536, 65_536, block=(65_536, 65_536))
    with pytest.raises(Refused, match="make it a COG first"):
        plan_of(huge, unet, budget_bytes=4 * GIB)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"halo": 20}, "--halo 20: must be a multiple of the network's stride, 8 px"),
        ({"tile": 100}, "--tile 100: must be a multiple of the network's stride 8 px"),
        ({"tile": 96}, "above twice the halo of 48 px"),
        ({"shard": 700}, "--shard 700: must be 512, 1024"),
        ({"shard": 1536}, "--shard 1536"),
    ],
)
def test_what_cannot_be_is_refused_by_name(unet: Bundle, settings: dict[str, object], message: str):
    with pytest.raises(Refused, match=message):
        plan_of(scene_of(2000, 2000), unet, **settings)


def test_halo_words(unet: Bundle, make_bundle):
    measured = replace(unet, halo=16)
    assert [plan_of(scene_of(900, 900), measured, halo=halo).halo for halo in ("auto", "exact", 24)] == [16, 48, 24]
    never = make_bundle("lraspp_mobilenet_v3_large", bands=3, classes=2)
    assert plan_of(scene_of(900, 900), never).halo == 128
    with pytest.raises(Refused, match=r"can never be exact \(global pooling\)"):
        plan_of(scene_of(900, 900), never, halo="exact")


def test_the_region_keeps_the_scenes_tiles(unet: Bundle):
    scene = scene_of(3000, 3000)
    whole = plan_of(scene, unet, shard=1024, tile=512)
    part = plan_of(scene, unet, shard=1024, tile=512, region=Region(Window(1024, 1024, 1024, 1024)))
    tiles = {tile for shard in whole.shards() for row in whole.tile_rows(shard) for tile in row}
    assert {tile for shard in part.shards() for row in part.tile_rows(shard) for tile in row} <= tiles


@pytest.mark.parametrize("workers", [2, 8, 16])
@pytest.mark.parametrize("side", [5_000, 10_240, 10_980, 20_000])
def test_the_last_shards_are_cut_smaller_where_that_ends_a_run_sooner(unet: Bundle, workers: int, side: int):
    scene = scene_of(side, side)
    resources = Resources(CPU, 8 * GIB, workers)
    plan = make_plan(scene, Region(scene.grid.window), unet, Settings(), batch="auto", choice=REFERENCE, resources=resources)
    whole = replace(plan, fine=plan.shard, finer=0)

    def seconds(of: Plan) -> float:
        loads = [sum(tile.read.pixels for row in of.tile_rows(shard) for tile in row) for shard in of.shards()]
        return sum(loads) * (1 + idle_share(loads, workers))

    assert seconds(plan) <= 1.01 * seconds(whole)
    assert plan.finer == 0 or seconds(plan) < 0.99 * seconds(whole)
    assert idle_share([shard.pixels for shard in plan.shards()], workers) < 0.12
    owners_HW = np.zeros((side // 20 + 1, side // 20 + 1), np.uint8)  # a pixel in 20 along each axis
    for shard in plan.shards():
        rows, cols = (slice(-(-span.start // 20), -(-span.stop // 20)) for span in (shard.rows, shard.cols))
        owners_HW[rows, cols] += 1
        assert shard.row % plan.fine == shard.col % plan.fine == 0
    assert (owners_HW[: -(-side // 20), : -(-side // 20)] == 1).all()
    names = {plan.shard_name(shard) for shard in plan.shards()}
    assert len(names) == len(plan.shards())


def test_how_an_axis_is_cut_is_known_without_cutting_all_of_it():
    chance = random.Random(1)
    for _ in range(3000):
        stride = chance.choice((1, 2, 8))
        trim, halo, shard = chance.choice((None, stride)), stride * chance.randrange(6), stride * chance.randrange(1, 40)
        tile, length = 2 * halo + stride * chance.randrange(1, 12), stride * chance.randrange(1, 200)
        start = stride * chance.randrange(length // stride)
        inside = Span(start, chance.randrange(start + 1, length + 1))
        wide = chance.random() < 0.5
        reads = {span: [read.length for read, _ in spans(span, length, tile, halo, trim, wide)] for span in cells(inside, shard)}
        assert planning._axis_read(inside, length, shard, tile, halo, trim, wide) == sum(map(sum, reads.values()))
        for span, found in reads.items():
            assert planning._axis_cut(span, length, tile, halo, trim, wide) == (len(found), sum(found))


@pytest.mark.parametrize(("height", "width"), [(1_000_000, 1_000_000), (80, 16_777_146), (16_777_146, 80)])
def test_planning_takes_no_longer_for_a_large_scene(unet: Bundle, monkeypatch: pytest.MonkeyPatch, height: int, width: int):
    """A header of a few bytes may claim such a size: 50 s were seen."""
    cut = 0

    def counted(*arguments: Any) -> Iterator[Any]:
        nonlocal cut
        for both in spans(*arguments):
            cut += 1
            yield both

    monkeypatch.setattr(planning, "spans", counted)
    monkeypatch.setattr(planning, "_shards", lambda *_: pytest.fail("all shards were listed"))
    planning._span_cut.cache_clear()
    planning._axis_read.cache_clear()
    assert plan_of(scene_of(height, width), unet).shard == 4096
    assert 0 < cut < 20_000


def test_a_shard_that_was_asked_for_is_not_cut(unet: Bundle):
    scene = scene_of(10_240, 10_240)
    plan = make_plan(
        scene, Region(scene.grid.window), unet, Settings(shard=2048), batch="auto", choice=REFERENCE, resources=Resources(CPU, 8 * GIB, 2)
    )  # fmt: skip
    assert (plan.shard, plan.fine, plan.finer) == (2048, 2048, 0) and len(plan.shards()) == 25


def test_what_this_machine_allots():
    assert 2**28 < memory_allotted() < 2**45


def test_names_of_shards_are_unique(unet: Bundle):
    plan = plan_of(scene_of(9_000, 9_000), unet)
    names = [plan.shard_name(shard) for shard in plan.shards()]
    assert len(set(names)) == len(names) == int(np.ceil(9_000 / plan.shard)) ** 2


def test_a_plan_is_not_made_for_a_batch_of_none(unet: Bundle):
    region, resources = Region(Window(0, 0, 9, 9)), Resources(CPU, 4 * GIB)
    with pytest.raises(Refused, match="--batch 0"):
        make_plan(scene_of(9, 9), region, unet, Settings(), batch=0, choice=REFERENCE, resources=resources)
