"""Scenes as they are in the wild, read as rasterio itself reads them, or refused in one line; never another exception."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.shutil
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.transform import Affine, from_origin
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow

from pipeline.errors import Refused, Unreadable
from pipeline.geometry.windows import Window
from pipeline.imagery.bands import Band
from pipeline.imagery.catalogue import Asset, BandEntry, Source, find_sources
from pipeline.imagery.raster import Scene, open_scene
from pipeline.imagery.reader import WARP_TOLERANCE_PX, Pixels, SceneReader, check_scaling, preview

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
TRANSFORM = from_origin(301905, 4154085, 30, 30)
ALPHA, GRAY = ColorInterp.alpha, ColorInterp.gray


def write(path: Path, values_CHW: np.ndarray, *, mask_HW: np.ndarray | None = None, internal: bool = True, **profile: Any) -> Path:
    """A GeoTIFF in UTM, unless `profile` says otherwise; attributes such as scales and colorinterp go there too."""
    attributes = {name: profile.pop(name) for name in ("scales", "offsets", "colorinterp", "descriptions", "gcps") if name in profile}
    tags = profile.pop("tags", {})
    count, height, width = values_CHW.shape
    settings = {"driver": "GTiff", "crs": "EPSG:32612", "transform": TRANSFORM} | profile
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal),
        rasterio.open(path, "w", count=count, height=height, width=width, dtype=values_CHW.dtype, **settings) as dataset,
    ):
        for name, value in attributes.items():
            setattr(dataset, name, value)
        dataset.write(values_CHW)
        if mask_HW is not None:
            dataset.write_mask(mask_HW)
        dataset.update_tags(**tags)
    return path


def noise(shape_CHW: tuple[int, int, int], dtype: str = "uint8", seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 120, shape_CHW).astype(dtype)


def bands(count: int, **about: Any) -> list[Band]:
    return [Band(f"x{number}", **about) for number in range(count)]


def opened(path: Path, wanted: Sequence[Band] | None = None, *entries: BandEntry, trusted: bool = False) -> Scene:
    """The scene of one file, for a model that wants all its data bands unless `wanted` says which."""
    if wanted is None:
        with rasterio.open(path) as dataset:
            wanted = bands(sum(use != ALPHA for use in dataset.colorinterp))
    return open_scene(Source(str(path), path.stem, None, (Asset(path, entries),), trusted=trusted), wanted)


def read(scene: Scene, window: Window | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Values and validity of a window, or of the whole scene."""
    with SceneReader(scene) as reader:
        return told(reader.read(window or scene.grid.window))


def told(pixels: Pixels) -> tuple[np.ndarray, np.ndarray]:
    values_CHW, valid_CHW = pixels
    return values_CHW, np.ones(values_CHW.shape, bool) if valid_CHW is None else valid_CHW


# ---- values


@pytest.mark.parametrize("count", [1, 2, 3, 13])
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(name, name) for name in ("uint8", "uint16", "int16", "float32")]
    + [(name, "float32") for name in ("int8", "int32", "uint32", "int64", "float64")],
)
def test_every_dtype_and_number_of_bands(tmp_path: Path, dtype: str, expected: str, count: int):
    """uint8, uint16, int16 and float32 stay what they are; the others become float32."""
    path = write(tmp_path / "a.tif", noise((count, 21, 34), dtype), photometric="minisblack", alpha="no")
    scene = opened(path)
    values_CHW, valid_CHW = read(scene)
    with rasterio.open(path) as dataset:
        assert values_CHW.dtype == expected == scene.dtype
        assert np.array_equal(values_CHW, dataset.read()) and valid_CHW.all()
        assert (scene.grid.height, scene.grid.width) == dataset.shape
        assert scene.grid.affine == dataset.transform and scene.grid.rasterio_crs == dataset.crs


@pytest.mark.parametrize(
    "layout",
    [
        {"blockysize": 1},
        {"blockysize": 7, "interleave": "pixel"},
        {"blockysize": 7, "interleave": "band"},
        {"tiled": True, "blockxsize": 64, "blockysize": 32},
        {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "predictor": 2},
        {"bigtiff": "yes", "compress": "zstd"},
        {"bigtiff": "yes", "tiled": True, "blockxsize": 16, "blockysize": 16, "sparse_ok": True},
        {"driver": "ENVI"},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 1, 333), (2, 333, 1), (2, 97, 211)], ids=str)
def test_every_layout_in_every_window(tmp_path: Path, layout: dict[str, Any], shape: tuple[int, int, int]):
    values_CHW = noise(shape, "uint16")
    chance = random.Random(2)
    scene = opened(write(tmp_path / "a.tif", values_CHW, **layout))
    with SceneReader(scene) as reader, rasterio.open(tmp_path / "a.tif") as dataset:
        for _ in range(12):
            row, col = chance.randrange(shape[1]), chance.randrange(shape[2])
            window = Window(row, col, chance.randrange(1, shape[1] - row + 1), chance.randrange(1, shape[2] - col + 1))
            read_CHW, valid_CHW = told(reader.read(window))
            assert np.array_equal(read_CHW, dataset.read(window=RasterioWindow(col, row, window.width, window.height)))
            assert valid_CHW.all()
        assert scene.block == (max(h for h, _ in dataset.block_shapes), max(w for _, w in dataset.block_shapes))


