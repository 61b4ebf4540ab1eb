"""A mask of clouds takes pixels from a scene, on whatever grid it lies; what it says nothing of is not shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rasterio.transform import Affine

from pipeline.errors import Refused, Unreadable
from pipeline.geometry.windows import Window
from pipeline.imagery.bands import Band
from pipeline.imagery.catalogue import Asset, CloudMask, Source
from pipeline.imagery.raster import Scene, check_unchanged, open_scene
from pipeline.imagery.reader import SceneReader, preview
from tests.toys import UTM, smooth_noise, write_scene

VALUES_CHW = smooth_noise(3, (2, 120, 90)).clip(1)


def scene_with(folder: Path, classes_HW: np.ndarray, hidden: tuple[int, ...], **profile: object) -> Scene:
    image = write_scene(folder / "scene.tif", VALUES_CHW, descriptions=["red", "nir"])
    mask = write_scene(folder / "scl.tif", classes_HW[None].astype(np.uint8), **profile)
    source = Source("scene", "scene", None, (Asset(image),), clouds=CloudMask(str(mask), hidden))
    return open_scene(source, [Band("red"), Band("nir")])


def test_hidden_classes_are_nodata_in_every_band(tmp_path: Path):
    classes_HW = np.random.default_rng(1).integers(0, 12, (120, 90))
    scene = scene_with(tmp_path, classes_HW, (0, 3, 8, 9))
    hidden_HW = np.isin(classes_HW, (0, 3, 8, 9))
    window = Window(7, 11, 64, 50)
    with SceneReader(scene) as reader:
        pixels = reader.read(window)
    inside = window.slices()
    assert pixels.valid_CHW is not None and (pixels.valid_CHW == ~hidden_HW[inside]).all()
    assert (pixels.values_CHW == np.where(hidden_HW[inside], 0, VALUES_CHW[:, *inside])).all()


def test_a_coarser_mask_is_laid_over_by_the_nearest(tmp_path: Path):
    classes_HW = np.random.default_rng(2).integers(0, 12, (60, 45))
    coarse = UTM["transform"] * Affine.scale(2)  # type: ignore[operator]
    scene = scene_with(tmp_path, classes_HW, (3,), transform=coarse)
    hidden_HW = np.kron(classes_HW == 3, np.ones((2, 2), bool))
    with SceneReader(scene) as reader:
        pixels = reader.read(Window(0, 0, 120, 90))
    assert pixels.valid_CHW is not None and (pixels.valid_CHW == ~hidden_HW).all()


def test_where_the_mask_ends_nothing_is_known(tmp_path: Path):
    scene = scene_with(tmp_path, np.full((40, 90), 4), (3,))
    with SceneReader(scene) as reader:
        pixels = reader.read(Window(0, 0, 120, 90))
    assert pixels.valid_CHW is not None and pixels.valid_CHW[:, :40].all() and not pixels.valid_CHW[:, 40:].any()


def test_its_own_nodata_is_hidden(tmp_path: Path):
    classes_HW = np.full((120, 90), 4)
    classes_HW[:10] = 255
    scene = scene_with(tmp_path, classes_HW, (), nodata=255)
    with SceneReader(scene) as reader:
        pixels = reader.read(Window(0, 0, 20, 90))
    assert pixels.valid_CHW is not None and not pixels.valid_CHW[:, :10].any() and pixels.valid_CHW[:, 10:].all()
    _, valid_CHW = preview(scene, Window(0, 0, 120, 90), (12, 9))
    assert not valid_CHW[:, 0].any() and valid_CHW[:, 1:].all()


def test_a_mask_that_changes_makes_another_scene(tmp_path: Path):
    scene = scene_with(tmp_path, np.full((120, 90), 4), (3,))
    again = scene_with(tmp_path, np.full((120, 90), 5), (3,))
    assert scene.input_id != again.input_id
    with pytest.raises(Unreadable, match="changed while it was read"):
        check_unchanged(scene)


def test_what_is_no_mask_is_refused(tmp_path: Path):
    with pytest.raises(Refused, match="one of them has no CRS"):
        scene_with(tmp_path, np.full((10, 10), 4), (3,), crs=None)
    image = write_scene(tmp_path / "scene.tif", VALUES_CHW, descriptions=["red", "nir"])
    source = Source("scene", "scene", None, (Asset(image),), clouds=CloudMask(str(image), (3,)))
    with pytest.raises(Refused, match="must have one band of classes"):
        open_scene(source, [Band("red")])
