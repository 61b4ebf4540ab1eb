"""The picture opens, shows the scene and the mask over it in the classes' colours, and says which run it is of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from pipeline.geometry.windows import Window
from pipeline.imagery.catalogue import find_sources
from pipeline.imagery.region import Region
from pipeline.models.bundle import Bundle
from pipeline.results.quicklook import BLANK, LINE, LONGEST, MARGIN, SHORTEST, draw_quicklook, quicklook_input_id
from tests.results.scenes import COLOURS, NODATA_VALUE, class_bundle, plan_of, publish, stripes, value_bundle
from tests.toys import HEIGHT, write_scene

GROWTH = 4  # small scenes are drawn so many times larger


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return class_bundle(tmp_path_factory.mktemp("quicklook") / "bundle")


def pictures(page: Path, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The scene, the mask over it, and what is below them, H x W x 3."""
    with Image.open(page) as opened:
        opened.load()
        assert opened.format == "PNG" and opened.mode == "RGB"
        page_HWC = np.asarray(opened).astype(float)
    top = MARGIN + 2 * LINE
    rows = slice(top, top + height)
    return page_HWC[rows, MARGIN : MARGIN + width], page_HWC[rows, 2 * MARGIN + width : 2 * MARGIN + 2 * width], page_HWC[top + height :]


def colour(number: int) -> np.ndarray:
    return np.array([int(COLOURS[number % 4][at : at + 2], 16) for at in (1, 3, 5)], float)


def count(image_HWC: np.ndarray, wanted: np.ndarray | tuple[int, ...]) -> int:
    return int((image_HWC == np.array(wanted)).all(axis=2).sum())


@pytest.mark.parametrize("shape", [(60, 80), (160, 64)], ids=str)
def test_the_mask_is_drawn_in_the_colours_of_its_classes(tmp_path: Path, bundle: Bundle, shape: tuple[int, int]):
    ids_HW = stripes(*shape, corner=12)
    done = publish(tmp_path / "out", bundle, ids_HW, datetime="2015-08-18T17:58:00Z")
    growth = min(GROWTH, SHORTEST // max(shape))
    large_HW = np.kron(ids_HW, np.ones((growth, growth), np.uint8))
    scene_HWC, over_HWC, below_HWC = pictures(done.folder / "quicklook.png", *large_HW.shape)
    assert (scene_HWC[large_HW == NODATA_VALUE] == BLANK).all() and (over_HWC[large_HW == NODATA_VALUE] == BLANK).all()
    shade_HW = scene_HWC.mean(axis=2)
    for value in range(4):
        mixed = 0.65 * colour(value) + 0.35 * shade_HW[large_HW == value][:, None]
        assert np.abs(over_HWC[large_HW == value] - mixed).max() <= 1
        assert count(below_HWC, colour(value)) > 200, "and stands in the legend"
    brightness = [shade_HW[large_HW == value].mean() for value in range(4)]
    assert brightness == sorted(brightness) and brightness[0] < 5 and brightness[3] > 250, "stretched over the scene's values"


@pytest.mark.parametrize("names", [["nir", "blue", "green", "red"], ["red", "green", "blue", "nir"], ["a", "b", "c"], ["a", "b"]], ids=str)
def test_a_scene_of_several_bands_is_shown_in_its_colours(tmp_path: Path, names: list[str]):
    """Red, green and blue wherever a model takes them; else its first three bands, or the first in grey."""
    values_CHW = np.full((len(names), 60, 60), 10, np.uint8)
    for number in range(len(names)):
        values_CHW[number, number * 15 : number * 15 + 15] = 200
    path = write_scene(tmp_path / "scene.tif", values_CHW, descriptions=names)
    bundle = class_bundle(tmp_path / "bundle", bands=names)
    plan = plan_of(find_sources([str(path)])[0], bundle)
    mask = write_scene(tmp_path / "mask.tif", np.zeros((1, 60, 60), np.uint8), nodata=255)
    draw_quicklook(plan, bundle, mask, [], tmp_path / "page.png", "i")
    scene_HWC, _, _ = pictures(tmp_path / "page.png", 240, 240)
    shown = [names.index(name) for name in ("red", "green", "blue")] if "red" in names else [0, 1, 2] if len(names) > 2 else [0, 0, 0]
    for number in range(len(names)):
        assert scene_HWC[number * 60 + 30, 100].tolist() == [255 if number == band else 0 for band in shown]


def test_a_picture_carries_its_input(tmp_path: Path, bundle: Bundle):
    done = publish(tmp_path / "out", bundle, stripes(20, 20))
    assert quicklook_input_id(done.folder / "quicklook.png") == done.ledger.attempt
    (tmp_path / "not.png").write_text("no picture")
    Image.new("RGB", (4, 4)).save(tmp_path / "other.png")
    assert [quicklook_input_id(tmp_path / name) for name in ("not.png", "other.png", "gone.png")] == [None] * 3


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (1000, 1200)], ids=str)
def test_odd_shapes_are_drawn_within_a_page(tmp_path: Path, bundle: Bundle, shape: tuple[int, int]):
    done = publish(tmp_path / "out", bundle, stripes(*shape))
    longest = max(shape)
    scale = min(GROWTH, LONGEST / longest)
    height, width = (max(1, round(length * scale)) for length in shape)
    scene_HWC, over_HWC, below_HWC = pictures(done.folder / "quicklook.png", height, width)
    assert scene_HWC.shape == over_HWC.shape == (height, width, 3)
    assert below_HWC.shape[0] >= 2 * LINE and below_HWC.shape[1] >= 640
    assert (over_HWC != BLANK).any() and count(below_HWC, colour(0)) > 200


