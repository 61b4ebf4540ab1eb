"""Law 1: every pixel is owned by exactly one core, whatever the sizes of scene, tile, halo, shard, stride and region."""

from __future__ import annotations

import doctest
import random
from itertools import chain
from typing import NamedTuple

import numpy as np
import pytest

from pipeline.geometry import windows
from pipeline.geometry.windows import BLOCK, LONGER, Span, Tile, Window, ceil_to, shards, snap_outward, spans, tile_rows


class Cut(NamedTuple):
    """One way to cut a scene; region None is all of it."""

    height: int
    width: int
    tile: int
    halo: int
    shard: int = 512
    stride: int = 1
    region: Window | None = None
    wider: int = 0  # a tile's width beyond its height

    @property
    def width_of_tile(self) -> int:
        return self.tile + self.wider


AWKWARD = [
    Cut(1, 1, tile=64, halo=0),
    Cut(1, 1, tile=64, halo=24, stride=8),
    Cut(1, 3000, tile=256, halo=16, stride=16),
    Cut(3000, 1, tile=256, halo=16, stride=16),
    Cut(255, 256, tile=256, halo=0),
    Cut(256, 257, tile=256, halo=32, stride=32),
    Cut(257, 255, tile=256, halo=96, stride=32),
    Cut(511, 513, tile=512, halo=224, stride=32),
    Cut(512, 512, tile=512, halo=0),
    Cut(513, 1025, tile=512, halo=128, stride=32, shard=1024),
    Cut(700, 900, tile=64, halo=31),  # cores of 2 px
    Cut(1000, 1300, tile=4096, halo=96, stride=32, shard=1024),  # a tile larger than scene and shard
    Cut(1000, 1300, tile=160, halo=48, stride=16, shard=1024, wider=480),
    Cut(1537, 1100, tile=160, halo=48, stride=16, region=Window(512, 0, 1024, 512)),
    Cut(1537, 1100, tile=608, halo=48, stride=16, shard=1024, region=Window(512, 512, 1025, 588)),
    Cut(1537, 1100, tile=2048, halo=48, stride=16, shard=1024, region=Window(1536, 1024, 1, 76)),
]


def random_cut(chance: random.Random) -> Cut:
    stride = chance.choice([1, 2, 8, 16, 32, 64])
    halo = chance.randrange(0, 5) * stride
    tile = 2 * halo + stride * chance.randrange(1, 9 if stride < 16 else 5)
    height, width = (chance.choice([1, 2, tile - 1, tile, tile + 1, chance.randrange(1, 400), chance.randrange(500, 1700)]) for _ in "rc")
    height, width = max(1, height), max(1, width)
    if max(height, width) // max(1, tile - 2 * halo) > 80:
        tile += 64  # keep the count of tiles small
    region = None
    if chance.random() < 0.5:
        row, col = chance.randrange(height), chance.randrange(width)
        asked = Window(row, col, chance.randrange(1, height - row + 1), chance.randrange(1, width - col + 1))
        region = snap_outward(asked, height, width)
    return Cut(height, width, tile, halo, chance.choice([512, 1024, 2048]), stride, region, chance.choice([0, stride, 10 * stride]))


def check_law_1(cut: Cut, trimmed: bool) -> int:
    """Assert all that law 1 says of one cut; returns its number of tiles."""
    region = cut.region or Window(0, 0, cut.height, cut.width)
    padded_height, padded_width = ceil_to(cut.height, cut.stride), ceil_to(cut.width, cut.stride)
    owners_HW = np.zeros((cut.height, cut.width), np.uint8)
    shapes, tiles = set(), 0
    for shard in shards(region, cut.shard):
        for row in tile_rows(shard, padded_height, padded_width, (cut.tile, cut.width_of_tile), cut.halo, cut.stride if trimmed else None):
            for read, core in row:
                tiles += 1
                shapes.add((read.height, read.width))
                owners_HW[core.slices()] += 1
                assert core.pixels > 0
                assert shard.intersection(core) == core, "a core never leaves its shard"
                assert read.row % cut.stride == 0 and read.col % cut.stride == 0, "origins lie on the network's stride"
                axes = ((read.rows, core.rows, padded_height, False), (read.cols, core.cols, padded_width, True))
                for read_span, core_span, length, wide in axes:
                    assert 0 <= read_span.start <= core_span.start < core_span.stop <= read_span.stop <= length
                    assert read_span.start == 0 or core_span.start - read_span.start >= cut.halo
                    assert read_span.stop == length or read_span.stop - core_span.stop >= cut.halo
                    if trimmed:
                        before, after = core_span.start - read_span.start, read_span.stop - core_span.stop
                        more = max(0, before - cut.halo) + max(0, after - cut.halo)
                        allowed = (read_span.length - more) / LONGER if wide else 0
                        assert more < cut.stride + allowed and read_span.length % cut.stride == 0
    expected_HW = np.zeros_like(owners_HW)
    expected_HW[region.slices()] = 1
    assert np.array_equal(owners_HW, expected_HW), "each pixel of the region has one owner, the others none"
    largest = min(cut.tile, padded_height), min(cut.width_of_tile, padded_width)
    assert all(height <= largest[0] and width <= largest[1] for height, width in shapes)
    assert trimmed or shapes == {largest}, "all reads of a scene have one shape"
    return tiles


