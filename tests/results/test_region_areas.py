"""Each place on the ground counts once, whatever overlaps it, and districts add up to their region."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from rasterio.features import rasterize

from pipeline.models.bundle import Bundle
from pipeline.results.region_areas import Counts, Districts, count_region, region_areas_table
from tests.results.scenes import class_bundle
from tests.results.zones import EAST, WEST, corner, polygon, write_mask

NONE = Districts([], geopandas.GeoSeries([]))
SHAPE = (600, 500)


def test_a_lone_mask_is_counted_as_it_is(tmp_path: Path):
    mask = write_mask(tmp_path / "a.tif", EAST, corner(EAST), SHAPE)
    counts = count_region([mask], NONE, 3)
    with rasterio.open(mask) as dataset:
        pixels = np.bincount(dataset.read(1).ravel(), minlength=3)
    assert (counts.pixels_DK == [pixels]).all() and pixels.min() > 10_000
    assert counts.area_m2_DK.sum() == pytest.approx(pixels.sum() * 100, rel=2e-3)  # a zone's edge is 1.0004 of its middle
    assert counts.seen_m2_D.sum() == pytest.approx(counts.area_m2_DK.sum(), rel=1e-9)


def test_the_same_ground_in_two_zones_counts_once(tmp_path: Path):
    """The law: two scenes of different zones over one place give a single scene's totals."""
    mine = write_mask(tmp_path / "a.tif", EAST, corner(EAST, -3000, 3000), SHAPE)
    other = write_mask(tmp_path / "b.tif", WEST, corner(WEST, -2000, 2000), (300, 250))  # all within the first
    alone, both = count_region([mine], NONE, 3), count_region([mine, other], NONE, 3)
    assert (both.pixels_DK == alone.pixels_DK).all() and np.allclose(both.area_m2_DK, alone.area_m2_DK, rtol=1e-12)
    turned = count_region([other, mine], NONE, 3)
    assert np.allclose(turned.area_m2_DK, alone.area_m2_DK, rtol=2e-3), "pixels on the seam between two grids"
    assert turned.seen_m2_D == pytest.approx(alone.seen_m2_D, rel=1e-3)


def test_scenes_that_overlap_in_part_add_up_to_their_union(tmp_path: Path):
    first = write_mask(tmp_path / "a.tif", EAST, corner(EAST, -3000, 3000), SHAPE)
    second = write_mask(tmp_path / "b.tif", WEST, corner(WEST, 0, 1000), SHAPE)
    counts = count_region([first, second], NONE, 3)
    with rasterio.open(first) as one, rasterio.open(second) as two:
        outlines = [polygon(str(raster.crs), raster.transform, raster.shape).segmentize(100).to_crs("EPSG:6933") for raster in (one, two)]
    union_m2 = shapely.union_all([outline[0] for outline in outlines]).area
    assert counts.area_m2_DK.sum() == pytest.approx(union_m2, rel=1e-3)
    assert counts.area_m2_DK.sum() < 0.95 * sum(outline[0].area for outline in outlines)


def test_what_the_first_does_not_show_the_second_does(tmp_path: Path):
    hidden = np.zeros(SHAPE, bool)
    hidden[:, 200:] = True
    whole = write_mask(tmp_path / "whole.tif", EAST, corner(EAST), SHAPE)
    left = write_mask(tmp_path / "left.tif", EAST, corner(EAST), SHAPE, hidden)
    assert (count_region([left, whole], NONE, 3).pixels_DK == count_region([whole], NONE, 3).pixels_DK).all()
    cloudy = count_region([left], NONE, 3)
    assert cloudy.seen_m2_D.sum() == pytest.approx(cloudy.area_m2_DK.sum() * 500 / 200, rel=1e-3)


