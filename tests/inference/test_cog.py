"""Parts become one COG: the same pixels and grid, valid, with classes, colours, nodata and overviews that hold classes only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rio_cogeo import cog_validate

from pipeline.geometry.windows import Window, shards
from pipeline.imagery.raster import Grid
from pipeline.inference.cog import write_cog
from tests.toys import UTM, write_scene

COLOURS = {0: (0, 100, 0), 3: (200, 200, 10), 7: (255, 0, 0)}
WKT = rasterio.crs.CRS.from_epsg(32612).to_wkt()


def parts_of(mask_HW: np.ndarray, folder: Path, shard: int, region: Window) -> list[tuple[Window, Path]]:
    """The mask as parts with a second layer of zeros, as the segmenter writes them."""
    parts = []
    for window in shards(region, shard):
        rows, cols = window.relative_to(region).slices()
        path = folder / f"{window.row}-{window.col}.part"
        layers_LHW = np.stack([mask_HW[rows, cols], np.zeros((window.height, window.width), np.uint8)])
        write_scene(path, layers_LHW, nodata=255, photometric="MINISBLACK")
        parts.append((window, path))
    return parts


def class_mask(height: int, width: int) -> np.ndarray:
    random = np.random.default_rng(height)
    coarse = random.choice([0, 3, 7, 255], (height // 9 + 1, width // 9 + 1), p=[0.4, 0.3, 0.2, 0.1])
    return np.kron(coarse, np.ones((9, 9)))[:height, :width].astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "shard", "row", "col"), [(1, 1, 512, 0, 0), (700, 1100, 512, 0, 0), (1500, 900, 1024, 512, 1024)]
)
def test_a_cog_of_parts(tmp_path: Path, height: int, width: int, shard: int, row: int, col: int):
    region, transform = Window(row, col, height, width), UTM["transform"]
    grid = Grid(row + height, col + width, tuple(transform)[:6], WKT)
    mask_HW = class_mask(height, width)
    target = tmp_path / "mask.tif"
    counts = write_cog(
        parts_of(mask_HW, tmp_path, shard, region), [1], target, region=region, grid=grid, names=["class"], colours=COLOURS,
        tags={"CLASSES": json.dumps([{"id": 0, "name": "<forest & friends>"}]), "INPUT_ID": "abc"},
    )  # fmt: skip
    np.testing.assert_array_equal(counts, np.bincount(mask_HW.ravel(), minlength=256))
    valid, errors, warnings = cog_validate(target, strict=True)
    assert valid, (errors, warnings)
    with rasterio.open(target) as dataset:
        np.testing.assert_array_equal(dataset.read(1), mask_HW)
        assert dataset.crs.to_epsg() == 32612 and dataset.nodata == 255 and dataset.dtypes == ("uint8",)
        assert dataset.transform == transform * Affine.translation(col, row)
        assert {value: dataset.colormap(1)[value][:3] for value in COLOURS} == COLOURS
        assert json.loads(dataset.tags()["CLASSES"]) == [{"id": 0, "name": "<forest & friends>"}]
        assert dataset.tags()["INPUT_ID"] == "abc"
        for factor in dataset.overviews(1):
            level = dataset.read(1, out_shape=(-(-height // factor), -(-width // factor)), resampling=Resampling.nearest)
            assert set(np.unique(level)) <= {0, 3, 7, 255}
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".part") == ["mask.tif"]  # nothing else is left


def test_a_missing_part_is_nodata_and_two_writes_are_the_same_bytes(tmp_path: Path):
    region, grid = Window(0, 0, 1024, 1024), Grid(1024, 1024, tuple(UTM["transform"])[:6], WKT)
    mask_HW = class_mask(1024, 1024)
    parts = parts_of(mask_HW, tmp_path, 512, region)
    del parts[2]
    mask_HW[512:, :512] = 255
    for name in ("one.tif", "two.tif"):
        write_cog(parts, [1], tmp_path / name, region=region, grid=grid, names=["class"], tags={}, colours=COLOURS)
    with rasterio.open(tmp_path / "one.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), mask_HW)
    assert (tmp_path / "one.tif").read_bytes() == (tmp_path / "two.tif").read_bytes()


def test_overviews_take_the_mode(tmp_path: Path):
    """Of four pixels, three of one class and one of another, the three win; an average would be a class that is not there."""
    mask_HW = np.tile(np.array([[0, 0], [0, 7]], np.uint8), (512, 512))
    region, grid = Window(0, 0, 1024, 1024), Grid(1024, 1024, tuple(UTM["transform"])[:6], WKT)
    write_cog(parts_of(mask_HW, tmp_path, 512, region), [1], tmp_path / "mask.tif", region=region, grid=grid, names=["class"], tags={})
    with rasterio.open(tmp_path / "mask.tif", overview_level=0) as dataset:
        assert (dataset.read(1) == 0).all()


def test_rotated_and_unplaced_grids_stay_as_they_are(tmp_path: Path):
    region = Window(0, 0, 600, 520)
    mask_HW = class_mask(600, 520)
    parts = parts_of(mask_HW, tmp_path, 512, region)
    rotated = Affine(20.0, 10.0, 301905.0, 10.0, -20.0, 4154085.0)
    for name, transform, crs in (("rotated", rotated, WKT), ("unplaced", Affine.identity(), None)):
        grid = Grid(600, 520, tuple(transform)[:6], crs)
        write_cog(parts, [1], tmp_path / f"{name}.tif", region=region, grid=grid, names=["class"], tags={})
        with rasterio.open(tmp_path / f"{name}.tif") as dataset:
            assert dataset.transform.almost_equals(transform) and bool(dataset.crs) == bool(crs)
            np.testing.assert_array_equal(dataset.read(1), mask_HW)
