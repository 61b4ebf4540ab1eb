"""Which values or colours of a label raster are which class: the table that a person writes, or what the labels say themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow

from pipeline.errors import Refused
from pipeline.geometry.windows import Window
from pipeline.imagery import storage
from pipeline.imagery.storage import Place
from pipeline.models.bundle import LONGEST_NAME, NODATA, ClassEntry, is_name
from pipeline.models.random_bundle import distinct_colour

IGNORE = NODATA  # the label of a pixel that is neither learnt from nor scored
MOST_NAMED = 8  # values that an error names
COLOUR = re.compile("#[0-9A-Fa-f]{6}")

Value = int | str  # of a label raster, or what a polygon's column says; a colour is the number 0xRRGGBB


@dataclass(frozen=True)
class LabelClass:
    """A class to learn, and the values that are merged into it. `elsewhere`: it is also what lies in no polygon."""

    entry: ClassEntry
    values: tuple[Value, ...]
    elsewhere: bool = False


@dataclass(frozen=True)
class ClassTable:
    """The classes to learn, the values that are ignored, and whether values are colours of the labels."""

    classes: tuple[LabelClass, ...]
    ignored: tuple[Value, ...] = ()
    coloured: bool = False

    thing = "a class"  # that a label gives a pixel
    unknown = IGNORE
    dtype = np.dtype(np.uint8)

    @property
    def kinds(self) -> int:
        """Of pixels that windows are drawn by: the classes."""
        return len(self.classes)

    @property
    def outputs(self) -> int:
        """Of a network that learns these classes."""
        return len(self.classes)

    def read(self, labels: Any, window: Window) -> np.ndarray:
        """The class ids of a window inside the grid, uint8 H x W, 255 where ignored."""
        return labels.ids(window, self)

    def kinds_of(self, labels_HW: np.ndarray) -> np.ndarray:
        """The class ids as they are."""
        return labels_HW

    @property
    def names(self) -> list[str]:
        return [item.entry.name for item in self.classes]

    @property
    def elsewhere(self) -> int:
        """The class id of what lies in no polygon."""
        return next((item.entry.id for item in self.classes if item.elsewhere), IGNORE)

    def ids_of(self, values: Iterable[Value], place: str) -> np.ndarray:
        """The class id of each value, uint8; 255 for an ignored one, even if a class lists it.

        Raises Refused, naming `place`, for values that the table does not have.
        """
        known = {value: item.entry.id for item in self.classes for value in item.values} | dict.fromkeys(self.ignored, IGNORE)
        asked = list(values)
        unknown = [value for value in asked if value not in known]
        if unknown:
            raise Refused(
                f"{place}: holds {self._called(unknown)}{self._shown(unknown)}, which the class table does not have;"
                f" it has {self._called(known)}{self._shown(known)}:"
                ' correct --classes, or list them under a class with "ignored", or in --ignore'
            )
        return np.array([known[value] for value in asked], np.uint8)

    def ids(self, labels_HW: np.ndarray, valid_HW: np.ndarray, place: str) -> np.ndarray:
        """The class of each label value, uint8 H x W; 255 where it is not valid or ignored. Raises Refused as `ids_of`."""
        ids_HW = np.full(labels_HW.shape, IGNORE, np.uint8)
        found = pyarrow.array(labels_HW[valid_HW]).dictionary_encode()  # several times quicker than numpy.unique, which sorts
        ids_HW[valid_HW] = self.ids_of(map(int, found.dictionary.to_pylist()), place)[found.indices.to_numpy()]
        return ids_HW

    def _called(self, values: Iterable[Value]) -> str:
        return "the colours " if self.coloured and all(isinstance(value, int) for value in values) else ""

    def _shown(self, values: Iterable[Value]) -> str:
        listed = [colour_name(value) if self.coloured and isinstance(value, int) else repr(value) for value in values]
        return ", ".join(listed[:MOST_NAMED]) + (f" and {len(listed) - MOST_NAMED} more" if len(listed) > MOST_NAMED else "")


def colour_value(text: str) -> int:
    """#RRGGBB as 0xRRGGBB; any other text as the number that it is. Raises ValueError."""
    return int(text[1:], 16) if COLOUR.fullmatch(text) else int(text)


def colour_name(value: int) -> str:
    """0xRRGGBB as #RRGGBB."""
    return f"#{value:06X}"