@pytest.mark.parametrize("nodata", [None, 0])
def test_a_read_over_the_right_and_lower_edge_is_padded_with_invalid_pixels(tmp_path: Path, nodata: int | None):
    values_CHW = noise((2, 20, 30))
    values_CHW[0, 18:, 25:] = 0
    with SceneReader(opened(write(tmp_path / "a.tif", values_CHW, nodata=nodata))) as reader:
        for window in (Window(0, 0, 32, 32), Window(16, 16, 16, 16), Window(19, 29, 8, 8), Window(0, 28, 20, 8)):
            read_CHW, valid_CHW = told(reader.read(window))
            assert read_CHW.shape == valid_CHW.shape == (2, window.height, window.width)
            expected_CHW = values_CHW[:, window.row : window.rows.stop, window.col : window.cols.stop]
            height, width = expected_CHW.shape[1:]
            assert np.array_equal(read_CHW[:, :height, :width], expected_CHW)
            assert np.array_equal(valid_CHW[:, :height, :width], expected_CHW != 0 if nodata == 0 else expected_CHW >= 0)
            assert not valid_CHW[:, height:].any() and not valid_CHW[:, :, width:].any()
            assert not read_CHW[:, height:].any() and not read_CHW[:, :, width:].any()


@pytest.mark.parametrize("window", [Window(-1, 0, 8, 8), Window(0, -3, 8, 8), Window(20, 0, 8, 8), Window(0, 30, 8, 8)], ids=str)
def test_a_read_never_wraps(tmp_path: Path, window: Window):
    with SceneReader(opened(write(tmp_path / "a.tif", noise((1, 20, 30))))) as reader, pytest.raises(ValueError, match="inside the scene"):
        reader.read(window)


def test_two_threads_may_share_a_reader(tmp_path: Path):
    values_CHW = noise((1, 256, 256), "uint16")
    with SceneReader(opened(write(tmp_path / "a.tif", values_CHW, compress="deflate"))) as reader, ThreadPoolExecutor(4) as pool:
        windows = [Window(row, col, 64, 64) for row in range(0, 256, 64) for col in range(0, 256, 64)] * 4
        for window, pixels in zip(windows, pool.map(reader.read, windows), strict=True):
            assert np.array_equal(pixels.values_CHW, values_CHW[:, *window.slices()])


# ---- validity


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 0), ("uint16", 65535), ("int16", -32768), ("float32", -9999), ("float64", 1e30)])
def test_the_files_nodata_value(tmp_path: Path, dtype: str, nodata: float):
    values_CHW = noise((2, 15, 17), dtype)
    values_CHW[0, 3:5], values_CHW[1, :, 7] = nodata, nodata
    path = write(tmp_path / "a.tif", values_CHW, nodata=nodata)
    read_CHW, valid_CHW = read(opened(path, bands(2, nodata=50)))
    with rasterio.open(path) as dataset:
        assert np.array_equal(valid_CHW, dataset.read_masks() > 0), "not the model's, where the file has one"
        assert np.array_equal(read_CHW, np.where(valid_CHW, dataset.read(), 0))


def test_the_models_nodata_value_where_the_file_has_none(tmp_path: Path):
    values_CHW = noise((1, 15, 17))
    _, valid_CHW = read(opened(write(tmp_path / "a.tif", values_CHW), bands(1, nodata=50)))
    assert np.array_equal(valid_CHW, values_CHW != 50) and not valid_CHW.all()


@pytest.mark.parametrize("nodata", [-9999.0, 256.0, 0.5, float("nan"), float("-inf")])
def test_a_nodata_value_that_no_pixel_can_hold(tmp_path: Path, nodata: float):
    path = write(tmp_path / "a.tif", noise((1, 15, 17)))
    scene = opened(path, bands(1), BandEntry(nodata=nodata))
    assert scene.bands[0].nodata is None
    assert read(scene)[1].all()


@pytest.mark.parametrize("nodata", [None, float("nan"), -9999.0])
def test_nan_and_infinity_are_never_valid(tmp_path: Path, nodata: float | None):
    values_CHW = noise((2, 15, 17), "float32")
    values_CHW[0, 2, 2], values_CHW[0, 3, 3], values_CHW[1, 4, 4] = np.nan, np.inf, -np.inf
    read_CHW, valid_CHW = read(opened(write(tmp_path / "a.tif", values_CHW, nodata=nodata)))
    assert np.array_equal(valid_CHW, np.isfinite(values_CHW))
    assert np.isfinite(read_CHW).all() and np.array_equal(read_CHW[valid_CHW], values_CHW[valid_CHW])


def test_a_value_too_large_for_float32_is_not_valid(tmp_path: Path):
    values_CHW = noise((1, 15, 17), "float64")
    values_CHW[0, 1, 1], values_CHW[0, 2, 2] = 1e300, -1.7976931348623157e308
    read_CHW, valid_CHW = read(opened(write(tmp_path / "a.tif", values_CHW)))
    assert read_CHW.dtype == np.float32 and np.isfinite(read_CHW).all()
    assert np.argwhere(~valid_CHW[0]).tolist() == [[1, 1], [2, 2]]


