"""Blocks come back as they were written, in their order, from where the index says; damage is found when they are read."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipeline.errors import Unreadable
from pipeline.geometry.pyramid import Block
from pipeline.geometry.windows import BLOCK
from pipeline.inference.blocks import BlockFile, compress, decompress, read_blocks, read_index
from tests.toys import write_scene


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (BLOCK, BLOCK)).astype(np.uint8)


def test_blocks_are_found_by_level_and_layer(tmp_path: Path):
    with BlockFile(tmp_path / "file", 2, 3) as file:
        file.write(2, [Block(0, 0, 0, noise(1)), Block(1, 0, 0, noise(2)), Block(0, 0, 1, noise(3))])
        file.write(0, [Block(0, 0, 0, noise(4))])
        file.write(1, [])
        file.finish({"name": "ü"})
    content, index = read_index(tmp_path / "file")
    assert content == {"name": "ü"}
    assert [[len(layer) for layer in level] for level in index] == [[1, 0, 2], [0, 0, 1]]
    for entries, seeds in ((index[0][2], [1, 3]), (index[1][2], [2]), (index[0][0], [4]), (index[0][1], [])):
        found = [decompress(data) for data in read_blocks(tmp_path / "file", entries)]
        assert len(found) == len(seeds)
        for block_HW, seed in zip(found, seeds, strict=True):
            np.testing.assert_array_equal(block_HW, noise(seed))


def test_a_block_that_changed_is_not_handed_out(tmp_path: Path):
    with BlockFile(tmp_path / "file", 1, 1) as file:
        file.write(0, [Block(0, 0, col, noise(col)) for col in range(3)])
        file.finish({})
    entries = read_index(tmp_path / "file").blocks[0][0]
    whole, at = (tmp_path / "file").read_bytes(), int(entries[1, 0]) + 100
    (tmp_path / "file").write_bytes(whole[:at] + bytes([whole[at] ^ 128]) + whole[at + 1 :])
    read = []
    with pytest.raises(Unreadable, match=r"file: is damaged \(the block at byte"):
        read.extend(read_blocks(tmp_path / "file", entries))
    assert len(list(read_blocks(tmp_path / "file", entries[[0, 2]]))) == 2, "the others are whole"


@pytest.mark.parametrize("value", [0, 255])
def test_a_block_of_one_value_takes_next_to_nothing(value: int):
    block_HW = np.full((BLOCK, BLOCK), value, np.uint8)
    assert len(compress(block_HW)) < 300
    np.testing.assert_array_equal(decompress(compress(block_HW)), block_HW)


@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_floats_come_back_bit_for_bit(share: float):
    random = np.random.default_rng(1)
    block_HW = (random.normal(size=(BLOCK, BLOCK)) * 10.0 ** random.integers(-40, 38, (BLOCK, BLOCK))).astype(np.float32)
    block_HW[random.random(block_HW.shape) < share] = np.nan
    found_HW = decompress(compress(block_HW), np.float32)
    assert found_HW.dtype == np.float32 and found_HW.tobytes() == block_HW.tobytes()
    assert decompress(compress(block_HW.T), np.float32).tobytes() == block_HW.T.tobytes()
    assert share < 1 or len(compress(block_HW)) < 12_000, "nodata takes next to nothing"


def test_floats_are_stored_as_gdals_predictor_3_has_them(tmp_path: Path):
    block_HW = np.random.default_rng(2).normal(size=(BLOCK, BLOCK)).astype(np.float32)
    how = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "DEFLATE", "predictor": 3}
    path = write_scene(tmp_path / "gdal.tif", block_HW[None], **how)
    with rasterio.open(path) as dataset:
        offset, size = (int(dataset.get_tag_item(f"BLOCK_{what}_0_0", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE"))
    assert decompress(path.read_bytes()[offset : offset + size], np.float32).tobytes() == block_HW.tobytes()


def test_any_layout_in_memory_is_compressed_by_rows():
    block_HW = noise(1).T
    assert compress(block_HW) == compress(block_HW.copy())
    np.testing.assert_array_equal(np.frombuffer(zlib.decompress(compress(block_HW)), np.uint8), block_HW.ravel())
