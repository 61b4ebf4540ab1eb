"""Pixels that are not there: blocks that were never written, and blocks that are broken, are never zeros or noise."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.io import DatasetReader
from rasterio.shutil import copy
from rasterio.transform import Affine
from rasterio.windows import Window as RasterioWindow

from pipeline.errors import Refused, Unreadable
from pipeline.geometry.windows import Window
from pipeline.imagery.bands import Band
from pipeline.imagery.catalogue import Asset, BandEntry, Source
from pipeline.imagery.raster import Scene, open_scene
from pipeline.imagery.reader import SceneReader
from tests.toys import UTM, smooth_noise, write_scene

HEIGHT, WIDTH = 200, 260
LAYOUTS = {
    "tiles": {"tiled": True, "blockxsize": 64, "blockysize": 48, "compress": "deflate"},
    "tiles by band": {"tiled": True, "blockxsize": 64, "blockysize": 48, "interleave": "band", "bigtiff": "YES"},
    "strips": {"blockysize": 16},
    "rows": {"blockysize": 1, "compress": "lzw"},
}


def opened(path: Path, count: int) -> Scene:
    return open_scene(Source(str(path), path.stem, None, (Asset(path),)), [Band(f"x{number}") for number in range(count)])


def sparse(path: Path, layout: dict[str, object], count: int = 2) -> tuple[Path, np.ndarray, np.ndarray]:
    """A file in which some blocks were never written; its values, with real zeros among them, and what was written of them."""
    values_CHW = smooth_noise(1, (count, HEIGHT, WIDTH)) // 2
    values_CHW[:, 100:140, :] = 0
    written_HW = np.zeros((HEIGHT, WIDTH), bool)
    profile = {"driver": "GTiff", "dtype": "uint8", "count": count, "height": HEIGHT, "width": WIDTH, **UTM, "sparse_ok": True, **layout}
    with rasterio.open(path, "w", **profile) as dataset:
        for number, (_, block) in enumerate(dataset.block_windows(1)):
            if number % 3:
                inside = np.s_[block.row_off : block.row_off + block.height, block.col_off : block.col_off + block.width]
                values = np.maximum(values_CHW[:, *inside], 1)
                values[:, 0, 0] = 0  # a block that begins with a real zero
                values_CHW[:, *inside] = values
                dataset.write(values, window=block)
                written_HW[inside] = True
    return path, values_CHW, written_HW


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_that_were_never_written_are_nodata_in_every_window(tmp_path: Path, layout: str):
    path, values_CHW, written_HW = sparse(tmp_path / "a.tif", LAYOUTS[layout])
    with rasterio.open(path) as dataset:
        assert not dataset.read()[:, ~written_HW].any(), "GDAL reads zeros there, without a word"
    scene = opened(path, 2)
    with SceneReader(scene) as reader:
        for window in (Window(0, 0, HEIGHT, WIDTH), Window(7, 11, 90, 130), Window(63, 65, 1, 1), Window(150, 190, 90, 90)):
            read = reader.read(window)
            inside = window.intersection(scene.grid.window).relative_to(Window(0, 0, 0, 0)).slices()
            height, width = written_HW[inside].shape
            for band in range(2):
                valid_HW = read.valid_CHW[band, :height, :width]
                assert np.array_equal(valid_HW, written_HW[inside])
                assert np.array_equal(read.values_CHW[band, :height, :width][valid_HW], values_CHW[band][inside][valid_HW])


def test_an_unwritten_block_of_a_file_with_a_nodata_value_is_nodata_too(tmp_path: Path):
    path, _, written_HW = sparse(tmp_path / "a.tif", {**LAYOUTS["tiles"], "nodata": 255}, count=1)
    scene = opened(path, 1)
    with SceneReader(scene) as reader:
        assert np.array_equal(reader.read(scene.grid.window).valid_CHW[0], written_HW)


@pytest.mark.parametrize("compress", ["none", "deflate", "jpeg"])
def test_a_long_file_of_a_single_strip_has_no_holes(tmp_path: Path, compress: str):
    """GDAL shows it as rows, of which only the first has a place in the file."""
    values_CHW = np.zeros((1, 3000, 40), np.uint8)
    path = write_scene(tmp_path / "a.tif", values_CHW, blockysize=3000, compress=compress)
    with SceneReader(opened(path, 1)) as reader:
        assert reader.read(Window(1000, 0, 512, 40)).valid_CHW is None


def test_an_unwritten_block_on_another_grid_is_refused(tmp_path: Path):
    first = write_scene(tmp_path / "first.tif", smooth_noise(1, (1, 100, 130)), transform=UTM["transform"] * Affine.scale(2))
    path, *_ = sparse(tmp_path / "second.tif", LAYOUTS["tiles"], count=1)
    assets = tuple(Asset(file, (BandEntry((name,)),)) for name, file in (("a", first), ("b", path)))
    with pytest.raises(Refused, match=r"has blocks that were never written: say what they hold \(gdal_edit.py -a_nodata 0\)"):
        open_scene(Source("s", "s", None, assets), [Band("a"), Band("b")])


def end_early(path: Path) -> None:
    """Marks of the end of an image in the middle of the compressed data: what comes after is not there."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = b"\xff\xd9" * 4
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["tiff", "jpg"])
def test_jpeg_data_that_end_early_are_an_unreadable_window_however_often_it_is_read(tmp_path: Path, kind: str):
    """libjpeg warns once and goes on with grey; GDAL's cache then has the block as if it were good."""
    made = write_scene(tmp_path / "made.tif", smooth_noise(1, (3, 512, 512)), tiled=True, blockxsize=256, blockysize=256, compress="jpeg")
    path = made
    if kind == "jpg":
        path = tmp_path / "a.jpg"
        copy(made, path, driver="JPEG")
        path.with_name("a.jpg.aux.xml").unlink(missing_ok=True)
    with rasterio.open(path) as dataset:
        whole_CHW = dataset.read()
    end_early(path)
    scene, failed = opened(path, 3), 0
    with SceneReader(scene) as reader:
        for row, col in [(row, col) for row in (0, 256) for col in (0, 256)] * 2:
            try:
                read_CHW = reader.read(Window(row, col, 256, 256)).values_CHW
                assert np.array_equal(read_CHW, whole_CHW[:, row : row + 256, col : col + 256])
            except Unreadable as error:
                assert "a.jpg: rows" in str(error) or "made.tif: rows" in str(error)
                failed += 1
    assert failed and failed % 2 == 0, "the second time as the first"