@pytest.mark.parametrize("internal", [True, False])
@pytest.mark.parametrize("nodata", [None, 7])
def test_a_mask_inside_the_file_or_beside_it(tmp_path: Path, internal: bool, nodata: int | None):
    values_CHW, mask_HW = noise((3, 40, 50)), (noise((1, 40, 50), seed=9)[0] > 40) * np.uint8(255)
    values_CHW[:, 5] = 7
    path = write(tmp_path / "a.tif", values_CHW, mask_HW=mask_HW, internal=internal, nodata=nodata)
    assert (tmp_path / "a.tif.msk").exists() != internal
    read_CHW, valid_CHW = read(opened(path))
    with rasterio.open(path) as dataset:
        expected = np.broadcast_to(dataset.dataset_mask() > 0, values_CHW.shape) & (True if nodata is None else values_CHW != nodata)
    assert np.array_equal(valid_CHW, expected)
    assert np.array_equal(read_CHW, np.where(expected, values_CHW, 0))


@pytest.mark.parametrize("nodata", [None, 7])
def test_an_alpha_band_with_and_without_a_nodata_value(tmp_path: Path, nodata: int | None):
    """GDAL's own mask looks past the alpha band where there is a nodata value: drone mosaics have both."""
    values_CHW, alpha_HW = noise((3, 40, 50)), (noise((1, 40, 50), seed=9)[0] > 40) * np.uint8(200)
    values_CHW[:, 5] = 7
    path = write(
        tmp_path / "a.tif", np.concatenate([values_CHW, alpha_HW[None]]), nodata=nodata,
        colorinterp=(ColorInterp.red, ColorInterp.green, ColorInterp.blue, ALPHA),
    )  # fmt: skip
    read_CHW, valid_CHW = read(opened(path))
    expected = np.broadcast_to(alpha_HW > 0, values_CHW.shape) & (True if nodata is None else values_CHW != nodata)
    assert np.array_equal(valid_CHW, expected) and np.array_equal(read_CHW, np.where(expected, values_CHW, 0))


def test_an_alpha_band_with_a_name_is_values_and_no_mask(tmp_path: Path):
    values_CHW = noise((4, 30, 40))
    values_CHW[3, 10:20] = 0
    path = write(tmp_path / "a.tif", values_CHW, descriptions=("red", "green", "blue", "nir"))
    with rasterio.open(path) as dataset:
        assert dataset.colorinterp[3] == ALPHA, "GDAL's guess for four bytes"
    for names in (("nir", "red"), ("red",)):
        read_CHW, valid_CHW = read(opened(path, [Band(name) for name in names]))
        assert np.array_equal(read_CHW, values_CHW[[{"red": 0, "nir": 3}[name] for name in names]]) and valid_CHW.all()


def test_a_preview_has_the_scenes_validity(tmp_path: Path):
    values_CHW = noise((1, 100, 80))
    values_CHW[:, :50] = 0
    small_CHW, valid_CHW = preview(opened(write(tmp_path / "a.tif", values_CHW, nodata=0)), Window(0, 0, 100, 80), (10, 8))
    assert small_CHW.shape == valid_CHW.shape == (1, 10, 8)
    assert not valid_CHW[:, :5].any() and valid_CHW[:, 5:].all()


def test_a_large_preview_is_put_together_from_pieces(tmp_path: Path):
    """Each of its pixels is one of those that it stands for."""
    rows_HW, cols_HW = np.mgrid[:4100, :3000].astype(np.uint16)
    scene = opened(write(tmp_path / "a.tif", np.stack([rows_HW, cols_HW])), bands(2))
    small_CHW, valid_CHW = preview(scene, Window(512, 0, 3588, 3000), (299, 250))
    assert valid_CHW.all()
    assert (abs(small_CHW[0] - np.linspace(512, 4100, 299, endpoint=False)[:, None] - 6) <= 13).all()
    assert (abs(small_CHW[1] - np.linspace(0, 3000, 250, endpoint=False)[None] - 6) <= 13).all()


# ---- what the file says of its values


def test_scale_and_offset_are_the_files_before_the_catalogues(tmp_path: Path):
    path = write(tmp_path / "a.tif", noise((2, 4, 4), "uint16"), scales=(0.0001, 1.0), offsets=(-0.1, 0.0))
    scene = opened(path, bands(2), BandEntry(("x0",), scale=9.0, offset=9.0), BandEntry(("x1",), scale=2.0, offset=3.0))
    assert [(band.scale, band.offset) for band in scene.bands] == [(0.0001, -0.1), (2.0, 3.0)]
    assert [(band.scale, band.offset) for band in opened(path).bands] == [(0.0001, -0.1), (1.0, 0.0)]


@pytest.mark.parametrize(
    ("tag", "expected"),
    [("2015:08:18 17:58:01", "2015-08-18T17:58:01Z"), ("0000:00:00 00:00:00", None), ("18.8.2015", None), ("2015:08:18 1a:58:01", None)],
)
def test_the_time_in_a_tiff_tag(tmp_path: Path, tag: str, expected: str | None):
    assert opened(write(tmp_path / "a.tif", noise((1, 4, 4)), tags={"TIFFTAG_DATETIME": tag})).datetime == expected


