"""A part reads back as what was written, level by level; one that is damaged says so and is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import Unreadable
from pipeline.geometry.pyramid import NODATA, Reduce, average, level_sizes, levels_of_shards, mean, mode, nodata_of
from pipeline.geometry.windows import BLOCK, Window
from pipeline.imagery.raster import Grid
from pipeline.imagery.region import Region
from pipeline.inference.blocks import BlockFile, decompress, read_blocks
from pipeline.inference.part import FailedWindow, PartWriter, check_part, read_part
from pipeline.inference.plan import Plan
from pipeline.inference.tally import Tallied
from tests.inference.test_plan import scene_of

CLASSES = 5


def plan_of_parts(
    region: Window, shard: int, layers: tuple[str, ...] = ("mask",), grid: Grid | None = None, fine: int | None = None, finer: int = 0
) -> Plan:
    """As much of a plan as parts are written by; the last `finer` shards are cut to `fine` px."""
    scene = scene_of(region.rows.stop, region.cols.stop)
    return Plan(
        scene=replace(scene, grid=grid or scene.grid), region=Region(region), model_id="m", stride=1, tile=(512, 512), halo=0, batch=1,
        shard=shard, fine=fine or shard, finer=finer, engine="eager", precision="fp32", network=None, choice="", threads=1,
        device="cpu", layers=layers, classes=CLASSES, memory_bytes=0, cache_bytes=0, software={},
    )  # fmt: skip


def layers_of(region: Window, layers: int, seed: int = 0) -> np.ndarray:
    """A mask in patches of classes and nodata, and percentages where it is not nodata (layers x height x width)."""
    random = np.random.default_rng(seed)
    coarse = random.choice([0, 1, 2, 3, 4, NODATA], (region.height // 9 + 1, region.width // 9 + 1))
    mask_HW = np.kron(coarse, np.ones((9, 9)))[: region.height, : region.width].astype(np.uint8)
    others = [np.where(mask_HW == NODATA, NODATA, random.integers(0, 101, mask_HW.shape)) for _ in range(layers - 1)]
    return np.stack([mask_HW, *others]).astype(np.uint8)


def values_of(region: Window, seed: int = 0) -> np.ndarray:
    """Values, float32, in patches with grain, and patches of nodata (1 x height x width)."""
    random = np.random.default_rng(seed)
    coarse = random.choice([0.0, 5.0, 20.0, np.nan], (region.height // 9 + 1, region.width // 9 + 1))
    patches_HW = np.kron(coarse, np.ones((9, 9)))[: region.height, : region.width]
    return (patches_HW + random.normal(size=patches_HW.shape)).astype(np.float32)[None]


def write_part(
    path: Path, shard: Window, plan: Plan, layers_LHW: np.ndarray, strip: int = BLOCK, failed: list[FailedWindow] | None = None
) -> Tallied:
    """Write a shard's layers (of the shard alone) as strips of `strip` rows."""
    with PartWriter(path, shard, plan) as writer:
        for top in range(0, shard.height, strip):
            rows = layers_LHW[:, top : top + strip]
            writer.write(Window(shard.row + top, shard.col, rows.shape[1], shard.width), rows)
        return writer.finish(failed or [])


def reduced(level_HW: np.ndarray, reduce: Reduce) -> np.ndarray:
    """A level's overview in plain numpy; nodata beyond an odd edge, which no cell counts."""
    even = np.pad(level_HW, [(0, side % 2) for side in level_HW.shape], constant_values=nodata_of(level_HW.dtype))
    return reduce(even)


@pytest.mark.parametrize("strip", [512, 1024, 4096])
@pytest.mark.parametrize(
    "shard", [Window(0, 0, 1, 1), Window(0, 2048, 1000, 700), Window(2048, 0, 2048, 2048), Window(2048, 2048, 513, 2000)]
)
def test_a_part_reads_back_as_what_was_written(tmp_path: Path, shard: Window, strip: int):
    plan = plan_of_parts(Window(0, 0, shard.rows.stop, shard.cols.stop), 2048, ("mask", "confidence"))
    layers_LHW = layers_of(shard, 2)
    failed = [FailedWindow(*shard, "cannot be read: ü")]
    tally = write_part(tmp_path / "a.part", shard, plan, layers_LHW, strip, failed)
    content = read_part(tmp_path / "a.part")
    assert (content.shard, content.tally, content.failed) == (shard, tally, failed)
    assert tally.pixels == np.bincount(layers_LHW[0].ravel(), minlength=256)[:CLASSES].tolist()
    assert tally.confidence == [int(layers_LHW[1][layers_LHW[0] == number].sum()) for number in range(CLASSES)]
    assert len(content.blocks) == levels_of_shards(plan.region.window, plan.fine)
    for layer, expected_HW in enumerate(layers_LHW):
        for size, blocks in zip(level_sizes(*shard[2:]), content.blocks, strict=False):
            found = np.array([decompress(data) for data in read_blocks(tmp_path / "a.part", blocks[layer])])
            level_HW = found.reshape(size.block_rows, size.block_cols, BLOCK, BLOCK).swapaxes(1, 2).reshape(size.block_rows * BLOCK, -1)
            np.testing.assert_array_equal(level_HW[: size.height, : size.width], expected_HW)
            assert (level_HW[size.height :] == NODATA).all() and (level_HW[:, size.width :] == NODATA).all()
            expected_HW = reduced(expected_HW, average if layer else mode)
    check_part(tmp_path / "a.part", tally)