def test_bytes_too_many_in_a_jpeg_harm_nothing(tmp_path: Path):
    """As some cameras leave them before the end mark."""
    path = tmp_path / "a.jpg"
    copy(write_scene(tmp_path / "made.tif", smooth_noise(1, (3, 64, 64))), path, driver="JPEG")
    path.with_name("a.jpg.aux.xml").unlink(missing_ok=True)
    with rasterio.open(path) as dataset:
        whole_CHW = dataset.read()
    content = path.read_bytes()
    assert content.endswith(b"\xff\xd9")
    path.write_bytes(content[:-2] + bytes(4) + content[-2:])
    scene = opened(path, 3)
    with SceneReader(scene) as reader:
        assert np.array_equal(reader.read(scene.grid.window).values_CHW, whole_CHW)
    assert not logging.getLogger("rasterio._err").handlers, "nothing stays behind"


def test_the_check_costs_next_to_nothing(tmp_path: Path):
    """Counted, not timed: real values ask for no block, zeros for one a block."""
    asked: list[str] = []

    class Counting(DatasetReader):
        def get_tag_item(self, *arguments: object, **more: object) -> object:
            asked.append(str(arguments[0]))
            return super().get_tag_item(*arguments, **more)

    from pipeline.imagery.damage import unwritten

    for values_CHW, expected in ((smooth_noise(1, (1, 512, 512)) // 2 + 1, 0), (np.zeros((1, 512, 512), np.uint8), 16)):
        path = write_scene(tmp_path / "a.tif", values_CHW, tiled=True, blockxsize=128, blockysize=128)
        with Counting(str(path)) as dataset:
            plane_HW = dataset.read(1, window=RasterioWindow(0, 0, 512, 512))
            assert unwritten(dataset, 1, Window(0, 0, 512, 512), plane_HW) is None
        assert len(asked) == expected