@pytest.mark.parametrize("trimmed", [False, True])
@pytest.mark.parametrize("cut", AWKWARD, ids=str)
def test_law_1_on_awkward_sizes(cut: Cut, trimmed: bool):
    check_law_1(cut, trimmed)


def test_trimmed_tiles_have_widths_that_are_fast():
    """No scene of whole blocks has a tile over 523 or 267 columns of the network's output."""
    for side in range(2048, 20_480, 512):
        for shard in shards(Window(0, 0, side, side), 4096):
            for tile in chain(*tile_rows(shard, side, side, (2224, 4352), halo=88, trim=8)):
                width = tile.read.width
                assert width % (128 if width >= 4096 else 64 if width >= 2048 else 8) == 0, side


def test_law_1_on_three_thousand_random_cuts():
    chance = random.Random(20)
    assert sum(check_law_1(random_cut(chance), trimmed=chance.random() < 0.5) for _ in range(3000)) > 30_000


def test_a_regions_tiles_near_its_middle_are_the_scenes():
    """A region keeps the scene's own grid: a shard inside it is cut as it is without the region."""
    whole = set(shards(Window(0, 0, 5000, 5000), 1024))
    inner = [shard for shard in shards(Window(512, 1536, 3072, 2560), 1024) if shard.height == shard.width == 1024]
    assert inner and set(inner) <= whole


def test_shards_lie_on_the_scenes_grid_whatever_the_region():
    chance = random.Random(3)
    for _ in range(300):
        region = Window(chance.randrange(4000), chance.randrange(4000), chance.randrange(1, 4000), chance.randrange(1, 4000))
        size = chance.choice([512, 1024, 2048])
        cut = shards(region, size)
        assert sum(shard.pixels for shard in cut) == region.pixels
        assert cut == sorted(cut), "row by row"
        for shard in cut:
            assert shard.row // size == (shard.rows.stop - 1) // size and shard.col // size == (shard.cols.stop - 1) // size
            assert shard.intersection(region) == shard
            for start, edge in ((shard.row, region.row), (shard.col, region.col)):
                assert start == edge or start % size == 0


def test_reads_are_as_long_as_the_axis_where_the_tile_is_longer():
    assert list(spans(Span(0, 100), 104, tile=512, halo=96)) == [(Span(0, 104), Span(0, 100))]


@pytest.mark.parametrize(("tile", "halo"), [(64, 32), (64, 33), (64, -1), (0, 0)])
def test_spans_refuse_a_halo_that_leaves_no_core(tile: int, halo: int):
    with pytest.raises(ValueError, match=f"halo={halo} px, tile={tile} px"):
        list(spans(Span(0, 10), 10, tile, halo))


def test_snapping_is_outward_and_least():
    chance = random.Random(4)
    for _ in range(500):
        height, width = chance.randrange(1, 3000), chance.randrange(1, 3000)
        row, col = chance.randrange(height), chance.randrange(width)
        window = Window(row, col, chance.randrange(1, height - row + 1), chance.randrange(1, width - col + 1))
        snapped = snap_outward(window, height, width)
        assert snapped.intersection(window) == window
        assert snapped.intersection(Window(0, 0, height, width)) == snapped
        assert snapped.row % BLOCK == 0 and snapped.col % BLOCK == 0
        for span, inner, length in ((snapped.rows, window.rows, height), (snapped.cols, window.cols, width)):
            assert span.stop % BLOCK == 0 or span.stop == length
            assert inner.start - span.start < BLOCK and span.stop - inner.stop < BLOCK
        assert snap_outward(snapped, height, width) == snapped


def test_windows_know_their_pixels():
    window = Window(10, 20, 3, 4)
    assert (window.rows, window.cols, window.pixels) == (Span(10, 13), Span(20, 24), 12)
    assert Window.of(window.rows, window.cols) == window
    assert window.relative_to(Window(8, 15, 100, 100)) == Window(2, 5, 3, 4)
    assert window.intersection(Window(12, 0, 9, 21)) == Window(12, 20, 1, 1)
    assert window.intersection(Window(13, 20, 9, 9)) is None, "neighbours share no pixel"
    assert np.arange(600).reshape(20, 30)[window.slices()].shape == (3, 4)
    assert Tile(window, window).core is window


def test_a_slice_never_wraps():
    with pytest.raises(ValueError, match="outside its array"):
        Window(-1, 0, 4, 4).slices()


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(windows).failed == 0
    assert doctest.testmod(windows).attempted >= 2
