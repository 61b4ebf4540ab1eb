"""The short form of `odd_files.py`, on awkward files that are made here."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

from tests.fuzz.odd_files import is_good, segment_all
from tests.toys import UTM, smooth_noise, write_scene

VALUES = smooth_noise(3, (1, 90, 110))
MASKS = {
    "int16": {"values_CHW": VALUES.astype("int16") - 100, "nodata": -100},
    "float64": {"values_CHW": VALUES / 3, "nodata": float("nan")},
    "12 bits": {"values_CHW": VALUES.astype("uint16") * 16, "nbits": 12},
    "south up": {"transform": Affine(30, 0, 301905, 0, 30, 4154085)},
    "sheared": {"transform": Affine(26, 11, 301905, 9, -28, 4154085)},
    "no place": {"crs": None, "transform": None},
    "bands apart": {"values_CHW": smooth_noise(3, (3, 90, 110)), "interleave": "band"},
    "sparse": {"values_CHW": VALUES[:, :10], "sparse_ok": True, "height": 90, "tiled": True, "blockxsize": 32, "blockysize": 16},
    "one row": {"values_CHW": VALUES[:, :1]},
    "one px": {"values_CHW": VALUES[:, :1, :1]},
}


def sparse(path: Path, values_CHW: np.ndarray, **profile: object) -> None:
    """A file of which only the first rows were written."""
    settings = {"driver": "GTiff", "count": 1, "width": values_CHW.shape[2], "dtype": "uint8", **UTM, **profile}
    with rasterio.open(path, "w", **settings) as dataset:
        dataset.write(values_CHW, window=((0, values_CHW.shape[1]), (0, values_CHW.shape[2])))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files that become masks, and files that cannot: their names say which."""
    for name, about in MASKS.items():
        values_CHW = about.get("values_CHW", VALUES)
        make = sparse if name == "sparse" else write_scene
        make(tmp_path / f"mask, {name}.tif", values_CHW, **{key: value for key, value in about.items() if key != "values_CHW"})
    alpha = write_scene(tmp_path / "mask, alpha.tif", np.concatenate([VALUES, VALUES // 128 * 255]))
    with rasterio.open(alpha, "r+") as dataset:
        dataset.colorinterp = (ColorInterp.gray, ColorInterp.alpha)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(write_scene(tmp_path / "mask, beside.tif", VALUES), "r+") as dataset:
        dataset.write_mask(VALUES[0] > 100)
    cut = write_scene(tmp_path / "unreadable, cut.tif", smooth_noise(3, (1, 300, 300)), compress="deflate", blockysize=16)
    os.truncate(cut, cut.stat().st_size // 2)
    write_scene(tmp_path / "refused, complex.tif", VALUES.astype("complex64"))
    (tmp_path / "refused, text.tif").write_text("hello")
    (tmp_path / "refused, empty.tif").touch()
    header = struct.pack("<2sHIH", b"II", 42, 8, 4)
    tags = [(256, 2**31 - 1), (257, 1), (258, 8), (273, 8)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    (tmp_path / "refused, wide.tif").write_bytes(header + entries + bytes(4))
    return tmp_path


def test_every_file_ends_as_a_right_mask_or_one_line(folder: Path):
    cases = list(segment_all(folder))
    assert len(cases) == len(MASKS) + 7
    for case in cases:
        assert is_good(case) and Path(case.name).name.startswith(case.outcome), case
