"""Labels that are numbers: read from any raster or polygons on any grid, against rasterio; named and described by their files."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from rasterio.features import rasterize
from rasterio.transform import Affine
from scipy.ndimage import map_coordinates, minimum_filter
from shapely.geometry import box

from pipeline.errors import Refused
from pipeline.geometry.windows import Window
from pipeline.training.classes import table_of
from pipeline.training.datasets import LabelledScene, open_labelled
from pipeline.training.statistics import measure, own_pixels
from pipeline.training.targets import Numbers, target_of
from pipeline.training.unknown import are_numbers, known, unknown
from tests.toys import UTM, smooth_noise, write_scene

HEIGHT, WIDTH = 60, 80
NAN = float("nan")


def image(folder: Path, **profile: object) -> Path:
    return write_scene(folder / "scene.tif", smooth_noise(1, (2, HEIGHT, WIDTH)), **profile)


def opened(folder: Path, labels: Path, numbers: Numbers = Numbers(), **more: object) -> LabelledScene:
    (item,) = open_labelled(str(image(folder)), labels=str(labels), classes=numbers, **more)  # type: ignore[arg-type]
    return item


def numbers_of(item: LabelledScene) -> np.ndarray:
    return item.read_labels(item.scene.grid.window)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_any_dtype_with_scale_offset_nodata_and_ignored_values(tmp_path: Path, dtype: str) -> None:
    stored_HW = np.random.default_rng(0).integers(1, 200, (HEIGHT, WIDTH)).astype(dtype)
    stored_HW[3:9, 5:20], stored_HW[20:30, 5:20] = 0, 7
    path = write_scene(tmp_path / "height.tif", stored_HW[None], nodata=0)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets, dataset.units = (0.25,), (-3.0,), ("m",)
        dataset.set_band_description(1, "canopy height")
    item = opened(tmp_path, path, Numbers(ignored=(7,)))
    expected_HW = np.where((stored_HW == 0) | (stored_HW == 7), NAN, stored_HW * 0.25 - 3.0)
    np.testing.assert_array_equal(numbers_of(item), expected_HW.astype(np.float32))
    assert (item.table.name, item.table.unit) == ("canopy height", "m")  # type: ignore[union-attr]
    assert item.table.outputs == 1 and item.table.classes == ()


def test_nan_infinity_and_what_float32_cannot_hold_are_unknown(tmp_path: Path) -> None:
    stored_HW = np.ones((HEIGHT, WIDTH))
    stored_HW[0, :4] = [np.nan, np.inf, -np.inf, 1e300]
    item = opened(tmp_path, write_scene(tmp_path / "height.tif", stored_HW[None]))
    found_HW = numbers_of(item)
    assert np.isnan(found_HW[0, :4]).all() and np.isfinite(found_HW).sum() == HEIGHT * WIDTH - 4
    assert item.table.name == "height"  # the file's name, where its band has none


def other_grid(folder: Path, scale: float, crs: str = "EPSG:32612") -> tuple[Path, np.ndarray, dict[str, object]]:
    """Labels with a hole in smaller or larger pixels, turned by nothing but shifted by a part of a pixel."""
    height, width = round(HEIGHT / scale) + 9, round(WIDTH / scale) + 9
    profile = {"crs": crs, "transform": UTM["transform"] * Affine.translation(-3.3, -2.2) * Affine.scale(scale)}
    rows, cols = np.mgrid[:height, :width]
    values_HW = (100 + 10 * np.sin(rows / 9) + 8 * np.cos(cols / 7)).astype(np.float32)
    values_HW[height // 3 : height // 2, width // 4 : width // 2] = -9999
    return write_scene(folder / "other.tif", values_HW[None], nodata=-9999, **profile), values_HW, profile


@pytest.mark.parametrize(("scale", "near"), [(0.4, 0.6), (1.0, 0.1), (3.0, 1e-4)])  # GDAL averages a little where it reads at 1:1 too
def test_a_raster_on_another_grid_is_interpolated_and_what_is_unknown_never_bleeds(tmp_path: Path, scale: float, near: float) -> None:
    """Against scipy's interpolation of order 1; known is what the label pixel under a pixel's centre knows."""
    path, values_HW, profile = other_grid(tmp_path, scale)
    found_HW = numbers_of(opened(tmp_path, path))
    rows, cols = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    x, y = ~profile["transform"] * UTM["transform"] * (cols, rows)  # type: ignore[operator]
    under_HW = values_HW[np.floor(y).astype(int), np.floor(x).astype(int)]
    assert (np.isfinite(found_HW) == (under_HW > 0)).all() and 0.3 < (under_HW > 0).mean() < 0.99
    expected_HW = map_coordinates(values_HW.astype(float), [y - 0.5, x - 0.5], order=1)
    inside_HW = (minimum_filter(under_HW, 5) > 0) & (expected_HW > 80)  # beside the hole GDAL leaves out what is unknown
    np.testing.assert_allclose(found_HW[inside_HW], expected_HW[inside_HW], atol=near)
    assert np.nanmin(found_HW) > 80 and np.nanmax(found_HW) < 120


def test_ignored_values_are_not_mixed_with_others_on_another_grid(tmp_path: Path) -> None:
    path, values_HW, _ = other_grid(tmp_path, 1.0)
    values_HW = np.where(values_HW == -9999, 500, np.round(values_HW))
    with rasterio.open(path, "r+") as dataset:
        dataset.write(values_HW.astype(np.float32), 1)
    found_HW = numbers_of(opened(tmp_path, path, Numbers(ignored=(500,))))
    assert set(np.unique(found_HW[np.isfinite(found_HW)]).tolist()) <= set(np.unique(values_HW).tolist()) - {500}
    assert np.isnan(found_HW).sum() > 50


def test_pairs_of_images_and_masks_of_numbers(tmp_path: Path) -> None:
    for number in range(3):
        write_scene(tmp_path / "images" / f"{number}.tif", smooth_noise(number, (2, 20, 30)), crs=None)
        write_scene(tmp_path / "masks" / f"{number}.tif", np.full((1, 20, 30), number + 0.5, np.float32), crs=None)
    items = open_labelled(str(tmp_path), classes=Numbers())
    assert [numbers_of(item).max() for item in items] == [0.5, 1.5, 2.5]
    assert items[0].table.name == "value"  # each file has a name of its own


def polygons(folder: Path, column: str, values: list[object]) -> Path:
    west, north = UTM["transform"] * (0, 0)
    shapes = [box(west + 300 * n, north - 900 - 300 * n, west + 300 * n + 900, north - 300 * n) for n in range(len(values))]
    table = geopandas.GeoDataFrame({column: values, "name": "x"}, geometry=shapes, crs=UTM["crs"])
    table.to_file(folder / "fields.gpkg")
    return folder / "fields.gpkg"


def test_polygons_with_a_column_of_numbers(tmp_path: Path) -> None:
    item = opened(tmp_path, polygons(tmp_path, "yield", [3.25, None, 7.0, 5.5]), Numbers(ignored=(5.5,)), class_column="yield")
    fields = geopandas.read_file(tmp_path / "fields.gpkg")
    drawn = [
        (shape, NAN if value == 5.5 else value) for shape, value in zip(fields.geometry, fields["yield"], strict=True) if value == value
    ]
    expected_HW = rasterize(drawn, (HEIGHT, WIDTH), fill=NAN, transform=UTM["transform"], dtype="float32")
    np.testing.assert_array_equal(numbers_of(item), expected_HW)
    assert np.isnan(expected_HW).any() and item.table.name == "yield"


@pytest.mark.parametrize(
    ("column", "values", "asked", "message"),
    [
        ("crop", ["wheat", "rye"], "crop", "crop holds 'wheat', which is no number: name a column of numbers with --class-column"),
        ("yield", [1.0, 2.0], None, "no column called value; there are yield, name: name one with --class-column"),
        ("yield", [1.0, 2.0], "height", "no column height; there are yield, name"),
        ("yield", [NAN, NAN], "yield", "holds no polygons with a value in yield"),
    ],
)
def test_polygons_without_numbers_are_refused(tmp_path: Path, column: str, values: list[object], asked: str | None, message: str) -> None:
    with pytest.raises(Refused, match=message):
        opened(tmp_path, polygons(tmp_path, column, values), class_column=asked)


def test_rasters_that_hold_no_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"rgb.tif: has 3 bands: numbers to learn are in one band \(gdal_translate -b 1\)"):
        opened(tmp_path, write_scene(tmp_path / "rgb.tif", smooth_noise(2, (3, HEIGHT, WIDTH))))
    palette = write_scene(tmp_path / "palette.tif", smooth_noise(2, (1, HEIGHT, WIDTH)))
    with rasterio.open(palette, "r+") as dataset:
        dataset.write_colormap(1, {0: (1, 2, 3, 255)})
    for numbers in (Numbers(), Numbers(ignored=(3.0,))):
        with pytest.raises(Refused, match="is a palette image"):
            opened(tmp_path, palette, numbers)


def test_labels_in_other_units_are_refused(tmp_path: Path) -> None:
    for number, unit in enumerate(("m", "ft")):
        write_scene(tmp_path / "images" / f"{number}.tif", smooth_noise(number, (2, 20, 30)))
        with rasterio.open(write_scene(tmp_path / "masks" / f"{number}.tif", np.ones((1, 20, 30), np.float32)), "r+") as dataset:
            dataset.units = (unit,)
    with pytest.raises(Refused, match=r"masks/1.tif: is in ft, .*masks/0.tif in m: convert one of them"):
        open_labelled(str(tmp_path), classes=Numbers())
    with pytest.raises(Refused, match=r"masks/0.tif: is in m, the model in t/ha"):
        open_labelled(str(tmp_path), classes=Numbers("biomass", "t/ha"))


def test_the_target_is_numpys_mean_std_and_percentiles_of_the_training_pixels(tmp_path: Path) -> None:
    stored_HW = (np.random.default_rng(0).gamma(2, 5, (HEIGHT, WIDTH)) + 10_000).astype(np.float32)
    stored_HW[:20, :20] = np.nan
    item = opened(tmp_path, write_scene(tmp_path / "height.tif", stored_HW[None]))
    held = Window(0, 60, HEIGHT, 10)
    item = LabelledScene(**{**item.__dict__, "excluded": (held,)})
    stored_HW[held.slices()] = np.nan
    values = stored_HW[np.isfinite(stored_HW)].astype(float)
    statistics = measure([item], item.bands)
    target = statistics.target
    assert target is not None and (target.name, target.unit) == ("height", "")
    assert target.mean == pytest.approx(values.mean(), rel=1e-5) and target.std == pytest.approx(values.std(), rel=1e-4)
    np.testing.assert_allclose((target.low, target.high), np.percentile(values, (2, 98)), rtol=1e-5)
    assert statistics.counts.tolist() == [len(values)] and own_pixels([item]) == HEIGHT * (WIDTH - 10)
    assert {tuple(place) for place in statistics.positions[0][0].tolist()} == set(
        zip(*map(np.ndarray.tolist, np.nonzero(np.isfinite(stored_HW))), strict=True)
    )
    assert len(statistics.bands) == 2 and measure([item], item.bands).target == target


def test_labels_of_one_value_and_of_none_are_refused(tmp_path: Path) -> None:
    for value, message in (
        (4.5, r"height.tif: the labels are 4.5 wherever the model is trained"),
        (np.nan, "no training pixel has a number"),
    ):
        path = write_scene(tmp_path / "height.tif", np.full((1, HEIGHT, WIDTH), value, np.float32))
        item = opened(tmp_path, path)
        with pytest.raises(Refused, match=message):
            measure([item], item.bands)


def test_a_target_that_is_nearly_always_one_value_has_a_range_for_pictures() -> None:
    target = target_of(Numbers("depth", "m"), 0.1, 0.9, np.zeros(1000), "x")
    assert target.low < target.mean < target.high


def test_what_is_unknown_follows_from_the_kind_of_labels() -> None:
    import torch

    ids, numbers = np.array([0, 255], np.uint8), np.array([255.0, np.nan], np.float32)
    for of_numpy in (ids, numbers):
        for labels in (of_numpy, torch.from_numpy(of_numpy)):
            assert known(labels).tolist() == [True, False]
            assert are_numbers(labels) == (of_numpy is numbers)
            filled = of_numpy.copy()
            filled[0] = unknown(labels)
            assert not known(filled).any()
    assert table_of([0, 1], False).kinds_of(ids).tolist() == [0, 255] and Numbers().kinds_of(numbers).tolist() == [0, 255]
