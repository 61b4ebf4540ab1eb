"""The header of a TIFF file (TIFF 6.0, and BigTIFF above 4 GiB): tags out of a file of GDAL's, all directories before any data."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

GHOST = b"LAYOUT=IFDS_BEFORE_DATA\nKNOWN_INCOMPATIBLE_EDITION=NO\n "  # GDAL knows a COG by it; room for its YES when it edits one
GHOST = b"GDAL_STRUCTURAL_METADATA_SIZE=%06d bytes\n" % len(GHOST) + GHOST  # even in length, as a directory's place must be
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8}  # bytes of a value, by type
LONG, LONG8 = 4, 16


class Entry(NamedTuple):
    """The values of a tag: `number` of them, of the TIFF type `kind`, as little-endian bytes."""

    kind: int
    number: int
    values: bytes


Directory = Mapping[int, Entry]  # by tag


def longs(numbers: npt.ArrayLike, big: bool = False) -> Entry:
    """Integers of 32 bits, or of 64 where they are `big`, in the array's own order."""
    values = np.ravel(np.asarray(numbers))
    return Entry(LONG8 if big else LONG, values.size, values.astype("<u8" if big else "<u4").tobytes())


def first_directory(tiff: bytes) -> dict[int, Entry]:
    """The first directory of a little-endian classic TIFF file."""
    if tiff[:4] != b"II*\0":
        raise ValueError(f"not a little-endian classic TIFF: it starts with {tiff[:4]!r}")
    (start,) = struct.unpack_from("<I", tiff, 4)
    (count,) = struct.unpack_from("<H", tiff, start)
    found = {}
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from("<HHI", tiff, at)
        size = SIZES[kind] * number
        begin = at + 8 if size <= 4 else struct.unpack_from("<I", tiff, at + 8)[0]
        found[tag] = Entry(kind, number, tiff[begin : begin + size])
    return found


class _Form(NamedTuple):
    """What differs between the two kinds of TIFF, as formats of `struct`."""

    start: bytes
    counter: str
    entry: str
    offset: str


CLASSIC = _Form(b"II*\0", "<H", "<HHI4s", "<I")
BIG = _Form(b"II+\0\x08\0\0\0", "<Q", "<HHQ8s", "<Q")


def header(directories: Sequence[Directory], *, big: bool) -> bytes:
    """All that comes before the data: the directories in order, each followed by its values. Their numbers do not change its size."""
    form = BIG if big else CLASSIC
    inside = struct.calcsize(form.offset)
    end = len(form.start) + inside + len(GHOST)
    parts = [form.start, struct.pack(form.offset, end), GHOST]
    for number, directory in enumerate(directories, 1):
        end += struct.calcsize(form.counter) + len(directory) * struct.calcsize(form.entry) + inside
        entries, values = [struct.pack(form.counter, len(directory))], []
        for tag, entry in sorted(directory.items()):
            held = entry.values
            if len(held) > inside:
                values.append(held + bytes(-len(held) % 8))
                held = struct.pack(form.offset, end)
                end += len(values[-1])
            entries.append(struct.pack(form.entry, tag, entry.kind, entry.number, held))
        following = end if number < len(directories) else 0
        parts += [*entries, struct.pack(form.offset, following), *values]
    return b"".join(parts)