@pytest.mark.parametrize("strip", [512, 1024])
@pytest.mark.parametrize("shard", [Window(0, 0, 1, 1), Window(0, 2048, 1000, 700), Window(2048, 2048, 513, 2000)])
def test_a_part_of_values_reads_back_as_what_was_written(tmp_path: Path, shard: Window, strip: int):
    plan = plan_of_parts(Window(0, 0, shard.rows.stop, shard.cols.stop), 2048, ("value",))
    values_LHW = values_of(shard)
    tally = write_part(tmp_path / "a.part", shard, plan, values_LHW, strip)
    content = read_part(tmp_path / "a.part")
    assert (content.shard, content.tally, content.failed) == (shard, tally, [])
    expected_HW = values_LHW[0]
    for size, blocks in zip(level_sizes(*shard[2:]), content.blocks, strict=False):
        found = np.array([decompress(data, np.float32) for data in read_blocks(tmp_path / "a.part", blocks[0])])
        level_HW = found.reshape(size.block_rows, size.block_cols, BLOCK, BLOCK).swapaxes(1, 2).reshape(size.block_rows * BLOCK, -1)
        np.testing.assert_array_equal(level_HW[: size.height, : size.width], expected_HW)
        assert np.isnan(level_HW[size.height :]).all() and np.isnan(level_HW[:, size.width :]).all()
        expected_HW = reduced(expected_HW, mean)
    check_part(tmp_path / "a.part", tally)


@pytest.mark.parametrize(("row", "col"), [(0, 0), (599, 599)])
def test_a_part_with_one_other_value_than_was_counted_is_an_error(tmp_path: Path, row: int, col: int):
    shard = Window(0, 0, 600, 600)
    plan, values_LHW = plan_of_parts(shard, 1024, ("value",)), np.ones((1, 600, 600), np.float32)
    tally = write_part(tmp_path / "a.part", shard, plan, values_LHW)
    values_LHW[0, row, col] = np.nextafter(np.float32(1), np.float32(2))
    write_part(tmp_path / "a.part", shard, plan, values_LHW)
    with pytest.raises(OSError, match="reads back differently"):
        check_part(tmp_path / "a.part", tally)


def test_a_region_off_the_grid_of_shards_has_full_resolution_alone(tmp_path: Path):
    plan = plan_of_parts(Window(512, 0, 3000, 3000), 1024)
    shard = plan.shards()[0]
    write_part(tmp_path / "a.part", shard, plan, layers_of(shard, 1))
    assert len(read_part(tmp_path / "a.part").blocks) == 1


def read_all(path: Path) -> None:
    for level in read_part(path).blocks:
        for entries in level:
            list(read_blocks(path, entries))


def test_a_damaged_part_is_named_wherever_it_is_damaged(tmp_path: Path):
    shard = Window(0, 0, 700, 1024)
    plan, part = plan_of_parts(shard, 1024, ("mask", "confidence")), tmp_path / "a.part"
    tally = write_part(part, shard, plan, layers_of(shard, 2))
    whole = part.read_bytes()
    read_all(part)
    positions = [0, 1, len(whole) // 2, *range(len(whole) - 400, len(whole), 7), len(whole) - 1]
    for damaged in (
        [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in positions]
        + [whole[:size] for size in (0, 1, 15, 16, 1000, len(whole) - 1)]
        + [whole + b"x"]
    ):
        part.write_bytes(damaged)
        with pytest.raises(Unreadable, match=r"a\.part: is damaged .*remove it and start again"):
            read_all(part)
        with pytest.raises(OSError, match=r"a\.part: .*is the disk full"):
            check_part(part, tally)
    part.unlink()
    with pytest.raises(Unreadable, match=r"a\.part: is damaged .*No such file"):
        read_part(part)


def test_a_part_that_holds_another_mask_than_was_counted_is_an_error(tmp_path: Path):
    shard = Window(0, 0, 600, 600)
    tally = write_part(tmp_path / "a.part", shard, plan_of_parts(shard, 1024), layers_of(shard, 1))
    tally.pixels[2] += 1
    with pytest.raises(OSError, match="reads back differently"):
        check_part(tmp_path / "a.part", tally)


def test_a_writer_that_stops_early_leaves_nothing_that_reads(tmp_path: Path):
    shard = Window(0, 0, 1024, 1024)
    with PartWriter(tmp_path / "a.part", shard, plan_of_parts(shard, 1024)) as writer:
        writer.write(shard._replace(height=512), layers_of(shard, 1)[:, :512])
    with pytest.raises(Unreadable, match="is damaged"):
        read_part(tmp_path / "a.part")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_os_error():
    shard = Window(0, 0, 1024, 1024)
    with pytest.raises(OSError, match="No space left"):
        write_part(Path("/dev/full"), shard, plan_of_parts(shard, 1024), layers_of(shard, 1))


def test_a_file_without_blocks_is_one(tmp_path: Path):
    with BlockFile(tmp_path / "none", 2, 1) as file:
        file.write(0, [])
        file.finish({"shard": [0, 0, 1, 1], "tally": {"pixels": [], "area_m2": None, "confidence": None}, "failed": []})
    assert [len(layer) for level in read_part(tmp_path / "none").blocks for layer in level] == [0, 0]