def test_only_the_region_is_drawn(tmp_path: Path, bundle: Bundle):
    region = Region(Window(512, 0, 188, 512))
    done = publish(tmp_path / "out", bundle, stripes(700, 600), region=region)
    scene_HWC, over_HWC, _ = pictures(done.folder / "quicklook.png", 188, 512)
    assert (scene_HWC != BLANK).any(axis=2).all() and (over_HWC != BLANK).any(axis=2).all()


@pytest.mark.parametrize("broken", ["gone", "cut", "other bands"])
def test_a_scene_that_cannot_be_read_any_more_is_blank_and_its_mask_still_drawn(tmp_path: Path, bundle: Bundle, broken: str):
    done = publish(tmp_path / "out", bundle, stripes(60, 80))
    path = tmp_path / "scene.tif"
    if broken == "gone":
        path.unlink()
    elif broken == "cut":
        path.write_bytes(path.read_bytes()[:500])
    else:
        path.write_text("no raster")
    draw_quicklook(done.plan, bundle, done.folder / "mask.tif", done.published.rows, tmp_path / "page.png", "i")
    scene_HWC, over_HWC, below_HWC = pictures(tmp_path / "page.png", 240, 320)
    assert (scene_HWC == BLANK).all() and (over_HWC != BLANK).any(axis=2).all()
    assert count(below_HWC, colour(3)) > 200


def test_nothing_but_nodata_is_grey_and_says_so(tmp_path: Path, bundle: Bundle):
    done = publish(tmp_path / "out", bundle, stripes(40, 40, corner=40))
    scene_HWC, over_HWC, _ = pictures(done.folder / "quicklook.png", 160, 160)
    assert (scene_HWC == BLANK).all() and (over_HWC == BLANK).all()


def test_long_names_stay_in_their_column(tmp_path: Path):
    names = ["Deciduous broadleaved forest, managed, on slopes above 1500 m", "W" * 300, "line\nbreak", "", "Žito ozimé", "water"]
    long = class_bundle(tmp_path / "bundle", names)
    done = publish(tmp_path / "out", long, stripes(30, 30, classes=6), name="a very long name of a scene " * 6)
    _, _, below_HWC = pictures(done.folder / "quicklook.png", 120, 120)
    ink = (below_HWC < 100).all(axis=2)
    column = below_HWC.shape[1] // 2
    assert not ink[: 3 * LINE, column - 12 : column].any(), "the left column ends before the right one begins"
    assert not ink[:, -4:].any()


def test_a_legend_of_250_classes(tmp_path: Path):
    many = class_bundle(tmp_path / "bundle", [f"class {number}" for number in range(250)])
    done = publish(tmp_path / "out", many, stripes(50, 50, classes=90))
    _, _, below_HWC = pictures(done.folder / "quicklook.png", 200, 200)
    assert below_HWC.shape[0] > 125 * LINE


def test_the_same_run_draws_the_same_bytes(tmp_path: Path, bundle: Bundle):
    done = publish(tmp_path / "out", bundle, stripes(50, 60))
    draw_quicklook(done.plan, bundle, done.folder / "mask.tif", done.published.rows, tmp_path / "again.png", done.ledger.attempt)
    assert (tmp_path / "again.png").read_bytes() == (done.folder / "quicklook.png").read_bytes()


# ---- values


@pytest.mark.parametrize("unit", ["m", "", "tonnes of dry matter " * 20])
def test_values_are_drawn_in_the_colours_of_their_ramp(tmp_path: Path, unit: str):
    target = replace(HEIGHT, unit=unit, mean=0.0, std=1.0, low=0.5, high=2.5)
    ids_HW = stripes(60, 80, corner=12)
    done = publish(tmp_path / "out", value_bundle(tmp_path / "bundle", target), ids_HW)
    large_HW = np.kron(ids_HW, np.ones((GROWTH, GROWTH), np.uint8))
    scene_HWC, values_HWC, below_HWC = pictures(done.folder / "quicklook.png", *large_HW.shape)
    assert (scene_HWC[large_HW == NODATA_VALUE] == BLANK).all() and (values_HWC[large_HW == NODATA_VALUE] == BLANK).all()
    viridis = np.round(255 * colormaps["viridis"](np.linspace(0, 1, 256))[:, :3])
    for value, place in ((0, 0), (1, 63), (2, 191), (3, 255)):
        assert (values_HWC[large_HW == value] == viridis[place]).all(), "below and above the ramp it is as at its ends"
    bar_WC = below_HWC[MARGIN + LINE + 9, MARGIN:-MARGIN]
    assert (bar_WC[0] == viridis[0]).all() and (bar_WC[-1] == viridis[-1]).all()
    assert np.abs(bar_WC[len(bar_WC) // 2] - viridis[128]).max() <= 4
    assert count(below_HWC[:MARGIN], (255, 255, 255)) == MARGIN * below_HWC.shape[1], "nothing is drawn over the pictures' edge"


def test_a_scene_without_any_value_is_drawn_too(tmp_path: Path):
    done = publish(tmp_path / "out", value_bundle(tmp_path / "bundle"), stripes(9, 9, corner=9), crs=None)
    _, values_HWC, _ = pictures(done.folder / "quicklook.png", 36, 36)
    assert (values_HWC == BLANK).all()
