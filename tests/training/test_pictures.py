"""Pictures are PNGs that hold what they should: images, the classes' colours over them, and curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.models.bundle import ClassEntry
from pipeline.training.classes import ClassTable, LabelClass
from pipeline.training.pictures import ClassPaint, Example, Panel, draw_curves, draw_samples, over

TABLE = ClassTable(
    tuple(LabelClass(ClassEntry(id, f"class {id}", color), (id,)) for id, color in enumerate(["#FF0000", "#00FF00", "#0000FF"]))
)
PAINT = ClassPaint(TABLE)


def example(bands: int, height: int, width: int, predicted: bool = False, name: str = "one") -> Example:
    random = np.random.default_rng(0)
    labels_HW = random.choice([0, 1, 2, 255], (height, width)).astype(np.uint8)
    image_CHW = random.normal(size=(bands, height, width)).astype(np.float32)
    return Example(name, image_CHW, labels_HW, labels_HW if predicted else None)


def opened(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.mode == "RGB"
        return np.asarray(picture).astype(int)


def test_a_class_colours_its_pixels_and_ignored_ones_are_grey() -> None:
    rgb_HWC = np.full((1, 4, 3), 100, np.uint8)
    shown = over(rgb_HWC, np.array([[0, 1, 2, 255]], np.uint8), TABLE)[0].astype(int)
    for number in range(3):
        assert shown[number].argmax() == number and (np.delete(shown[number], number) < 100).all()
    assert np.ptp(shown[3]) == 0 and shown.dtype == int and over(rgb_HWC, np.zeros((1, 4), np.uint8), TABLE).dtype == np.uint8


@pytest.mark.parametrize("bands", [1, 2, 3, 12])
@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (700, 3), (64, 64), (300, 900)])
def test_any_number_of_bands_and_any_shape_is_drawn(tmp_path: Path, bands: int, shape: tuple[int, int]) -> None:
    draw_samples(tmp_path / "new" / "sheet.png", [example(bands, *shape, predicted=True)], PAINT)
    assert opened(tmp_path / "new" / "sheet.png").size
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sheet.png"]  # nothing temporary is left


def areas(page_HWC: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(page_HWC - colour).max(axis=2) <= 1).sum())


@pytest.mark.parametrize("predicted", [False, True])
def test_each_layer_covers_its_part_of_the_sheet(tmp_path: Path, predicted: bool) -> None:
    """A black image of 300 x 300 px, labelled all red, predicted all green: three squares, and nothing of a fourth."""
    zeros = np.zeros((300, 300), np.uint8)
    items = [Example(f"dark {n}", np.full((3, 300, 300), -9, np.float32), zeros, zeros + 1 if predicted else None) for n in range(5)]
    draw_samples(tmp_path / "sheet.png", items, PAINT)
    page = opened(tmp_path / "sheet.png")
    red, green, blue = (tuple(over(np.zeros((1, 1, 3), np.uint8), np.array([[n]], np.uint8), TABLE)[0, 0].tolist()) for n in range(3))
    assert areas(page, (0, 0, 0)) == areas(page, red) == 5 * 300 * 300
    assert areas(page, green) == (5 * 300 * 300 if predicted else 0) and areas(page, blue) == 0
    for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)):
        assert areas(page, colour) > 100  # the legend


def test_many_classes_and_long_names_fit(tmp_path: Path) -> None:
    table = ClassTable(tuple(LabelClass(ClassEntry(id, f"a class with a long name {id}", "#123456"), (id,)) for id in range(255)))
    draw_samples(tmp_path / "sheet.png", [example(3, 40, 40, name="ä/日本/" + "x" * 300), example(3, 20, 60)], ClassPaint(table))
    page = opened(tmp_path / "sheet.png")
    assert areas(page, (0x12, 0x34, 0x56)) > 255 * 100


def test_a_sheet_replaces_the_one_before(tmp_path: Path) -> None:
    for size in (20, 300):
        draw_samples(tmp_path / "sheet.png", [example(3, size, 300)], PAINT)
    assert opened(tmp_path / "sheet.png").shape[0] > 300


@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_curves_are_drawn_whatever_is_unknown(tmp_path: Path, epochs: int) -> None:
    """A class that is nowhere has an IoU of NaN."""
    numbers = list(range(1, epochs + 1))
    curves = {"mean iou": [1 - 1 / n for n in numbers], "IoU none": [float("nan")] * epochs}
    draw_curves(tmp_path / "curves.png", numbers, [1 / n for n in numbers], [Panel("scores", curves, (0, 1))])
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG" and len(np.unique(np.asarray(picture.convert("L")))) > 3


def test_curves_follow_their_numbers(tmp_path: Path) -> None:
    for name, loss in (("a", [3.0, 2.0, 1.0]), ("b", [3.0, 2.0, 1.0]), ("c", [1.0, 2.0, 3.0])):
        draw_curves(tmp_path / f"{name}.png", [1, 2, 3], loss, [Panel("scores", {"accuracy": [0.1, 0.5, 0.7]}, (0, 1))])
    pictures = [np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "abc"]
    assert (pictures[0] == pictures[1]).all() and (pictures[0] != pictures[2]).any()