def read_classes(path: Place, ignored: Sequence[int] = ()) -> ClassTable:
    """Read a class table: a JSON list of {"name", "color", "values": [...]}, in the order of the class ids.

    `values` are a label raster's integers, or colours "#RRGGBB" of it, or what a polygon's column says; without them the
    class's own `color` is its colour in the labels. An entry with `"elsewhere": true` is also what lies in no polygon, and
    needs no values. An `id`, where given, must be the place in that order. An entry with "ignored": "why" makes no class; its values are
    ignored, like `ignored`. {"classes": [...]} with `title` for `name` is read too. Raises Refused, naming the entry, for
    what is no such table.
    """
    table = storage.read_json(path)
    if table is None:
        raise Refused(f"{path}: no such file (--classes)")
    if isinstance(table, dict):
        table = table.get("classes")
    if not isinstance(table, list) or not all(isinstance(entry, dict) for entry in table):
        raise Refused(f"{path}: must be a JSON list of classes, each with name, color and values")
    learnt = [entry for entry in table if not entry.get("ignored")]
    classes = tuple(_label_class(path, number, entry) for number, entry in enumerate(learnt))
    if not 2 <= len(classes) <= NODATA:
        raise Refused(f"{path}: lists {len(classes)} classes to learn; needs 2 to {NODATA}")
    dropped = tuple(value for entry in table if entry.get("ignored") for value in _values(path, entry))
    named: list[tuple[str, list[Any]]] = [
        ("the name", [item.entry.name for item in classes]),
        ("the value", [value for item in classes for value in item.values] + list(dropped)),
        ("elsewhere", [item.elsewhere for item in classes if item.elsewhere]),
    ]
    for what, things in named:
        twice = next((thing for thing in things if things.count(thing) > 1), None)
        if twice is not None:
            raise Refused(f"{path}: {what} {twice!r} is there more than once")
    coloured = {_coloured(entry) for entry in table if _listed(entry)}
    if len(coloured) > 1:
        raise Refused(f"{path}: some classes are told by colours, others by values: write all in one way")
    return ClassTable(classes, (*dropped, *ignored), coloured.pop())


def _coloured(entry: dict[str, Any]) -> bool:
    return "values" not in entry or any(isinstance(value, str) and COLOUR.fullmatch(value) for value in entry["values"])


def _listed(entry: dict[str, Any]) -> Any:
    return entry.get("values", [] if entry.get("elsewhere") else [entry.get("color")])


def _label_class(path: Place, number: int, entry: dict[str, Any]) -> LabelClass:
    name, color = entry.get("name", entry.get("title")), entry.get("color")
    if not isinstance(name, str) or not name or not is_name(name):
        raise Refused(f"{path}: class {number} has no name, or one that is longer than {LONGEST_NAME} characters, or no valid text")
    if entry.get("id", number) != number:
        raise Refused(f"{path}: class {name} has id {entry['id']!r} but is number {number}; ids count from 0 in order")
    if not isinstance(color, str) or not COLOUR.fullmatch(color):
        raise Refused(f"{path}: class {name} has color {color!r}; write #RRGGBB")
    return LabelClass(ClassEntry(number, name, color.upper()), _values(path, entry), bool(entry.get("elsewhere", False)))


def _values(path: Place, entry: dict[str, Any]) -> tuple[Value, ...]:
    """The values of an entry; colours as numbers."""
    values = _listed(entry)
    if not isinstance(values, list) or not all(type(value) in (int, str) for value in values) or not (values or entry.get("elsewhere")):
        name = entry.get("name", entry.get("title"))
        raise Refused(f"{path}: class {name} has values {values!r}; list the label raster's integers or colours that belong to it")
    return tuple(int(value[1:], 16) if isinstance(value, str) and COLOUR.fullmatch(value) else value for value in values)


def table_of(values: Iterable[Value], coloured: bool, ignored: Sequence[int] = (), place: str = "") -> ClassTable:
    """The table of labels that nobody wrote one for: a class for each value that was found, named by it.

    Raises Refused, naming `place`, where there are too few or too many for classes.
    """
    kept = sorted({value for value in values if value not in ignored}, key=lambda value: (isinstance(value, str), value))
    if not 2 <= len(kept) <= NODATA:
        what = "colours" if coloured else "values"
        hint = "; were the masks saved as JPEG, which changes colours?" if coloured and len(kept) > NODATA else ""
        raise Refused(f"{place}: the labels have {len(kept)} {what}, classes need 2 to {NODATA}: name them with --classes{hint}")
    odd = next((value for value in kept if isinstance(value, str) and not is_name(value)), None)
    if odd is not None:
        raise Refused(f"{place}: the value {odd[:60]!r} cannot be the name of a class: name the classes with --classes")
    classes = []
    for number, value in enumerate(kept):
        name = colour_name(value) if coloured and isinstance(value, int) else value if isinstance(value, str) else f"class {value}"
        shown = colour_name(value) if coloured and isinstance(value, int) else distinct_colour(number)
        classes.append(LabelClass(ClassEntry(number, name, shown), (value,)))
    return ClassTable(tuple(classes), tuple(ignored), coloured)