def test_a_file_of_bands_of_several_dtypes(tmp_path: Path):
    """Only a virtual raster has them; rasterio reads one dtype at a time."""
    write(tmp_path / "a.tif", noise((1, 20, 30)))
    write(tmp_path / "b.tif", noise((1, 20, 30), "uint16", seed=2) * np.uint16(300))
    source = '<SimpleSource><SourceFilename relativeToVRT="1">{}</SourceFilename></SimpleSource>'
    entries = [
        f'<VRTRasterBand dataType="{dtype}" band="{number}">{source.format(name)}</VRTRasterBand>'
        for number, (dtype, name) in enumerate([("Byte", "a.tif"), ("UInt16", "b.tif")], 1)
    ]
    (tmp_path / "ab.vrt").write_text(f'<VRTDataset rasterXSize="30" rasterYSize="20">{"".join(entries)}</VRTDataset>')
    values_CHW, _ = read(opened(tmp_path / "ab.vrt", trusted=True))
    assert values_CHW.dtype == np.uint16
    for number, name in enumerate(("a.tif", "b.tif")):
        with rasterio.open(tmp_path / name) as dataset:
            assert np.array_equal(values_CHW[number], dataset.read(1))


# ---- grids


def test_without_a_crs_areas_are_in_pixels(tmp_path: Path):
    scene = opened(write(tmp_path / "a.tif", noise((1, 4, 4)), crs=None, transform=Affine.identity()))
    assert scene.grid.crs is None and not scene.on_ground
    assert scene.notes == ("the scene has no CRS: areas are counted in pixels",)


@pytest.mark.parametrize("crs", ['LOCAL_CS["drawing",UNIT["metre",1]]', "IAU_2015:30100"])
def test_with_a_crs_of_no_place_on_earth_areas_are_in_pixels(tmp_path: Path, crs: str):
    scene = opened(write(tmp_path / "a.tif", noise((1, 4, 4)), crs=CRS.from_user_input(crs)))
    assert scene.grid.crs is not None and not scene.on_ground and "areas are counted in pixels" in scene.notes[0]


@pytest.mark.parametrize(
    ("transform", "notes"),
    [
        (Affine(30, 0, 301905, 0, 30, 4154085), 0),
        (Affine(-30, 0, 301905, 0, -30, 4154085), 0),
        (Affine(26, 11, 301905, 9, -28, 4154085), 1),
        (Affine(30.123456789012345, 0, 1 / 3, 0, -29.9, 2 / 3), 0),
    ],
    ids=["south up", "mirrored", "rotated", "many digits"],
)
def test_a_grid_is_kept_exactly(tmp_path: Path, transform: Affine, notes: int):
    values_CHW = noise((1, 12, 17))
    path = write(tmp_path / "a.tif", values_CHW, transform=transform)
    scene = opened(path)
    with rasterio.open(path) as dataset:
        assert scene.grid.affine == dataset.transform
        assert scene.grid.affine.almost_equals(transform, 1e-9)
    assert np.array_equal(read(scene)[0], values_CHW), "rows stay in the file's order"
    assert len(scene.notes) == notes and all("rotated" in note for note in scene.notes)
    assert scene.resolution_m == pytest.approx(abs(transform.determinant) ** 0.5, rel=0.01)


def test_the_resolution_of_a_view_of_the_globe_whose_middle_is_sky(tmp_path: Path):
    geostationary = CRS.from_proj4("+proj=geos +h=35785831 +lon_0=0 +sweep=y +datum=WGS84")
    scene = opened(write(tmp_path / "a.tif", noise((1, 30, 30)), crs=geostationary, transform=from_origin(2e6, 8e6, 2e5, 2e5)))
    assert scene.on_ground and scene.resolution_m > 2e5


def test_the_version_is_that_of_the_bytes_and_what_lies_beside_them(tmp_path: Path):
    path = write(tmp_path / "a.tif", noise((1, 30, 30)))
    versions = [opened(path).version, opened(path).version]
    assert versions[0] == versions[1]
    time.sleep(0.02)
    write(path, noise((1, 30, 30), seed=2))
    versions.append(opened(path).version)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(np.zeros((30, 30), np.uint8))
    versions.append(opened(path).version)
    assert len(set(versions[1:])) == 3
    assert opened(path).input_id == opened(path).input_id


def test_the_version_is_that_of_the_catalogue_entry_too(tmp_path: Path):
    """It says scale, offset and nodata."""
    write(tmp_path / "a.tif", noise((1, 4, 4)))
    versions = []
    for scale in (1.0, 0.25):
        asset = {"href": "a.tif", "roles": ["data"], "raster:scale": scale}
        (tmp_path / "item.json").write_text(json.dumps({"type": "Feature", "id": "a", "assets": {"x0": asset}}))
        (source,) = find_sources([str(tmp_path / "item.json")])
        versions.append(open_scene(source, bands(1)).version)
    assert versions[0] != versions[1]


# ---- several files, one on another grid


