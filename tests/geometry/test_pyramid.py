"""Levels of a raster: cut anywhere into strips they are the same blocks, and their pixels are those of GDAL."""

from __future__ import annotations

import itertools
import tracemalloc
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil

from pipeline.geometry.pyramid import NODATA, Block, Pyramid, average, level_sizes, levels_of_shards, mean, mode, nodata_of
from pipeline.geometry.windows import BLOCK, Window, shards
from tests.toys import write_scene


def plain_mode(cell: list[int]) -> int:
    """The class that first has the highest count, of those that are valid."""
    seen: Counter[int] = Counter()
    best, most = NODATA, 0
    for value in cell:
        seen[value] += 1
        if value != NODATA and seen[value] > most:
            best, most = value, seen[value]
    return best


def plain_average(cell: list[int]) -> int:
    valid = [value for value in cell if value != NODATA]
    return int(sum(valid) / len(valid) + 0.5) if valid else NODATA


def halved(level_HW: np.ndarray, reduce) -> np.ndarray:
    """A level's overview, cell by cell, the last ones from what is there; `reduce` takes the cell's values row by row."""
    height, width = level_HW.shape
    cells = [[level_HW[row : row + 2, col : col + 2].ravel().tolist() for col in range(0, width, 2)] for row in range(0, height, 2)]
    return np.array([[reduce(cell) for cell in row] for row in cells], np.uint8)


def mosaic(blocks: list[Block], level: int) -> np.ndarray:
    """The blocks of one level, put together."""
    mine = [block for block in blocks if block.level == level]
    rows, cols = max(block.row for block in mine) + 1, max(block.col for block in mine) + 1
    assert [(block.row, block.col) for block in mine] == list(itertools.product(range(rows), range(cols))), "row-major, each once"
    return np.block([[mine[row * cols + col].pixels_HW for col in range(cols)] for row in range(rows)])


@pytest.mark.parametrize(("reduce", "plain", "name"), [(mode, plain_mode, "MODE"), (average, plain_average, "AVERAGE")])
def test_every_cell_of_four_pixels_is_reduced_as_gdal_does(tmp_path: Path, reduce, plain, name: str):
    values = [0, 1, 2, 50, 100, NODATA]
    cells = np.resize(np.array(list(itertools.product(values, repeat=4)), np.uint8), (512 * 512, 2, 2))
    rows_HW = cells.reshape(512, 512, 2, 2).swapaxes(1, 2).reshape(1024, 1024)
    source = write_scene(tmp_path / "source.tif", rows_HW[None], nodata=NODATA)
    rasterio.shutil.copy(source, tmp_path / "cog.tif", driver="COG", blocksize=512, overview_resampling=name)
    with rasterio.open(tmp_path / "cog.tif", overview_level=0) as dataset:
        np.testing.assert_array_equal(reduce(rows_HW), dataset.read(1))
    np.testing.assert_array_equal(reduce(rows_HW), halved(rows_HW, plain))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_values_are_averaged_to_the_bit_as_gdal_does(tmp_path: Path, share: float):
    random = np.random.default_rng(3)
    rows_HW = (15 + 10 * random.normal(size=(1024, 1024))).astype(np.float32)
    rows_HW[random.random(rows_HW.shape) < share] = np.nan
    source = write_scene(tmp_path / "source.tif", rows_HW[None], nodata=np.nan)
    rasterio.shutil.copy(source, tmp_path / "cog.tif", driver="COG", blocksize=512, overview_resampling="AVERAGE")
    with rasterio.open(tmp_path / "cog.tif", overview_level=0) as dataset:
        np.testing.assert_array_equal(mean(rows_HW), dataset.read(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of cells of nodata only
        cells = rows_HW.astype(float).reshape(512, 2, 512, 2)
        np.testing.assert_array_equal(mean(rows_HW), np.nanmean(cells, axis=(1, 3)).astype(np.float32))


def test_a_cell_of_nodata_has_always_the_same_bits():
    assert set(mean(np.full((4, 4), -np.nan, np.float32)).view(np.uint32).ravel()) == {np.array(np.nan, np.float32).view(np.uint32)[()]}


@pytest.mark.parametrize(("height", "width"), [(1, 1), (512, 512), (513, 1), (1024, 2048), (1, 1025), (1537, 2049), (2100, 700)])
@pytest.mark.parametrize("strip", [BLOCK, 3 * BLOCK, 8 * BLOCK])
@pytest.mark.parametrize(("reduce", "dtype"), [(mode, np.uint8), (average, np.uint8), (mean, np.float32)])
def test_strips_of_any_height_give_the_same_blocks(height: int, width: int, strip: int, reduce, dtype):
    nodata = nodata_of(dtype)
    layer_HW = np.random.default_rng(height).choice([0, 1, 2, 90, nodata], (height, width)).astype(dtype)
    sizes = level_sizes(height, width)
    pyramid = Pyramid(len(sizes), reduce)
    blocks = [block for top in range(0, height, strip) for block in pyramid.add(layer_HW[top : top + strip])]
    blocks += pyramid.finish()
    for level, size in enumerate(sizes):
        found_HW = mosaic(blocks, level)
        assert layer_HW.shape == size and found_HW.shape == (size.block_rows * BLOCK, size.block_cols * BLOCK)
        np.testing.assert_array_equal(found_HW[: size.height, : size.width], layer_HW)
        for beyond in (found_HW[size.height :], found_HW[:, size.width :]):
            np.testing.assert_array_equal(beyond, np.full_like(beyond, nodata))
        layer_HW = reduce(np.pad(layer_HW, [(0, side % 2) for side in size], constant_values=nodata))


@pytest.mark.parametrize(("reduce", "plain"), [(mode, plain_mode), (average, plain_average)])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 2), (5, 7), (33, 20)])
def test_the_last_cell_of_an_odd_size_covers_what_is_there(reduce, plain, height: int, width: int):
    layer_HW = np.random.default_rng(width).choice([0, 1, 2, 90, NODATA], (height, width)).astype(np.uint8)
    pyramid = Pyramid(3, reduce)
    blocks = [*pyramid.add(layer_HW), *pyramid.finish()]
    for level in (1, 2):
        layer_HW = halved(layer_HW, plain)
        np.testing.assert_array_equal(mosaic(blocks, level)[: layer_HW.shape[0], : layer_HW.shape[1]], layer_HW)


def test_memory_is_a_few_strips_however_many_rows_there_are():
    strip_HW, pyramid = np.zeros((BLOCK, 4096), np.uint8), Pyramid(5, mode)
    tracemalloc.start()
    for _ in range(40):
        for _ in pyramid.add(strip_HW):
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * strip_HW.nbytes


@pytest.mark.parametrize("shard", [512, 1024, 4096])
@pytest.mark.parametrize("row", [0, 512, 1024, 3584, 4096])
@pytest.mark.parametrize("size", [(300, 300), (3000, 9000), (9000, 1200)])
def test_shards_hold_the_levels_whose_blocks_have_one_writer(shard: int, row: int, size: tuple[int, int]):
    region = Window(row, 1024, *size)
    levels = len(level_sizes(*size))
    count = levels_of_shards(region, shard)

    def aligned(level: int) -> bool:
        inside = [window.relative_to(region) for window in shards(region, shard)]
        return all(window.row % (BLOCK << level) == 0 and window.col % (BLOCK << level) == 0 for window in inside)

    assert 1 <= count <= levels and all(aligned(level) for level in range(count))
    assert count == levels or not aligned(count), "as many as there can be"
