"""Each parcel has its class's colour at its own place, however small; the scale is that of the ground."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pyproj
import pytest
import shapely
from PIL import Image

from pipeline.results.parcel_map import LONGEST, ParcelMap, draw_map
from tests.results.monitored import COLOURS, Monitored, write_geometry

GREY = "#B9C0C8"


def drawn(folder: Path, made: Monitored, known: np.ndarray, changed: list[str]) -> tuple[ParcelMap, np.ndarray]:
    """The map, and its pixels as H x W x 3."""
    write_geometry(folder, made)
    file = folder / "parcel_geometry" / f"{made.region}.parquet"
    found = draw_map(file, made.ids[known].tolist(), made.truth[known].tolist(), dict(enumerate(COLOURS)), changed)
    picture = Image.open(io.BytesIO(base64.b64decode(found.uri.partition(",")[2])))
    return found, np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize(("parcels", "field_m"), [(90, 120.0), (2500, 60.0)])
def test_colours_are_those_of_the_classes(tmp_path: Path, parcels: int, field_m: float) -> None:
    made = Monitored(parcels=parcels, field_m=field_m)
    known = np.arange(parcels) % 10 != 9
    found, picture_HWC = drawn(tmp_path, made, known, [])
    assert max(found.width, found.height) == LONGEST and picture_HWC.shape == (found.height, found.width, 3)
    west, south, east, north = shapely.total_bounds(made.shapes)
    metres = found.scale_m / found.scale_share / found.width  # a pixel
    middle = shapely.get_coordinates(shapely.centroid(made.shapes))
    lat = np.radians((south + north) / 2)
    col = found.width / 2 + (middle[:, 0] - (west + east) / 2) * 111_320 * np.cos(lat) / metres
    row = found.height / 2 - (middle[:, 1] - (south + north) / 2) * 111_320 / metres
    expected = [COLOURS[kind] if told else GREY for kind, told in zip(made.truth, known, strict=True)]
    there = ["#" + bytes(picture_HWC[int(r), int(c)]).hex().upper() for r, c in zip(row, col, strict=True)]
    assert there == [colour.upper() for colour in expected]


def test_the_scale_is_that_of_the_ground(tmp_path: Path) -> None:
    made = Monitored(parcels=400, origin=(25.0, 60.0))
    found, _ = drawn(tmp_path, made, np.ones(400, bool), [])
    west, south, east, north = shapely.total_bounds(made.shapes)
    length_m = pyproj.Geod(ellps="WGS84").inv(west, (south + north) / 2, east, (south + north) / 2)[2]
    wide_m = found.scale_m / found.scale_share
    assert 1.0 < wide_m / length_m < 1.035  # the margins are 2 %, a sphere's degree is off by 0.6 % at most
    assert found.scale_m in (100, 200, 500, 1000, 2000) and 0.08 < found.scale_share <= 0.26


def test_changed_parcels_have_dark_edges_where_there_is_room(tmp_path: Path) -> None:
    made = Monitored(parcels=100)
    found, picture_HWC = drawn(tmp_path, made, np.ones(100, bool), [str(made.ids[44])])
    dark = (picture_HWC.max(axis=2) < 40).sum()
    plain, without_HWC = drawn(tmp_path, made, np.ones(100, bool), [])
    assert found.outlined and dark > 500 and (without_HWC.max(axis=2) < 40).sum() == 0 and plain.outlined


def test_every_parcel_is_there_when_they_are_smaller_than_a_pixel(tmp_path: Path) -> None:
    made = Monitored(parcels=900, field_m=2.0, classes=2)
    far = Monitored(parcels=1, field_m=2.0, origin=(15.2, 46.0))
    made.__dict__["shapes"] = np.append(made.shapes[:-1], far.shapes)  # one far away makes all others small
    found, picture_HWC = drawn(tmp_path, made, np.ones(900, bool), [str(made.ids[5])])
    assert not found.outlined
    painted = (picture_HWC != 255).any(axis=2).sum()
    assert 30 < painted < 60 and found.height < 40


def test_empty_and_missing_shapes_are_left_out(tmp_path: Path) -> None:
    made = Monitored(parcels=20)
    made.__dict__["area_m2"] = np.ones(20)
    made.__dict__["shapes"] = np.where(np.arange(20) == 3, shapely.Point(), made.shapes)
    found, picture_HWC = drawn(tmp_path, made, np.ones(20, bool), [])
    assert found.width > 100 and (picture_HWC != 255).any()