def plane(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Bilinear interpolation gives a plane back exactly, so it says what a warped value must be."""
    return 1000 * (lon + 113.5) + 700 * (lat - 37)


def elevation(path: Path, *, nodata_rows: int = 0, **profile: Any) -> Path:
    """A plane over the scene in EPSG:4326, at about 90 m."""
    transform = from_origin(-113.3, 37.55, 0.00083, 0.00083)
    col, row = np.meshgrid(np.arange(300) + 0.5, np.arange(250) + 0.5)
    values_HW = plane(*(transform * (col, row))).astype("float32")
    if nodata_rows:
        values_HW[100 : 100 + nodata_rows] = -9999
    return write(path, values_HW[None], crs="EPSG:4326", transform=transform, nodata=-9999, **profile)


def classes(path: Path) -> Path:
    """Land cover of another UTM zone's grid at 41 m."""
    return write(path, noise((1, 300, 320)), crs="EPSG:26911", transform=Affine(41, 0, 835000, 0, -41, 4158000), nodata=255)


def scene_of(tmp_path: Path, height: int = 260, width: int = 330, **about: Any) -> Scene:
    """A scene of two files on one grid, elevation and classes on two others."""
    files = {
        "red": write(tmp_path / "red.tif", noise((1, height, width), "uint16")),
        "nir": write(tmp_path / "nir.tif", noise((1, height, width), "uint16", seed=2), nodata=60),
        "elevation": elevation(tmp_path / "elevation.tif", **about),
        "cover": classes(tmp_path / "cover.tif"),
    }
    source = Source("scene", "scene", None, tuple(Asset(path, (BandEntry((name,)),)) for name, path in files.items()))
    return open_scene(source, [Band("nir"), Band("elevation"), Band("cover", categorical=True), Band("red")])


def lonlat_of(scene: Scene, crs: str = "EPSG:4326") -> tuple[np.ndarray, np.ndarray]:
    col, row = np.meshgrid(np.arange(scene.grid.width) + 0.5, np.arange(scene.grid.height) + 0.5)
    return pyproj.Transformer.from_crs("EPSG:32612", crs, always_xy=True).transform(*(scene.grid.affine * (col, row)))


def test_files_on_other_grids_are_taken_to_the_grid_of_the_first_band(tmp_path: Path):
    scene = scene_of(tmp_path)
    assert [(band.name, band.warped) for band in scene.bands] == [("nir", False), ("elevation", True), ("cover", True), ("red", False)]
    assert scene.dtype == np.float32 and scene.grid.affine == TRANSFORM
    values_CHW, valid_CHW = read(scene)
    with rasterio.open(tmp_path / "nir.tif") as nir, rasterio.open(tmp_path / "red.tif") as red:
        assert np.array_equal(values_CHW[0], np.where(nir.read(1) == 60, 0, nir.read(1))) and np.array_equal(
            valid_CHW[0], nir.read(1) != 60
        )
        assert np.array_equal(values_CHW[3], red.read(1)) and valid_CHW[3].all()
    expected_HW = plane(*lonlat_of(scene))
    assert valid_CHW[1].all()
    assert np.abs(values_CHW[1] - expected_HW).max() < 2e-3, "bilinear, at the pixel's centre: a thousandth of a pixel is 8e-4"


def test_classes_are_those_of_the_nearest_pixel_and_nodata_outside(tmp_path: Path):
    scene = scene_of(tmp_path)
    values_CHW, valid_CHW = read(scene)
    with rasterio.open(tmp_path / "cover.tif") as cover:
        cover_HW = cover.read(1)
        cols, rows = ~cover.transform * np.array(lonlat_of(scene, "EPSG:26911"))
    inside = (cols >= 0) & (rows >= 0) & (cols < 320) & (rows < 300)
    assert 0.2 < inside.mean() < 0.99, "part of the scene lies outside"
    near_edge = np.minimum(np.abs(cols - np.round(cols)), np.abs(rows - np.round(rows))) < 1e-3
    expected_HW = cover_HW[np.clip(rows.astype(int), 0, 299), np.clip(cols.astype(int), 0, 319)]
    sure = inside & ~near_edge
    assert np.array_equal(values_CHW[2][sure], expected_HW[sure]) and valid_CHW[2][sure].all()
    assert not valid_CHW[2][~inside & ~near_edge].any()


def test_nodata_is_not_mixed_into_what_lies_beside_it(tmp_path: Path):
    scene = scene_of(tmp_path, nodata_rows=20)
    values_CHW, valid_CHW = read(scene)
    expected_HW = plane(*lonlat_of(scene))
    assert 0.05 < (~valid_CHW[1]).mean() < 0.3
    assert np.abs(values_CHW[1] - expected_HW)[valid_CHW[1]].max() < 1.5, "beside it at most half a pixel nearer"


def test_a_windowed_warp_is_the_whole_warp(tmp_path: Path):
    scene = scene_of(tmp_path, nodata_rows=20)
    whole_CHW, known_CHW = read(scene)
    chance, differing = random.Random(5), 0
    for number in range(40):
        row, col = chance.randrange(260), chance.randrange(330)
        window = Window(row, col, chance.choice([1, 2, 64, 260 - row]), chance.choice([1, 3, 64, 330 - col])).intersection(
            scene.grid.window
        )
        with SceneReader(scene) as reader:  # a fresh one: nothing is in its cache
            values_CHW, valid_CHW = told(reader.read(window if number else scene.grid.window))
        rows, cols = (window if number else scene.grid.window).slices()
        differing += int((values_CHW != whole_CHW[:, rows, cols]).sum() + (valid_CHW != known_CHW[:, rows, cols]).sum())
    assert differing == 0


def zion(name: str) -> Path:
    path = SHARED_DATA / "zion-landsat8" / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


def test_a_windowed_warp_is_the_whole_warp_on_the_real_elevation_and_is_not_with_gdals_default():
    landsat, srtm = zion("landsat_b4.tif"), zion("srtm.tif")
    source = Source("zion", "zion", None, (Asset(landsat, (BandEntry(("red",)),)), Asset(srtm, (BandEntry(("elevation",)),))))
    scene = open_scene(source, [Band("red"), Band("elevation")])
    with rasterio.open(srtm) as dataset:
        assert shifted(dataset, scene, tolerance=WARP_TOLERANCE_PX) == 0
        assert shifted(dataset, scene) > 0.05, "the default approximates along whole scanlines"
    whole_CHW, _ = read(scene)
    window = Window(513, 300, 200, 333)
    assert np.array_equal(read(scene, window)[0], whole_CHW[:, *window.slices()])


def shifted(dataset: rasterio.DatasetReader, scene: Scene, **options: float) -> float:
    """The share of pixels that differ between a warp of the whole and one in windows of 256 px."""
    grid = scene.grid
    view = {"crs": grid.rasterio_crs, "transform": grid.affine, "width": grid.width, "height": grid.height, "dtype": "float32"} | options
    with WarpedVRT(dataset, resampling=Resampling.bilinear, **view) as warped:
        whole_HW = warped.read(1)
    differing = 0
    with WarpedVRT(dataset, resampling=Resampling.bilinear, **view) as warped:
        for row in range(0, grid.height, 256):
            for col in range(0, grid.width, 256):
                part_HW = warped.read(1, window=RasterioWindow(col, row, min(256, grid.width - col), min(256, grid.height - row)))
                differing += int((part_HW != whole_HW[row : row + 256, col : col + 256]).sum())
    return differing / whole_HW.size


@pytest.mark.parametrize("kind", ["mask", "alpha"])
def test_a_mask_on_another_grid_is_warped_too(tmp_path: Path, kind: str):
    values_CHW, shown_HW = noise((1, 100, 100)), np.full((100, 100), 255, np.uint8)
    shown_HW[:50] = 0
    transform = from_origin(301905, 4154085, 60, 60)
    if kind == "mask":
        path = write(tmp_path / "aux.tif", values_CHW, mask_HW=shown_HW, transform=transform)
    else:
        path = write(tmp_path / "aux.tif", np.concatenate([values_CHW, shown_HW[None]]), colorinterp=(GRAY, ALPHA), transform=transform)
    first = write(tmp_path / "first.tif", noise((1, 200, 200)))
    source = Source("s", "s", None, (Asset(first, (BandEntry(("a",)),)), Asset(path, (BandEntry(("b",)),))))
    values_CHW, valid_CHW = read(open_scene(source, [Band("a"), Band("b")]))
    assert valid_CHW[0].all()
    assert not valid_CHW[1, :99].any() and valid_CHW[1, 101:].all()
    assert values_CHW[1, 101:].min() > 0


def test_bands_of_one_file_may_have_several_nodata_values_on_another_grid(tmp_path: Path):
    values_CHW = np.full((2, 50, 50), 10, "int16")
    values_CHW[0, 20:30], values_CHW[1, 40:] = -1, -2
    aux = write(tmp_path / "aux.tif", values_CHW, transform=from_origin(301905, 4154085, 60, 60))
    first = write(tmp_path / "first.tif", noise((1, 100, 100)))
    entries = (BandEntry(("b",), nodata=-1), BandEntry(("c",), nodata=-2))
    scene = open_scene(Source("s", "s", None, (Asset(first, (BandEntry(("a",)),)), Asset(aux, entries))), [Band("a"), Band("b"), Band("c")])
    values_CHW, valid_CHW = read(scene)
    for number, rows in ((1, (45, 55)), (2, (85, 95))):
        assert not valid_CHW[number, slice(*rows)].any()
        assert set(np.unique(values_CHW[number][valid_CHW[number]])) == {10.0}


# ---- refused, in one line that says what to do


def refusals(tmp_path: Path) -> dict[str, tuple[Source, str]]:
    """What cannot be segmented, and what a person reads about it."""
    values_CHW = noise((1, 20, 20))
    gcps = [GroundControlPoint(row, col, col / 100, row / 100) for row, col in ((0, 0), (0, 20), (20, 0))]
    empty = tmp_path / "empty.tif"
    empty.touch()
    text = tmp_path / "text.tif"
    text.write_text("not a raster at all\n" * 50)
    first = write(tmp_path / "first.tif", values_CHW)
    other = from_origin(301905, 4154085, 60, 60)

    def pair(path: Path) -> Source:
        return Source("scene", "scene", None, (Asset(first, (BandEntry(("x0",)),)), Asset(path, (BandEntry(("x1",)),))))

    palette = write(tmp_path / "palette.tif", values_CHW)
    with rasterio.open(palette, "r+") as dataset:
        dataset.write_colormap(1, {1: (255, 0, 0, 255)})
    gcp_only = write(tmp_path / "gcps.tif", values_CHW, gcps=(gcps, CRS.from_epsg(4326)), crs=None, transform=Affine.identity())
    local = CRS.from_wkt('LOCAL_CS["drawing",UNIT["metre",1]]')
    both = write(tmp_path / "both.tif", values_CHW, mask_HW=np.zeros((20, 20), np.uint8), nodata=3, transform=other)
    named = write(tmp_path / "named.tif", noise((2, 20, 20)), colorinterp=(GRAY, ALPHA), descriptions=("x1", "nir"), transform=other)
    made = {
        "control points": (gcp_only, r"ground control points only: .*\(gdalwarp -t_srs EPSG:4326\)"),
        "complex": (write(tmp_path / "complex.tif", values_CHW.astype("complex64")), r"complex numbers: .*gdal_calc"),
        "palette": (palette, r"palette image: .*\(gdal_translate -expand rgb\)"),
        "an empty file": (empty, "cannot be opened as a raster"),
        "a text": (text, "cannot be opened as a raster"),
        "no file": (tmp_path / "gone.tif", "no such file"),
        "a folder": (tmp_path, "cannot be opened as a raster"),
    }
    pairs = {
        "no CRS on another grid": (write(tmp_path / "c.tif", values_CHW, crs=None, transform=other), r"no CRS: .*\(gdal_edit.py -a_srs\)"),
        "no way between the CRSs": (write(tmp_path / "d.tif", values_CHW, crs=local), r"nothing takes its CRS to that of .*gdal_edit"),
        "a named alpha band on another grid": (named, r"marked as alpha: unmark it \(gdal_edit.py -colorinterp_<band> undefined\)"),
        "mask and nodata on another grid": (both, r"a nodata value beside a mask or alpha band: keep one of them"),
    }
    found = {name: (Source(str(path), path.stem, None, (Asset(path),)), message) for name, (path, message) in made.items()}
    return found | {name: (pair(path), message) for name, (path, message) in pairs.items()}


def test_what_cannot_be_segmented_is_refused_with_a_fix(tmp_path: Path):
    for name, (source, message) in refusals(tmp_path).items():
        with pytest.raises(Refused, match=message) as refused:
            open_scene(source, bands(len(source.assets)))
        assert "\n" not in str(refused.value) and str(source.assets[-1].path) in str(refused.value), name


def test_a_palette_is_read_as_class_ids_where_classes_are_wanted(tmp_path: Path):
    path = write(tmp_path / "palette.tif", noise((1, 20, 20)))
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {1: (255, 0, 0, 255)})
    assert np.array_equal(read(opened(path, [Band("cover", categorical=True)]))[0], noise((1, 20, 20)))


