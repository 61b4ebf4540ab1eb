"""The class table: what it says, what it must not, and what becomes of each label value."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import Refused
from pipeline.models.bundle import ClassEntry
from pipeline.training.classes import ClassTable, LabelClass, colour_name, colour_value, read_classes, table_of

WET = {"id": 0, "name": "wet", "color": "#0000ff", "values": [1, 7]}
DRY = {"name": "dry", "color": "#FFFF00", "values": [4]}
RED, GREEN = {"name": "red", "color": "#ff0000"}, {"name": "green", "color": "#00FF00"}
TABLE = ClassTable((LabelClass(ClassEntry(0, "wet", "#0000FF"), (1, 7)), LabelClass(ClassEntry(1, "dry", "#FFFF00"), (4,))), (9,))


def written(folder: Path, content: object) -> Path:
    path = folder / "classes.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("seed", range(10))
def test_each_value_becomes_its_class_and_nothing_else_does(seed: int) -> None:
    """Against a dictionary, a pixel at a time."""
    random = np.random.default_rng(seed)
    labels_HW, valid_HW = random.choice([1, 4, 7, 9], (13, 17)), random.random((13, 17)) < 0.8
    ids_HW = TABLE.ids(labels_HW, valid_HW, "here")
    meaning = {1: 0, 7: 0, 4: 1, 9: 255}
    assert ids_HW.dtype == np.uint8
    for value, valid, found in zip(labels_HW.ravel(), valid_HW.ravel(), ids_HW.ravel(), strict=True):
        assert found == (meaning[int(value)] if valid else 255)


def test_no_pixel_valid_is_no_pixel_labelled() -> None:
    assert (TABLE.ids(np.full((2, 3), 77), np.zeros((2, 3), bool), "here") == 255).all()


def test_an_unknown_value_is_an_error_that_names_file_value_and_table() -> None:
    with pytest.raises(Refused, match=r"^mask\.png: holds 5, 6, which the class table does not have; it has 1, 7, 4, 9: .*--ignore"):
        TABLE.ids(np.array([[1, 5], [6, 4]]), np.ones((2, 2), bool), "mask.png")
    assert TABLE.ids(np.array([[1, 5]]), np.array([[True, False]]), "mask.png").tolist() == [[0, 255]]  # no value where it is not valid


def test_many_unknown_values_are_counted() -> None:
    with pytest.raises(Refused, match="holds 10, 11, 12, 13, 14, 15, 16, 17 and 12 more,"):
        TABLE.ids_of(range(10, 30), "mask.png")


def test_colours_are_named_as_colours_and_text_as_text() -> None:
    coloured = ClassTable((LabelClass(ClassEntry(0, "a", "#00000A"), (10,)), LabelClass(ClassEntry(1, "b", "#0000FF"), (255,))), (), True)
    with pytest.raises(
        Refused, match="holds the colours #8429F6, which the class table does not have; it has the colours #00000A, #0000FF:"
    ):
        coloured.ids_of([0x8429F6], "mask.png")
    with pytest.raises(Refused, match=r"holds 'forest', which .* it has the colours"):
        coloured.ids_of(["forest"], "fields.gpkg")
    with pytest.raises(Refused, match=r"holds '1', which .* it has 1, 7, 4, 9"):
        TABLE.ids_of(["1"], "fields.gpkg")  # text is not a number


def test_what_is_ignored_is_ignored_even_if_a_class_lists_it(tmp_path: Path) -> None:
    """As when a model is scored with --ignore on a value that it was trained on."""
    table = read_classes(written(tmp_path, [WET, DRY]), ignored=[7])
    assert table.ids_of([1, 7, 4], "here").tolist() == [0, 255, 1]


def test_reads_classes_in_order_and_leaves_ignored_ones_out(tmp_path: Path) -> None:
    path = written(tmp_path, [WET, {"name": "ice", "values": [9], "ignored": "there is none"}, DRY | {"ignored": False}])
    assert read_classes(path) == TABLE
    assert read_classes(path, [255]).ignored == (9, 255)
    assert read_classes(path).names == ["wet", "dry"]


def test_reads_the_tables_of_annotation_tools(tmp_path: Path) -> None:
    titled = {"classes": [{"title": "Water", "shape": "polygon", "color": "#E2A929"}, {"title": "Land", "color": "#8429f6"}], "tags": []}
    table = read_classes(written(tmp_path, titled))
    assert table.coloured and table.names == ["Water", "Land"]
    assert table.ids_of([0x8429F6, 0xE2A929], "here").tolist() == [1, 0]


def test_colours_may_be_written_as_values(tmp_path: Path) -> None:
    table = read_classes(written(tmp_path, [RED | {"values": ["#00000a", "#00000B"]}, GREEN]))
    assert table.coloured and table.ids_of([10, 11, 0x00FF00], "here").tolist() == [0, 0, 1]


def test_text_values_are_of_polygons(tmp_path: Path) -> None:
    table = read_classes(written(tmp_path, [WET | {"values": ["lake", "river"]}, DRY | {"values": ["field", 3]}]))
    assert not table.coloured and table.ids_of(["river", 3], "here").tolist() == [0, 1]


def test_what_lies_in_no_polygon_is_ignored_or_a_class(tmp_path: Path) -> None:
    assert TABLE.elsewhere == 255
    assert read_classes(written(tmp_path, [WET, DRY | {"elsewhere": True}])).elsewhere == 1
    rest = {"name": "rest", "color": "#000000", "elsewhere": True}
    table = read_classes(written(tmp_path, [WET, rest]))
    assert table.elsewhere == 1 and table.classes[1].values == () and not table.coloured


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"classes": []}, "lists 0 classes"),
        ({"names": []}, "must be a JSON list"),
        (["wet", "dry"], "must be a JSON list"),
        (3, "must be a JSON list"),
        ([WET], "lists 1 classes"),
        ([WET, {**DRY, "ignored": "no"}], "lists 1 classes"),
        ([{"name": f"{n}", "color": "#000000", "values": [n]} for n in range(256)], "lists 256 classes to learn; needs 2 to 255"),
        ([WET, {**DRY, "id": 2}], "dry has id 2 but is number 1"),
        ([WET, {**DRY, "name": ""}], "class 1 has no name"),
        ([WET, {**DRY, "name": "wet"}], "the name 'wet' is there more than once"),
        ([WET, {**DRY, "color": "yellow"}], "color 'yellow'; write #RRGGBB"),
        ([WET, {"name": "dry", "values": [4]}], "color None; write #RRGGBB"),
        ([WET, {**DRY, "values": []}], "dry has values"),
        ([WET, {**DRY, "values": 4}], "dry has values 4"),
        ([WET, {**DRY, "values": [4.5]}], "dry has values"),
        ([WET, {**DRY, "values": [True]}], "dry has values"),
        ([WET, {**DRY, "values": [[255, 0, 0]]}], "dry has values"),
        ([WET, {**DRY, "values": [4, 7]}], "the value 7 is there more than once"),
        ([WET, DRY, {"name": "ice", "values": [4], "ignored": "none"}], "the value 4 is there more than once"),
        ([WET, DRY, {"name": "ice", "ignored": "none"}], "ice has values"),
        ([WET | {"elsewhere": True}, DRY | {"elsewhere": True}], "elsewhere .* more than once"),
        ([WET, RED], "some classes are told by colours, others by values"),
        ([RED, GREEN | {"color": "#FF0000"}], "the value 16711680 is there more than once"),
    ],
)
def test_a_bad_table_is_refused(tmp_path: Path, table: object, message: str) -> None:
    with pytest.raises(Refused, match=message) as refused:
        read_classes(written(tmp_path, table))
    assert str(tmp_path / "classes.json") in str(refused.value)


def test_a_missing_or_broken_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no such file"):
        read_classes(tmp_path / "classes.json")
    (tmp_path / "classes.json").write_text("[")
    with pytest.raises(Refused, match="not valid JSON"):
        read_classes(tmp_path / "classes.json")


@pytest.mark.parametrize("value", [0, 10, 0x8429F6, 0xFFFFFF])
def test_a_colours_name_is_its_value(value: int) -> None:
    assert colour_value(colour_name(value)) == value == colour_value(str(value))


def test_without_a_table_each_value_is_a_class_in_order() -> None:
    table = table_of({4, 11, 0, 255}, coloured=False, ignored=[11])
    assert table.names == ["class 0", "class 4", "class 255"]
    assert table.ids_of([255, 4, 0, 11], "here").tolist() == [2, 1, 0, 255]
    assert len({item.entry.color for item in table.classes}) == 3


def test_without_a_table_colours_name_and_colour_their_classes() -> None:
    table = table_of({0x8429F6, 0}, coloured=True)
    assert [(item.entry.name, item.entry.color) for item in table.classes] == [("#000000", "#000000"), ("#8429F6", "#8429F6")]
    assert table_of({"b", "a", 3}, coloured=False).names == ["class 3", "a", "b"]


def test_too_few_or_many_values_for_classes_are_refused() -> None:
    with pytest.raises(Refused, match=r"^here: the labels have 1 values"):
        table_of({1, 2}, False, ignored=[2], place="here")
    with pytest.raises(Refused, match=r"have 256 values.*--classes$"):
        table_of(range(256), False)
    with pytest.raises(Refused, match=r"have 300 colours.*saved as JPEG"):
        table_of(range(300), True)
