"""The class table: what it says, and what it must not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import Refused
from pipeline.models.bundle import ClassEntry
from pipeline.training.classes import LabelClass, class_ids, read_classes

WET = {"id": 0, "name": "wet", "color": "#0000ff", "values": [1, 7]}
DRY = {"name": "dry", "color": "#FFFF00", "values": [4]}


def test_reads_classes_in_order_and_leaves_ignored_ones_out(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text(json.dumps([WET, {"name": "ice", "values": [9], "ignored": "there is none"}, DRY]))
    assert read_classes(path) == (
        LabelClass(ClassEntry(0, "wet", "#0000FF"), (1, 7)),
        LabelClass(ClassEntry(1, "dry", "#FFFF00"), (4,)),
    )


def test_values_become_ids_and_the_rest_is_ignored() -> None:
    classes = (LabelClass(ClassEntry(0, "wet", "#0000FF"), (1, 7)), LabelClass(ClassEntry(1, "dry", "#FFFF00"), (4,)))
    labels_HW = np.array([[1, 7, 4], [5, 4, 255]], np.float32)
    valid_HW = np.array([[True, True, True], [True, False, False]])
    assert class_ids(labels_HW, valid_HW, classes).tolist() == [[0, 0, 1], [255, 255, 255]]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"classes": []}, "must be a JSON list"),
        ([WET], "lists 1 classes"),
        ([WET, {**DRY, "id": 2}], "dry has id 2 but is number 1"),
        ([WET, {**DRY, "name": ""}], "class 1 has no name"),
        ([WET, {**DRY, "name": "wet"}], "the name 'wet' is there more than once"),
        ([WET, {**DRY, "color": "yellow"}], "color 'yellow'; write #RRGGBB"),
        ([WET, {**DRY, "values": []}], "dry has values"),
        ([WET, {**DRY, "values": ["4"]}], "dry has values"),
        ([WET, {**DRY, "values": [4, 7]}], "the value 7 is there more than once"),
        ([WET, DRY, {"name": "ice", "values": [4], "ignored": "none"}], "the value 4 is there more than once"),
    ],
)
def test_a_bad_table_is_refused(tmp_path: Path, table: object, message: str) -> None:
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(table))
    with pytest.raises(Refused, match=message):
        read_classes(path)


def test_a_missing_or_broken_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no such file"):
        read_classes(tmp_path / "classes.json")
    (tmp_path / "classes.json").write_text("[")
    with pytest.raises(Refused, match="not valid JSON"):
        read_classes(tmp_path / "classes.json")