# ---- broken files


def test_a_truncated_file_is_refused_or_unreadable_and_named(tmp_path: Path):
    whole = write(tmp_path / "whole.tif", noise((3, 300, 300), "uint16"), compress="deflate").read_bytes()
    outcomes = set()
    for share in (0.0001, 0.01, 0.3, 0.6, 0.999):
        path = tmp_path / f"cut-{share}.tif"
        path.write_bytes(whole[: max(1, int(len(whole) * share))])
        with pytest.raises((Refused, Unreadable), match=str(path)) as failed:
            read(opened(path, bands(3)))
        outcomes.add(failed.type)
        assert "\n" not in str(failed.value)
    assert Refused in outcomes


def header_first(path: Path, target: Path) -> Path:
    """The same raster with its directory before its blocks, as in a COG."""
    rasterio.shutil.copy(path, target, driver="GTiff", copy_src_overviews="YES", tiled="YES", blockxsize=128, blockysize=128)
    return target


def test_a_truncated_file_whose_header_is_whole_fails_only_where_it_is_cut(tmp_path: Path):
    values_CHW = noise((1, 512, 512), "uint16")
    path = header_first(write(tmp_path / "made.tif", values_CHW), tmp_path / "a.tif")
    os.truncate(path, int(path.stat().st_size * 0.6))
    scene = opened(path)
    with SceneReader(scene) as reader:
        assert np.array_equal(reader.read(Window(0, 0, 128, 512)).values_CHW, values_CHW[:, :128])
        with pytest.raises(Unreadable, match=r"a\.tif: rows 384 to 512, columns 0 to 512: \S+"):
            reader.read(Window(384, 0, 128, 512))