def test_districts_and_the_rest_add_up_to_the_region(tmp_path: Path):
    mask = write_mask(tmp_path / "a.tif", EAST, corner(EAST), SHAPE)
    with rasterio.open(mask) as dataset:
        mask_HW, transform = dataset.read(1), dataset.transform
    x, y = corner(EAST)
    boxes = [shapely.box(x + 100, y - 2000, x + 2000, y - 50), shapely.box(x + 2000, y - 9000, x + 3333, y - 50)]
    districts = Districts(["a", "b"], geopandas.GeoSeries(boxes, crs=EAST).to_crs("EPSG:3857"))
    counts = count_region([mask], districts, 3)
    for number, box in enumerate(boxes):
        inside = rasterize([box], out_shape=SHAPE, transform=transform) == 1
        assert (counts.pixels_DK[number] == np.bincount(mask_HW[inside], minlength=3)).all()
    table = region_areas_table(counts, districts, class_bundle(tmp_path / "model", ("one", "two", "three")), "id").to_pandas()
    region = table[table.district_id.isna()].set_index("class_id")
    parts = table[table.district_id.notna()].groupby("class_id")
    assert sorted(table.district_id.dropna().unique()) == ["", "a", "b"]
    assert (parts.pixel_count.sum() == region.pixel_count).all() and np.allclose(parts.area_m2.sum(), region.area_m2)
    assert np.allclose(table.groupby("district_id", dropna=False).share.sum(), 1)


def test_what_lies_outside_the_region_is_not_seen(tmp_path: Path):
    mask = write_mask(tmp_path / "a.tif", EAST, corner(EAST), SHAPE, np.ones(SHAPE, bool))
    x, y = corner(EAST)
    aoi = geopandas.GeoSeries([shapely.box(x, y - 1000, x + 1000, y)], crs=EAST)
    counts = count_region([mask], NONE, 3, aoi)
    assert counts.seen_m2_D.sum() == pytest.approx(1e6, rel=2e-3) and not counts.area_m2_DK.any()


def evaluated(folder: Path) -> Bundle:
    bundle = class_bundle(folder, ("one", "two", "three"))
    confusion = [[90, 5, 0], [10, 80, 5], [0, 15, 95]]
    return replace(bundle, metrics={"evaluation": {"confusion_truth_predicted": confusion}})


def test_areas_are_adjusted_for_the_models_errors(tmp_path: Path):
    """By hand, after Olofsson et al. 2014: a mapped area is handed out as the sample says what it truly is."""
    area_m2 = np.array([[4e6, 3e6, 3e6], [1e6, 0.5e6, 2e6], [3e6, 2.5e6, 1e6]])
    counts = Counts((area_m2 / 100).astype(np.int64), area_m2, area_m2.sum(axis=1))
    districts = Districts(["a", "b"], geopandas.GeoSeries([shapely.box(0, 0, 1, 1)] * 2, crs=EAST))
    table = region_areas_table(counts, districts, evaluated(tmp_path / "model"), "id").to_pandas()
    sample = np.array([[90, 5, 0], [10, 80, 5], [0, 15, 95]]).T  # [mapped, truth]
    shares = sample / sample.sum(axis=1, keepdims=True)
    region = table[table.district_id.isna()]
    mapped = area_m2.sum(axis=0)
    assert np.allclose(region.adjusted_area_m2, mapped @ shares)
    weights = mapped / mapped.sum()
    error = mapped.sum() * np.sqrt((weights[:, None] ** 2 * shares * (1 - shares) / (sample.sum(axis=1) - 1)[:, None]).sum(axis=0))
    assert np.allclose(region.standard_error_m2, error)
    assert np.allclose(region.low_m2, np.maximum(0, region.adjusted_area_m2 - 1.96 * error), rtol=1e-4)
    parts = table[table.district_id.notna()].groupby("class_id").adjusted_area_m2.sum()
    assert np.allclose(parts, region.adjusted_area_m2), "districts add up to the region"


def test_a_model_without_a_confusion_matrix_has_no_adjusted_areas(tmp_path: Path):
    mask = write_mask(tmp_path / "a.tif", EAST, corner(EAST), (50, 50))
    table = region_areas_table(count_region([mask], NONE, 3), NONE, class_bundle(tmp_path / "model", ("one", "two", "three")), "id")
    assert table["adjusted_area_m2"].null_count == 3 and cast(int, table.num_rows) == 3
