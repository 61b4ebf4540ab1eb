"""What GDAL reads without a word though it is not there: blocks that were never written, those it cannot find, broken JPEG data."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np
from rasterio.errors import RasterioIOError
from rasterio.io import DatasetReader

from pipeline.geometry.windows import Window

BROKEN = re.compile(r"Corrupt JPEG data|Premature end of JPEG")  # what libjpeg warns of, by whichever driver
SIGNALLED = "GDAL signalled an error"
LOGS = ("rasterio._env", "rasterio._err")


def unwritten(dataset: DatasetReader, index: int, window: Window, plane_HW: np.ndarray) -> np.ndarray | None:
    """Which pixels of a band's window lie in blocks that were never written, bool H x W; None where there are none.

    `plane_HW` is what GDAL read there: zeros, where no nodata value is declared. So only blocks whose first pixel holds 0
    are asked for their place in the file: one takes 1 us, and few blocks of a real scene do.
    """
    if dataset.driver != "GTiff":
        return None
    height, width = dataset.block_shapes[index - 1]
    rows, cols = (range(span.start // size, -(-span.stop // size)) for span, size in ((window.rows, height), (window.cols, width)))
    firsts = np.ix_(_firsts(rows, height, window.row), _firsts(cols, width, window.col))
    asked = [(rows[down], cols[across]) for down, across in np.argwhere(plane_HW[firsts] == 0).tolist()]
    missing = [block for block in asked if not is_written(dataset, index, *block)]
    if not missing or _one_strip(dataset, index):
        return None
    holes_HW = np.zeros(plane_HW.shape, bool)
    for row, col in missing:
        inside = Window(row * height, col * width, height, width).intersection(window)
        assert inside is not None
        holes_HW[inside.relative_to(window).slices()] = True
    return holes_HW


def is_written(dataset: DatasetReader, index: int, row: int, col: int) -> bool:
    """Whether the file holds data of a block, by its place among the blocks."""
    return dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", dm="TIFF", bidx=index) not in (None, "0")


def has_holes(dataset: DatasetReader, index: int) -> bool:
    """Whether any block of a band was never written."""
    if dataset.driver != "GTiff":
        return False
    height, width = dataset.block_shapes[index - 1]
    rows, cols = range(-(-dataset.height // height)), range(-(-dataset.width // width))
    return not all(is_written(dataset, index, row, col) for row in rows for col in cols) and not _one_strip(dataset, index)


def _one_strip(dataset: DatasetReader, index: int) -> bool:
    """Whether GDAL shows a single strip as blocks of a row each, as it does with long ones: only the first has a place in the file."""
    if dataset.block_shapes[index - 1] != (1, dataset.width) or not is_written(dataset, index, 0, 0):
        return False
    return not any(is_written(dataset, index, row, 0) for row in range(1, dataset.height))


def _firsts(blocks: Sequence[int], size: int, start: int) -> list[int]:
    return [max(0, block * size - start) for block in blocks]


@contextmanager
def nothing_unsaid() -> Iterator[None]:
    """Raise RasterioIOError where GDAL or libjpeg signalled an error in this thread and rasterio raised none.

    Where GDAL fails to read where a TIFF's blocks lie, as when a store did not answer, it takes them for never written and gives
    zeros; of broken JPEG data it makes grey or noise. rasterio logs both and goes on.
    """
    _listen()
    before, _heard.errors = getattr(_heard, "errors", None), list[str]()
    try:
        yield
        if _heard.errors:
            raise RasterioIOError(_heard.errors[0])
    finally:
        _heard.errors = before


_heard = threading.local()  # errors: what was signalled in this thread since it began to listen; None: it does not


@cache
def _listen() -> None:
    """Hear, from now on, what rasterio logs of GDAL's errors."""
    for name in LOGS:
        log = logging.getLogger(name)
        log.addFilter(_Ear(log.getEffectiveLevel()))
        log.setLevel(min(logging.INFO, log.getEffectiveLevel()))


class _Ear(logging.Filter):
    """Hears all records and lets those pass that passed before it was there."""

    def __init__(self, level: int):
        super().__init__()
        self.level = level

    def filter(self, record: logging.LogRecord) -> bool:
        errors, message = getattr(_heard, "errors", None), record.getMessage()
        if errors is not None and (SIGNALLED in message or (BROKEN.search(message) and record.levelno >= logging.WARNING)):
            errors.append(message.partition("msg=")[2].strip("'\"") or message)
        return record.levelno >= self.level