def test_a_corrupted_block_fails_its_windows_and_no_others(tmp_path: Path):
    values_CHW = noise((1, 256, 384), "uint16")
    path = write(tmp_path / "a.tif", values_CHW, tiled=True, blockxsize=128, blockysize=128, compress="deflate")
    with rasterio.open(path) as dataset:
        offset = int(dataset.get_tag_item("BLOCK_OFFSET_1_0", "TIFF", bidx=1))
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 200)
    with SceneReader(opened(path)) as reader:
        for _ in range(2):  # a failure leaves the reader usable, and is not forgotten
            for row in (0, 128):
                for col in (0, 128, 256):
                    window = Window(row, col, 128, 128)
                    if (row, col) != (0, 128):
                        assert np.array_equal(reader.read(window).values_CHW, values_CHW[:, *window.slices()])
                        continue
                    with pytest.raises(Unreadable, match=rf"{path}: rows 0 to 128, columns 128 to 256: .*TIFFReadEncodedTile"):
                        reader.read(window)
            with pytest.raises(Unreadable):
                reader.read(Window(0, 0, 8, 129))


def test_a_virtual_raster_without_its_source_is_unreadable(tmp_path: Path):
    (tmp_path / "a.vrt").write_text(
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        "<SourceFilename>gone.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with pytest.raises((Refused, Unreadable), match=r"a\.vrt"):
        read(opened(tmp_path / "a.vrt", bands(1)))


def test_a_file_that_has_gone_since_is_refused(tmp_path: Path):
    scene = opened(write(tmp_path / "a.tif", noise((1, 4, 4))))
    (tmp_path / "a.tif").unlink()
    with pytest.raises(Refused, match=r"a\.tif: no such file"):
        SceneReader(scene)


# ---- scaling


def test_raw_numbers_are_refused_by_a_model_of_reflectance(tmp_path: Path):
    values_CHW = np.random.default_rng(3).integers(200, 6000, (1, 300, 300)).astype("uint16")
    wanted = [Band("x0", unit="reflectance", range=(0.0, 0.6))]
    scene = opened(write(tmp_path / "raw.tif", values_CHW), wanted)
    with pytest.raises(
        Refused, match=r"raw.tif: band x0 holds values around \d+, the model was trained on 0 to 0.6 reflectance: set the file's"
    ):
        check_scaling(scene, wanted)
    scaled = opened(write(tmp_path / "scaled.tif", values_CHW, scales=(0.0001,), offsets=(-0.02,)), wanted)
    check_scaling(scaled, wanted)
    check_scaling(opened(write(tmp_path / "real.tif", (values_CHW * 1e-4).astype("float32")), wanted), wanted)


def test_unusual_but_possible_values_are_not_refused(tmp_path: Path):
    """Snow, water and dark scenes lie outside the training range, and are still right."""
    wanted = [Band("x0", range=(100.0, 4000.0))]
    for value in (1, 9000, 30000):
        check_scaling(opened(write(tmp_path / f"{value}.tif", np.full((1, 100, 100), value, "uint16")), wanted), wanted)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 700), (1, 65, 2)], ids=str)
