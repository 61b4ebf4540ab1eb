"""Strips give back every core that was pasted, in order, in bounded memory, and 255 where there was none."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest

from pipeline.geometry.stitch import Strips
from pipeline.geometry.windows import BLOCK, Window, ceil_to, shards, tile_rows

SMALL = 64  # a block row in the random sweep, where 512 would be slow


def stitch(
    shard: Window, layers_LHW: np.ndarray, tile: int, halo: int, skip: set[int] = frozenset()
) -> tuple[np.ndarray, list[Window], int]:
    """Paste the scene's own pixels tile by tile, as an identity model does; `skip` leaves tiles out.

    Returns the shard as it was put together, the strips' windows, and how much taller the buffer ever was than a core.
    """
    count, height, width = layers_LHW.shape
    strips, out_LHW = Strips(shard, count), np.zeros((count, shard.height, shard.width), np.uint8)
    windows, excess, number = [], 0, 0
    for row in tile_rows(shard, height, width, (tile, tile), halo):
        for _, core in row:
            if number not in skip:
                strips.paste_core(layers_LHW[:, *core.slices()], core)
            number += 1
        excess = max(excess, strips.buffer_LHW.shape[1] - row[0].core.height)
        for window, strip_LHW in strips.finished(row[0].core.rows.stop):
            assert strip_LHW.shape == (count, window.height, window.width) and strip_LHW.dtype == np.uint8
            out_LHW[:, *window.relative_to(shard).slices()] = strip_LHW
            windows.append(window)
    return out_LHW, windows, excess


def check_strips(windows: list[Window], shard: Window, block: int) -> None:
    """Strips follow each other over the whole shard, in multiples of the block, save the last."""
    assert windows[0].row == shard.row and windows[-1].rows.stop == shard.rows.stop
    for window, after in pairwise(windows):
        assert window.rows.stop == after.row and window.height % block == 0
    assert {(window.col, window.width) for window in windows} == {(shard.col, shard.width)}


@pytest.mark.parametrize(("tile", "halo"), [(512, 0), (608, 48), (160, 16), (1100, 200), (4096, 64), (96, 40)])
@pytest.mark.parametrize("shape", [(1300, 700), (512, 512), (511, 3), (1, 1), (2048, 520)])
def test_identity_reproduces_the_raster(shape: tuple[int, int], tile: int, halo: int):
    scene_LHW = np.random.default_rng(5).integers(0, 250, (2, *shape), np.uint8)
    whole = np.full_like(scene_LHW, 254)
    for shard in shards(Window(0, 0, *shape), 1024):
        out_LHW, windows, excess = stitch(shard, scene_LHW, tile, halo)
        whole[:, *shard.slices()] = out_LHW
        check_strips(windows, shard, BLOCK)
        assert excess < 2 * BLOCK
    assert np.array_equal(whole, scene_LHW)


def test_identity_on_random_cuts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.geometry.stitch.BLOCK", SMALL)
    chance, noise = random.Random(6), np.random.default_rng(6)
    for _ in range(400):
        height, width = chance.randrange(1, 400), chance.randrange(1, 60)
        halo = chance.randrange(0, 20)
        tile = 2 * halo + chance.randrange(max(4, height // 30), 150)
        scene_LHW = noise.integers(0, 250, (1, height, width), np.uint8)
        top = chance.randrange(0, height) // SMALL * SMALL
        shard = Window(top, 0, chance.randrange(1, height - top + 1), width)
        out_LHW, windows, excess = stitch(shard, scene_LHW, tile, halo)
        assert np.array_equal(out_LHW, scene_LHW[:, *shard.slices()])
        check_strips(windows, shard, SMALL)
        assert excess < 2 * SMALL, "what is kept is less than a block, and the buffer grows by whole blocks"


def test_pixels_without_a_core_are_nodata():
    scene_LHW = np.random.default_rng(7).integers(0, 250, (1, 900, 900), np.uint8)
    shard = Window(0, 0, 900, 900)
    tiles = [core for row in tile_rows(shard, 900, 900, (256, 256), 16) for _, core in row]
    out_LHW, windows, _ = stitch(shard, scene_LHW, 256, 16, skip={0, 7, len(tiles) - 1})
    for number, core in enumerate(tiles):
        expected = 255 if number in (0, 7, len(tiles) - 1) else scene_LHW[:, *core.slices()]
        assert np.array_equal(out_LHW[:, *core.slices()], np.broadcast_to(expected, (1, core.height, core.width)))
    check_strips(windows, shard, BLOCK)


def test_a_shard_without_any_core_is_nodata_throughout():
    shard = Window(512, 0, 700, 40)
    out_LHW, windows, _ = stitch(shard, np.zeros((1, 1212, 40), np.uint8), 128, 0, skip=set(range(1000)))
    assert (out_LHW == 255).all()
    check_strips(windows, shard, BLOCK)


def test_floats_keep_their_bits_and_are_nan_where_no_core_is():
    core_LHW = np.random.default_rng(8).normal(size=(1, 512, 30)).astype(np.float32)
    strips = Strips(Window(0, 0, 600, 40), 1, np.float32)
    strips.paste_core(core_LHW, Window(0, 5, 512, 30))
    (_, first_LHW), (_, rest_LHW) = [*strips.finished(512), *strips.finished(600)]
    assert first_LHW.dtype == rest_LHW.dtype == np.float32
    assert first_LHW[:, :, 5:35].tobytes() == core_LHW.tobytes()
    assert np.isnan(first_LHW[:, :, :5]).all() and np.isnan(first_LHW[:, :, 35:]).all() and np.isnan(rest_LHW).all()


def test_a_finished_strip_is_not_written_to_again():
    """A writer thread holds it while the next cores are pasted."""
    strips = Strips(Window(0, 0, 1024, 8), 1)
    strips.paste_core(np.full((1, 600, 8), 1, np.uint8), Window(0, 0, 600, 8))
    ((window, strip_LHW),) = strips.finished(600)
    assert strips.buffer_LHW.base is None, "and is freed when the writer is done with it"
    strips.paste_core(np.full((1, 424, 8), 2, np.uint8), Window(600, 0, 424, 8))
    assert window == Window(0, 0, 512, 8) and (strip_LHW == 1).all()
    ((_, rest_LHW),) = strips.finished(1024)
    assert (rest_LHW[:, :88] == 1).all() and (rest_LHW[:, 88:] == 2).all()


def test_nothing_comes_out_before_a_block_row_is_complete():
    strips = Strips(Window(0, 0, 2000, 8), 1)
    strips.paste_core(np.zeros((1, 511, 8), np.uint8), Window(0, 0, 511, 8))
    assert list(strips.finished(511)) == []
    strips.paste_core(np.zeros((1, 1, 8), np.uint8), Window(511, 0, 1, 8))
    assert [window for window, _ in strips.finished(512)] == [Window(0, 0, 512, 8)]
    assert strips.buffer_LHW.shape[1] == 0 and ceil_to(512, BLOCK) == 512


def test_a_core_outside_its_shard_raises():
    with pytest.raises(ValueError, match="outside its array"):
        Strips(Window(512, 512, 512, 512), 1).paste_core(np.zeros((1, 4, 4), np.uint8), Window(510, 512, 4, 4))
