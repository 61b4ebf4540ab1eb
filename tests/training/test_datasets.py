"""Labelled scenes: image and labels on one grid, bands by name, and only what belongs to a set has labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from pipeline.errors import Refused, Unreadable
from pipeline.geometry.windows import Window
from pipeline.imagery.bands import Band
from pipeline.training.classes import table_of
from pipeline.training.datasets import as_pairs, open_labelled
from tests.toys import SHARED, write_scene

HEIGHT, WIDTH = 45, 60
NODATA = 65535
CLASSES = table_of([0, 1, 2], coloured=False)
DUBAI = SHARED / "data" / "dubai-aerial"
RANDOM = np.random.default_rng(1)
VALUES_CHW = RANDOM.integers(100, 1000, (2, HEIGHT, WIDTH)).astype(np.uint16)
VALUES_CHW[1, 20:30, 40:50] = NODATA
LABELS_HW = RANDOM.integers(0, 3, (HEIGHT, WIDTH)).astype(np.uint8)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """Two bands of uint16, with a hole in the second; its labels are in labels.tif."""
    write_scene(tmp_path / "labels.tif", LABELS_HW[None], nodata=255)
    return write_scene(tmp_path / "scene.tif", VALUES_CHW, nodata=NODATA, descriptions=["red", "nir"])


def labels_of(scene: Path) -> str:
    return str(scene.with_name("labels.tif"))


def photo(path: Path, *shape: int, seed: int = 0, **saved: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)).save(path, **saved)
    return path


def mask(path: Path, values_HW: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values_HW).save(path)
    return path


def test_a_block_is_the_files_values_and_labels(scene: Path) -> None:
    (item,) = open_labelled(str(scene), labels=labels_of(scene))
    block = item.read(item.scene.grid.window)
    assert (block.valid_CHW == (VALUES_CHW != NODATA)).all()
    assert (block.physical_CHW == np.where(block.valid_CHW, VALUES_CHW, 0)).all() and block.physical_CHW.dtype == np.float32
    assert (block.labels_HW == np.where(block.valid_CHW.all(axis=0), LABELS_HW, 255)).all()
    assert (item.read_labels(item.scene.grid.window) == LABELS_HW).all()


@pytest.mark.parametrize("window", [Window(0, 37, 45, 11), Window(13, 5, 1, 1), Window(25, 45, 40, 40), Window(44, 59, 3, 2)])
def test_a_block_read_alone_is_that_part_of_the_whole(scene: Path, window: Window) -> None:
    """Beyond the lower and right edge nothing is valid and nothing has a label."""
    (item,) = open_labelled(str(scene), labels=labels_of(scene))
    whole, part = item.read(Window(0, 0, 100, 100)), item.read(window)
    for name in ("physical_CHW", "valid_CHW", "labels_HW"):
        assert (getattr(part, name) == getattr(whole, name)[..., *window.slices()]).all()
    assert not whole.valid_CHW[:, HEIGHT:].any() and not whole.valid_CHW[..., WIDTH:].any()
    assert (whole.labels_HW[HEIGHT:] == 255).all() and (whole.labels_HW[:, WIDTH:] == 255).all()


def test_only_areas_that_are_not_excluded_have_labels(scene: Path) -> None:
    (item,) = open_labelled(str(scene), labels=labels_of(scene))
    part = replace(item, areas=(Window(0, 0, 20, 60), Window(30, 10, 10, 10)), excluded=(Window(15, 0, 20, 15),))
    expected_HW = np.full((HEIGHT, WIDTH), 255)
    expected_HW[:20] = LABELS_HW[:20]
    expected_HW[30:40, 10:20] = LABELS_HW[30:40, 10:20]
    expected_HW[15:35, :15] = 255
    assert (part.read_labels(item.scene.grid.window) == expected_HW).all()
    assert (part.read(item.scene.grid.window).physical_CHW == item.read(item.scene.grid.window).physical_CHW).all()


@pytest.mark.parametrize("shape", [(3, 5), (1024, 1), (2500, 1030)])
def test_pieces_cover_the_areas_once(tmp_path: Path, shape: tuple[int, int]) -> None:
    image = write_scene(tmp_path / "wide.tif", np.zeros((1, *shape), np.uint8))
    (item,) = open_labelled(str(image), labels=str(image), classes=CLASSES)
    halves = (Window(0, 0, shape[0] // 2, shape[1]), Window(shape[0] // 2, 0, shape[0] - shape[0] // 2, shape[1]))
    for areas in (item.areas, halves):
        seen = np.zeros(shape, int)
        for piece in replace(item, areas=areas).pieces():
            assert max(piece.height, piece.width) <= 1024
            seen[piece.slices()] += 1
        assert (seen == 1).all()


def test_physical_values_follow_the_files_scale_and_offset(scene: Path) -> None:
    with rasterio.open(scene, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.5, 2.0), (-3.0, 0.0)
    (item,) = open_labelled(str(scene), labels=labels_of(scene))
    block = item.read(item.scene.grid.window)
    np.testing.assert_allclose(block.physical_CHW[0], VALUES_CHW[0] * 0.5 - 3, rtol=1e-6)
    assert (block.physical_CHW[1][VALUES_CHW[1] == NODATA] == 0).all()


def test_a_missing_value_is_normalised_to_its_bands_mean(scene: Path) -> None:
    (item,) = open_labelled(str(scene), labels=labels_of(scene))
    block = item.read(Window(0, 0, HEIGHT + 3, WIDTH))
    image_CHW = block.normalised([Band("red", mean=500, std=100), Band("nir", mean=300, std=50)]).numpy()
    assert (image_CHW[~block.valid_CHW] == 0).all()
    expected_CHW = (VALUES_CHW - np.array([500.0, 300.0])[:, None, None]) / np.array([100.0, 50.0])[:, None, None]
    np.testing.assert_allclose(image_CHW[:, :HEIGHT], np.where(VALUES_CHW == NODATA, 0, expected_CHW), rtol=1e-5, atol=1e-6)


# --- bands


def test_bands_are_chosen_by_name_and_in_order(scene: Path) -> None:
    def opened(*names: str) -> tuple[list[str], np.ndarray]:
        (item,) = open_labelled(str(scene), labels=labels_of(scene), bands=names or None)
        assert [band.name for band in item.bands] == [band.name for band in item.scene.bands]
        return [band.name for band in item.bands], item.read(item.scene.grid.window).physical_CHW

    names, both_CHW = opened()
    assert names == ["red", "nir"] and opened("NIR")[0] == ["nir"]
    assert (opened("nir", "red")[1] == both_CHW[::-1]).all()
    with pytest.raises(Refused, match=r"scene\.tif: has no band swir; there are red, nir \(--bands\)"):
        opened("red", "swir")


@pytest.mark.parametrize(
    ("descriptions", "count", "expected"),
    [
        (None, 2, ["band_1", "band_2"]),
        (["swir", None], 2, ["swir", "band_2"]),
        (["a", "b", "c", "d", "e"], 5, ["a", "b", "c", "d", "e"]),
        (None, 12, [f"band_{number}" for number in range(1, 13)]),
    ],
)
def test_bands_without_names_get_numbers(tmp_path: Path, descriptions: list[str], count: int, expected: list[str]) -> None:
    write_scene(tmp_path / "labels.tif", LABELS_HW[None])
    image = write_scene(tmp_path / "plain.tif", np.ones((count, HEIGHT, WIDTH), np.int16), descriptions=descriptions)
    (item,) = open_labelled(str(image), labels=labels_of(image))
    assert [band.name for band in item.bands] == expected
    assert item.read(Window(0, 0, 4, 4)).physical_CHW.shape == (count, 4, 4)


@pytest.mark.parametrize(
    ("alpha", "expected"), [(None, ["red", "green", "blue"]), ("Alpha", ["red", "green", "blue"]), ("nir", ["red", "green", "blue", "nir"])]
)
def test_an_alpha_band_tells_what_is_seen_unless_it_is_named_otherwise(tmp_path: Path, alpha: str | None, expected: list[str]) -> None:
    values_CHW = np.full((4, HEIGHT, WIDTH), 9, np.uint8)
    values_CHW[3, :5] = 0
    names = ["red", "green", "blue", alpha]
    image = write_scene(tmp_path / "rgba.tif", values_CHW, photometric="RGB", alpha="yes", descriptions=names if alpha else None)
    write_scene(tmp_path / "labels.tif", LABELS_HW[None])
    (item,) = open_labelled(str(image), labels=labels_of(image))
    assert [band.name for band in item.bands] == expected
    expected_HW = LABELS_HW.copy()
    if len(expected) == 3:
        expected_HW[:5] = 255
    assert (item.read(item.scene.grid.window).labels_HW == expected_HW).all()


def test_photos_of_several_formats_are_one_set(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a b.JPG", HEIGHT, WIDTH, 3, format="JPEG")
    photo(tmp_path / "images" / "c.png", 31, 27, 4)
    photo(tmp_path / "images" / "d.tiff", 64, 20, 3)
    for name, shape in (("a b_mask", (HEIGHT, WIDTH)), ("c_mask", (31, 27)), ("d_mask", (64, 20))):
        mask(tmp_path / "masks" / f"{name}.png", np.resize(LABELS_HW, shape))
    items = open_labelled(str(tmp_path))
    assert [item.name for item in items] == ["images/a b.JPG", "images/c.png", "images/d.tiff"]
    assert all([band.name for band in item.bands] == ["red", "green", "blue"] for item in items)
    assert items[1].table.names == ["class 0", "class 1", "class 2"]


def test_an_image_with_other_bands_than_the_first_is_refused_by_name(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.png", HEIGHT, WIDTH, 3)
    photo(tmp_path / "images" / "grey.png", HEIGHT, WIDTH)
    for name in ("a", "grey"):
        mask(tmp_path / "masks" / f"{name}.png", LABELS_HW)
    with pytest.raises(Refused, match=r"grey\.png: has 1 band without names, the model needs 3"):
        open_labelled(str(tmp_path))


def test_a_stac_item_tells_names_and_scaling(scene: Path) -> None:
    said = [{"name": "B4", "eo:common_name": "red", "raster:scale": 0.1}, {"name": "B5", "eo:common_name": "nir08"}]
    assets = {"image": {"href": scene.name, "roles": ["data"], "bands": said}, "truth": {"href": "labels.tif", "roles": ["labels"]}}
    path = scene.with_name("item.json")
    path.write_text(json.dumps({"type": "Feature", "id": "one", "properties": {}, "assets": assets}))
    (item,) = open_labelled(str(path), labels=labels_of(scene))
    assert item.bands == (Band("B4", common_name="red"), Band("B5", common_name="nir08"))
    np.testing.assert_allclose(
        item.read(Window(0, 0, 9, 9)).physical_CHW, VALUES_CHW[:, :9, :9] * np.array([0.1, 1])[:, None, None], rtol=1e-6
    )
    (chosen,) = open_labelled(str(path), labels=labels_of(scene), bands=["nir08"])
    assert chosen.bands == (Band("B5", common_name="nir08"),)


# --- several sources, and tables


def test_several_sources_are_one_set_whose_names_tell_them_apart(tmp_path: Path) -> None:
    for place in ("Tile 1", "Tile 2"):
        photo(tmp_path / place / "images" / "part.png", HEIGHT, WIDTH, 3)
        mask(tmp_path / place / "masks" / "part.png", LABELS_HW)
    items = open_labelled([str(tmp_path / "Tile 1"), str(tmp_path / "Tile 2")])
    assert [item.name for item in items] == ["Tile 1/images/part.png", "Tile 2/images/part.png"]
    assert [(pair.name, pair.labels) for pair in as_pairs(items)] == [
        (f"{place}/images/part.png", tmp_path / place / "masks" / "part.png") for place in ("Tile 1", "Tile 2")
    ]


def test_without_a_table_the_values_of_all_masks_are_the_classes(tmp_path: Path) -> None:
    for name, values in (("a", [3, 7]), ("b", [7, 200])):
        photo(tmp_path / "images" / f"{name}.png", HEIGHT, WIDTH)
        mask(tmp_path / "masks" / f"{name}.png", np.array(values, np.uint8)[LABELS_HW % 2])
    items = open_labelled(str(tmp_path), ignored=[200])
    assert items[0].table is items[1].table and items[0].table.names == ["class 3", "class 7"]
    assert (items[1].read_labels(Window(0, 0, HEIGHT, WIDTH)) == np.where(LABELS_HW % 2, 255, 1)).all()


def test_masks_of_different_kinds_need_a_table(tmp_path: Path) -> None:
    for name in ("a", "b"):
        photo(tmp_path / "images" / f"{name}.png", HEIGHT, WIDTH)
    mask(tmp_path / "masks" / "a.png", LABELS_HW)
    mask(tmp_path / "masks" / "b.png", np.stack([LABELS_HW] * 3, axis=2))
    with pytest.raises(Refused, match=r"b\.png: shows colours, .*a\.png holds values"):
        open_labelled(str(tmp_path))


def test_masks_saved_as_jpeg_are_refused(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.png", HEIGHT, WIDTH)
    photo(tmp_path / "masks" / "a.jpg", HEIGHT, WIDTH, 3)
    with pytest.raises(Refused, match=r"a\.jpg: the labels have \d+ colours.*saved as JPEG"):
        open_labelled(str(tmp_path))


@pytest.mark.parametrize("share", [0.4, 0.9])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_a_truncated_image_is_an_error_that_names_it(tmp_path: Path, suffix: str, share: float) -> None:
    image = photo(tmp_path / f"broken.{suffix}", HEIGHT, WIDTH, 3)
    content = image.read_bytes()
    image.write_bytes(content[: int(len(content) * share)])
    mask(tmp_path / "labels.png", LABELS_HW)
    with pytest.raises((Refused, Unreadable), match=rf"broken\.{suffix}"):
        open_labelled(str(image), labels=str(tmp_path / "labels.png"))[0].read(Window(0, 0, HEIGHT, WIDTH))


def test_an_image_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    mask(tmp_path / "labels.png", LABELS_HW)
    with pytest.raises(Refused, match=r"empty\.png: cannot be opened"):
        open_labelled(str(tmp_path / "empty.png"), labels=str(tmp_path / "labels.png"))


@pytest.mark.skipif(not DUBAI.is_dir(), reason="shared/data is not here")
def test_dubais_masks_are_read_in_colours_and_palettes_and_its_own_table_refused() -> None:
    """Tile 1 has RGB masks, Tile 2 palettes; classes.json has other colours than the masks."""
    items = open_labelled([str(DUBAI / "Tile 1"), str(DUBAI / "Tile 2")])
    assert len(items) == 18 and items[0].labels.coloured and len({item.name for item in items}) == 18
    assert {"#8429F6", "#E2A929", "#3C1098", "#FEDD3A", "#6EC1E4"} <= set(items[0].table.names)
    for item in (items[0], items[17]):
        rgb_HWC = np.asarray(Image.open(item.labels.place).convert("RGB")).astype(int)
        found_HW, names = item.read_labels(item.scene.grid.window), np.array(item.table.names)
        assert (names[found_HW] == np.vectorize("#{:06X}".format)(rgb_HWC @ (1 << 16, 1 << 8, 1))).all()
    refused = open_labelled(str(DUBAI / "Tile 1"), classes=str(DUBAI / "classes.json"))[0]
    with pytest.raises(Refused, match=r"image_part_001\.png: holds the colours .*#8429F6.* it has the colours #50E3C2"):
        refused.read_labels(refused.scene.grid.window)