def test_scaling_is_checked_in_scenes_of_any_size(tmp_path: Path, shape: tuple[int, int, int]):
    path = write(tmp_path / "a.tif", np.full(shape, 5000, "uint16"))
    check_scaling(opened(path), bands(1))
    with pytest.raises(Refused):
        check_scaling(opened(path), [Band("x0", range=(0.0, 1.0))])


@pytest.mark.parametrize(("numbers", "fits"), [((1200, 1900), True), ((950, 1100), True), ((200, 900), False)])
def test_an_offset_that_the_numbers_no_longer_have_is_refused(tmp_path: Path, numbers: tuple[int, int], fits: bool):
    """Sentinel-2 as a catalogue lists it that has taken 1000 off and still says -0.1; dark water is near 0 and fits."""
    values_CHW = np.random.default_rng(1).integers(*numbers, (1, 300, 300)).astype(np.uint16)
    path = write(tmp_path / "scene.tif", values_CHW, scales=(1e-4,), offsets=(-0.1,), descriptions=("red",))
    scene = open_scene(Source(str(path), "scene", None, (Asset(path),)), [Band("red")])
    if fits:
        return check_scaling(scene, [Band("red")])
    with pytest.raises(Refused, match=r"after its offset of -0\.1, which seems to have been taken off before"):
        check_scaling(scene, [Band("red")])


def test_a_scene_of_nodata_or_of_broken_blocks_says_nothing_of_its_scaling(tmp_path: Path):
    wanted = [Band("x0", range=(0.0, 1.0))]
    check_scaling(opened(write(tmp_path / "a.tif", np.full((1, 90, 90), 5000, "uint16"), nodata=5000), wanted), wanted)
    path = header_first(write(tmp_path / "made.tif", np.full((1, 256, 256), 5000, "uint16")), tmp_path / "b.tif")
    os.truncate(path, 2000)
    check_scaling(opened(path, wanted), wanted)


# ---- the collection of odd files


def odd_rasters() -> list[Path]:
    sidecars = {".tsv", ".msk", ".tfw", ".xml", ".md"}
    return sorted(path for path in (SHARED_DATA / "odd-rasters").rglob("*") if path.is_file() and path.suffix not in sidecars)


@pytest.mark.skipif(not odd_rasters(), reason=f"{SHARED_DATA / 'odd-rasters'} is not here")
@pytest.mark.parametrize("path", odd_rasters(), ids=lambda path: path.name)
def test_an_odd_file_is_pixels_or_one_line(path: Path):
    """Awkward and malformed files of other projects' tests: opened and read, or refused by name, within a few seconds."""
    try:
        with rasterio.open(path) as dataset:
            count = sum(use != ALPHA for use in dataset.colorinterp)
    except rasterio.errors.RasterioError:
        count = 1
    began = time.monotonic()
    try:
        (source,) = find_sources([str(path)])
        scene = open_scene(source, [Band(f"x{number}", categorical=True) for number in range(min(count, 50))])
        assert time.monotonic() - began < 5
        if scene.block[0] * scene.block[1] > 2**28:
            return  # blocks that alone break the memory limit: the plan refuses them
        window = Window(0, 0, min(scene.grid.height, 2048), min(scene.grid.width, 2048))
        values_CHW, valid_CHW = read(scene, window)
        with rasterio.open(path) as dataset:
            raw_CHW = dataset.read([band.index for band in scene.bands], window=RasterioWindow(0, 0, window.width, window.height))
        assert np.array_equal(values_CHW[valid_CHW], raw_CHW.astype(scene.dtype)[valid_CHW])
        check_scaling(scene, [Band("x", range=(-1e9, 1e9))] * len(scene.bands))
    except (Refused, Unreadable) as failed:
        assert path.name in str(failed) and "\n" not in str(failed)
    assert time.monotonic() - began < 10
