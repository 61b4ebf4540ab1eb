"""The bands that a model needs are found by name, colour or place, and never taken for others in silence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from pipeline.errors import Refused
from pipeline.imagery.bands import Band
from pipeline.imagery.catalogue import Asset, BandEntry, Source
from pipeline.imagery.raster import open_scene

RED, GREEN, BLUE, ALPHA, OTHER = (getattr(ColorInterp, name) for name in ("red", "green", "blue", "alpha", "undefined"))


def write(path: Path, names: Sequence[str | None], colours: Sequence[ColorInterp] = ()) -> Asset:
    with rasterio.open(
        path, "w", driver="GTiff", count=len(names), height=4, width=4, dtype="uint16", crs="EPSG:32612",
        transform=from_origin(0, 0, 1, 1), photometric="minisblack",
    ) as dataset:  # fmt: skip
        dataset.colorinterp = colours or [OTHER] * len(names)
        for number, name in enumerate(names, 1):
            dataset.write(np.full((4, 4), number, np.uint16), number)
            if name:
                dataset.set_band_description(number, name)
    return Asset(path)


def find(assets: Sequence[Asset], *wanted: Band | str) -> list[int]:
    """The indexes of the bands that a model gets, or Refused."""
    source = Source("scene.json", "scene", None, tuple(assets))
    return [band.index for band in open_scene(source, [Band(band) if isinstance(band, str) else band for band in wanted]).bands]


@pytest.mark.parametrize(
    ("names", "wanted", "found"),
    [
        (["blue", "green", "red", "nir"], ["red", "nir"], [3, 4]),
        (["Blue", "GREEN", "Red"], ["red", "green", "blue"], [3, 2, 1]),
        ([f"B{number:02d}" for number in range(1, 13)], ["B02", "B03", "B04", "B08"], [2, 3, 4, 8]),
        (["B8A", "B11", "B02"], ["B02", "B8A"], [3, 1]),
        (["band_2", "band_1"], ["band_1", "band_2"], [2, 1]),
        (["elevation"], ["elevation"], [1]),
    ],
    ids=str,
)
def test_bands_are_found_by_their_descriptions(tmp_path: Path, names: list[str], wanted: list[str], found: list[int]):
    assert find([write(tmp_path / "a.tif", names)], *wanted) == found


def test_a_common_name_serves_too(tmp_path: Path):
    asset = write(tmp_path / "a.tif", ["nir", "red"])
    assert find([asset], Band("B4", common_name="red"), Band("B5", common_name="nir")) == [2, 1]


@pytest.mark.parametrize(
    ("wanted", "found"), [(["blue", "green", "red"], [3, 2, 1]), (["red"], [1]), (["x", "y", "z"], [1, 2, 3])], ids=str
)
@pytest.mark.parametrize("names", [[None] * 3, ["Band 1", "Band 2", "Band 3"]], ids=str)
def test_bands_are_found_by_their_colours(tmp_path: Path, names: list[str | None], wanted: list[str], found: list[int]):
    assert find([write(tmp_path / "a.tif", names, [RED, GREEN, BLUE])], *wanted) == found


def test_what_is_beside_the_colours_is_found_by_place(tmp_path: Path):
    """Aerial images and Planet scenes: red, green and blue say so, the near infrared says nothing."""
    asset = write(tmp_path / "a.tif", [None] * 4, [RED, GREEN, BLUE, OTHER])
    assert find([asset], "blue", "green", "red", "nir") == [3, 2, 1, 4]


@pytest.mark.parametrize("names", [[None] * 3, ["Band 1", "Band 2", "Band 3"], ["b1", "b2", "b3"], ["gray", None, "layer_3"]], ids=str)
def test_bands_without_names_are_found_by_place(tmp_path: Path, names: list[str | None]):
    assert find([write(tmp_path / "a.tif", names)], "nir", "red", "green") == [1, 2, 3]


def test_bands_are_counted_over_all_files(tmp_path: Path):
    assets = [write(tmp_path / "a.tif", [None]), write(tmp_path / "b.tif", [None, None])]
    assert find(assets, "x", "y", "z") == [1, 1, 2]


def test_an_alpha_band_is_no_data_band(tmp_path: Path):
    asset = write(tmp_path / "a.tif", [None] * 4, [RED, GREEN, BLUE, ALPHA])
    assert find([asset], "x", "y", "z") == [1, 2, 3]
    with pytest.raises(Refused, match=r"has 3 bands without names beside an alpha band, the model needs 4 \(r, g, b, n\)"):
        find([asset], "r", "g", "b", "n")


def test_an_alpha_band_with_a_name_is_data(tmp_path: Path):
    """GDAL marks the fourth of four uint8 bands as alpha unless it is told otherwise, as in any file of red, green, blue, near infrared."""
    named = write(tmp_path / "a.tif", ["red", "green", "blue", "nir"], [RED, GREEN, BLUE, ALPHA])
    assert find([named], "nir", "red") == [4, 1]
    listed = Asset(write(tmp_path / "b.tif", [None] * 4, [RED, GREEN, BLUE, ALPHA]).path, tuple(BandEntry((name,)) for name in "rgbn"))
    assert find([listed], "n", "r") == [4, 1]
    scene = open_scene(Source("s", "s", None, (listed,)), [Band("r"), Band("n")])
    assert not any(band.masked for band in scene.bands)
    truly = write(tmp_path / "c.tif", ["red", "green", "blue", "alpha"], [RED, GREEN, BLUE, ALPHA])
    with pytest.raises(Refused, match="has no band alpha"):
        find([truly], "alpha")


def test_what_the_catalogue_says_comes_before_the_file(tmp_path: Path):
    path = write(tmp_path / "a.tif", ["one", "two"]).path
    asset = Asset(path, (BandEntry(("red", "B04")), BandEntry(("nir",))))
    assert find([asset], "nir", "b04") == [2, 1]
    with pytest.raises(Refused, match="has no band one; the model needs one, the scene has b04/red, nir"):
        find([asset], "one")


def test_the_key_of_an_asset_names_a_lone_band_only(tmp_path: Path):
    lone = Asset(write(tmp_path / "lone.tif", [None]).path, (BandEntry(("nir",), of_asset=True),))
    many = Asset(write(tmp_path / "many.tif", ["green", "red"]).path, (BandEntry(("image",), scale=0.5, of_asset=True),))
    assert find([many, lone], "red", "nir") == [2, 1]
    with pytest.raises(Refused, match="has no band image"):
        find([many, lone], "image")
    scene = open_scene(Source("s", "s", None, (many,)), [Band("green"), Band("red")])
    assert [band.scale for band in scene.bands] == [0.5, 0.5], "its scale holds for all of them"


@pytest.mark.parametrize(
    ("names", "colours", "wanted", "message"),
    [
        ([None] * 3, [], ["a", "b"], r"has 3 bands without names, the model needs 2 \(a, b\): give a file with just those"),
        ([None], [], ["a", "b"], r"has 1 band without names, the model needs 2 \(a, b\)"),
        (["red", "green"], [], ["red", "nir"], "has no band nir; the model needs red, nir, the scene has red, green"),
        (["red", None], [], ["blue", "green"], "has no band blue; the model needs blue, green, the scene has red, unnamed"),
        (["B01", "B02"], [], ["B03", "B04"], "has no band B03; the model needs B03, B04, the scene has b01, b02"),
        (["red", "RED", "nir"], [], ["red", "nir"], "band red is there 2 times; rename the others"),
        ([None] * 3, [RED, RED, BLUE], ["red"], "band red is there 2 times"),
        ([None] * 3, [RED, GREEN, BLUE], ["nir", "red", "green"], "has no band nir; .* the scene has red, green, blue"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_both_sides_named(
    tmp_path: Path, names: list[str | None], colours: list[ColorInterp], wanted: list[str], message: str
):
    with pytest.raises(Refused, match=f"^scene.json: {message}") as refused:
        find([write(tmp_path / "a.tif", names, colours)], *wanted)
    assert "\n" not in str(refused.value)
