"""What parts count of values is what numpy counts of the whole raster, whatever the parts and their order."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rasterio.crs import CRS

from pipeline.geometry.areas import ground_areas
from pipeline.geometry.windows import Window
from pipeline.imagery.raster import Grid
from pipeline.inference.tally import ValueTally, add_up_values, read_tally
from tests.inference.test_part import plan_of_parts, values_of, write_part
from tests.toys import UTM


def tallies_of(folder: Path, values_LHW: np.ndarray, shard: int) -> list[ValueTally]:
    region = Window(0, 0, *values_LHW.shape[1:])
    plan = plan_of_parts(region, shard, ("value",))
    return [write_part(folder / "part", window, plan, values_LHW[:, *window.slices()]) for window in plan.shards()]


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_totals_are_those_of_numpy(tmp_path: Path, offset: float):
    """The spread of values far from zero is not lost in their squares."""
    values_LHW = values_of(Window(0, 0, 1300, 900)) + np.float32(offset)
    valid = values_LHW[~np.isnan(values_LHW)].astype(float)
    for shard in (512, 1024, 2048):
        total = add_up_values(tallies_of(tmp_path, values_LHW, shard))
        assert total.pixels == [valid.size]
        assert (total.minimum, total.maximum) == (valid.min(), valid.max())
        assert total.mean == pytest.approx(valid.mean(), rel=1e-14)
        assert total.std == pytest.approx(valid.std(), rel=1e-11)
        assert total.bits == int(valid.astype(np.float32).view(np.uint32).sum(dtype=object))


def test_the_order_of_parts_changes_no_bit(tmp_path: Path):
    tallies = tallies_of(tmp_path, values_of(Window(0, 0, 2100, 1700)), 512)
    total = add_up_values(tallies)
    for seed in range(20):
        random.Random(seed).shuffle(tallies)
        assert add_up_values(tallies) == total


def test_the_area_is_that_of_the_valid_pixels(tmp_path: Path):
    window = Window(0, 0, 700, 600)
    values_LHW = values_of(window)
    grid = Grid(700, 600, tuple(UTM["transform"])[:6], CRS.from_epsg(32612).to_wkt())
    plan = plan_of_parts(window, 1024, ("value",), grid)
    plan = replace(plan, scene=replace(plan.scene, resolution_m=30.0))
    areas = ground_areas(window, grid.affine, grid.rasterio_crs)
    pixel_m2_HW = areas.area_m2[areas.row_cells[:, None], areas.col_cells]
    tally = write_part(tmp_path / "part", window, plan, values_LHW)
    assert tally.area_m2 == pytest.approx([pixel_m2_HW[~np.isnan(values_LHW[0])].sum()], rel=1e-6)


def test_nothing_is_counted_where_nothing_is_valid(tmp_path: Path):
    nothing = np.full((1, 600, 600), np.nan, np.float32)
    (tally,) = tallies_of(tmp_path, nothing, 1024)
    assert tally == ValueTally([0], None, None, 0.0, None, None, 0) and tally.std is None
    some = tallies_of(tmp_path, values_of(Window(0, 0, 512, 512)), 512)
    assert add_up_values([tally, *some]) == add_up_values([*some, tally])
    assert add_up_values([tally, *some]).mean == some[0].mean
    assert add_up_values([]) == ValueTally([0], None, None, 0.0, None, None, 0)


def test_a_tally_is_known_by_what_it_holds():
    with pytest.raises(TypeError):
        read_tally({"bits": 3})
    with pytest.raises(TypeError):
        read_tally({"pixels": [1]})
