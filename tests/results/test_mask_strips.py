"""Strips are the raster, cut; sieved ones are what is left when nothing more joins, and leave no file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipeline.results.mask_strips import raster_strips, sieved
from tests.geometry.test_polygons import pixels
from tests.geometry.test_sieve import sieve_until_done
from tests.results.scenes import stripes
from tests.toys import write_scene


@pytest.mark.parametrize("rows", [1, 100, 512, 700, 2000])
def test_strips_are_the_raster(tmp_path: Path, rows: int):
    mask_HW = stripes(1100, 60)
    with rasterio.open(write_scene(tmp_path / "mask.tif", mask_HW[None])) as dataset:
        strips = raster_strips(dataset, rows)
        found = list(strips())
        assert np.array_equal(np.concatenate(found), mask_HW) and max(map(len, found)) <= rows
        assert [len(strip_HW) for strip_HW in strips()] == [len(strip_HW) for strip_HW in found], "every time the same"


@pytest.mark.parametrize("rows", [3, 50, 200])
def test_sieved_strips_are_the_raster_without_small_regions(tmp_path: Path, rows: int):
    mask_HW = np.random.default_rng(0).integers(0, 3, (150, 40)).astype(np.uint8)
    cut = list(np.split(mask_HW, range(rows, 150, rows)))
    with sieved(lambda: iter(cut), 40, pixels, 25, tmp_path / "scratch.tmp") as strips:
        assert np.array_equal(np.concatenate(list(strips())), sieve_until_done(mask_HW, 25, 150))
        assert [strip_HW.shape for strip_HW in strips()] == [strip_HW.shape for strip_HW in cut]
    assert not list(tmp_path.iterdir())


def test_an_error_leaves_no_file(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), sieved(lambda: iter([stripes(9, 9)]), 9, pixels, 4, tmp_path / "scratch.tmp"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
