"""A header is read back as it was meant, by this module and by GDAL (test_cog has the whole file)."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from pipeline.inference.tiff import Entry, first_directory, header, longs

DIRECTORY = {
    256: longs([7]),
    258: Entry(3, 1, b"\x08\0"),
    324: longs(np.arange(6).reshape(2, 3)),
    42112: Entry(2, 5, b"abcd\0"),
    33550: Entry(12, 3, struct.pack("<3d", 30.0, 30.0, 0.0)),
}


def test_what_is_written_is_read_back():
    assert first_directory(header([DIRECTORY, {256: longs([3])}], big=False)) == DIRECTORY


@pytest.mark.parametrize("big", [False, True])
def test_the_size_of_a_header_does_not_depend_on_its_numbers(big: bool):
    """So offsets, which start where the header ends, can be put in once its size is known."""
    sizes = {len(header([DIRECTORY | {324: longs(np.full(1000, number), big)}], big=big)) for number in (0, 2**32 - 1)}
    assert len(sizes) == 1
    assert len(header([DIRECTORY], big=big)) % 2 == 0, "blocks start at even bytes"


def test_numbers_of_64_bits_are_kept():
    assert longs([2**32, 5], big=True) == Entry(16, 2, struct.pack("<2Q", 2**32, 5))
    assert longs([2**32 - 1]) == Entry(4, 1, b"\xff" * 4)


def test_other_kinds_of_file_are_not_taken_for_one():
    for start in (b"MM\0*", b"II+\0", b"PK\x03\x04"):
        with pytest.raises(ValueError, match="not a little-endian classic TIFF"):
            first_directory(start + bytes(100))
