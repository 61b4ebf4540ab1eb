"""Which values of a label raster are which class: the table that a person writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import Refused
from pipeline.imagery import storage
from pipeline.models.bundle import NODATA, ClassEntry

IGNORE = NODATA  # the label of a pixel that is neither learnt from nor scored


@dataclass(frozen=True)
class LabelClass:
    """A class to learn, and the values of the label raster that are merged into it."""

    entry: ClassEntry
    values: tuple[int, ...]


def read_classes(path: Path) -> tuple[LabelClass, ...]:
    """Read a class table: a JSON list of {"name", "color", "values": [...]}, in the order of the class ids.

    An `id`, where given, must be the place in that order. An entry with "ignored": "why" makes no class; its values, like those that
    no entry lists, are ignored. Raises Refused, naming the entry, for what is no such table.
    """
    table = storage.read_json(path)
    if table is None:
        raise Refused(f"{path}: no such file (--classes)")
    if not isinstance(table, list) or not all(isinstance(entry, dict) for entry in table):
        raise Refused(f"{path}: must be a JSON list of classes, each with name, color and values")
    learnt = [entry for entry in table if "ignored" not in entry]
    classes = tuple(_label_class(path, number, entry) for number, entry in enumerate(learnt))
    if not 2 <= len(classes) <= NODATA:
        raise Refused(f"{path}: lists {len(classes)} classes to learn; needs 2 to {NODATA}")
    for what, things in (
        ("the name", [item.entry.name for item in classes]),
        ("the value", [value for entry in table for value in entry.get("values", [])]),
    ):
        twice = next((thing for thing in things if things.count(thing) > 1), None)
        if twice is not None:
            raise Refused(f"{path}: {what} {twice!r} is there more than once")
    return classes


def _label_class(path: Path, number: int, entry: dict[str, Any]) -> LabelClass:
    name, color, values = entry.get("name"), entry.get("color"), entry.get("values")
    if not isinstance(name, str) or not name:
        raise Refused(f"{path}: class {number} has no name")
    if entry.get("id", number) != number:
        raise Refused(f"{path}: class {name} has id {entry['id']!r} but is number {number}; ids count from 0 in order")
    if not isinstance(color, str) or not re.fullmatch("#[0-9A-Fa-f]{6}", color):
        raise Refused(f"{path}: class {name} has color {color!r}; write #RRGGBB")
    if not isinstance(values, list) or not values or not all(type(value) is int for value in values):
        raise Refused(f"{path}: class {name} has values {values!r}; list the label raster's integers that belong to it")
    return LabelClass(ClassEntry(number, name, color.upper()), tuple(values))


def class_ids(labels_HW: np.ndarray, valid_HW: np.ndarray, classes: Sequence[LabelClass]) -> np.ndarray:
    """The class of each label value, uint8 H x W; 255 where it is not valid or belongs to no class."""
    ids_HW = np.full(labels_HW.shape, IGNORE, np.uint8)
    for item in classes:
        ids_HW[valid_HW & np.isin(labels_HW, item.values)] = item.entry.id
    return ids_HW
