"""Scenes are found as a person names them, each once, and what is no scene is refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Refused
from pipeline.imagery.catalogue import BandEntry, Source, find_sources, unique_folder


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def item(name: str = "scene", assets: dict[str, Any] | None = None, **properties: Any) -> dict[str, Any]:
    default = {"red": {"href": "red.tif", "roles": ["data"]}}
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "properties": {"datetime": "2015-08-18T17:58:00Z", **properties},
        "assets": default if assets is None else assets,
        "links": [],
        "geometry": None,
    }


def write(path: Path, content: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return str(path)


def one(place: str) -> Source:
    (source,) = find_sources([place])
    return source


def test_a_file_is_a_scene(tmp_path: Path):
    touch(tmp_path / "LC08 scene.v1.tif")
    source = one(str(tmp_path / "LC08 scene.v1.tif"))
    assert source.uri == str(tmp_path / "LC08 scene.v1.tif") and source.scene_id == "LC08 scene.v1"
    assert source.datetime is None
    assert [(asset.path, asset.bands) for asset in source.assets] == [(tmp_path / "LC08 scene.v1.tif", ())]


def test_a_relative_path_and_a_file_uri_are_the_same_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    touch(tmp_path / "a.tif")
    monkeypatch.chdir(tmp_path)
    assert [source.uri for source in find_sources(["a.tif", f"file://{tmp_path}/a.tif"])] == [str(tmp_path / "a.tif")]


def test_a_folder_is_its_rasters_in_order(tmp_path: Path):
    touch(*(tmp_path / name for name in ("b.TIF", "a.jp2", "c.vrt", "d.png")))
    touch(*(tmp_path / name for name in ("a.jp2.aux.xml", "c.tif.msk", "c.tif.ovr", "notes.txt", "item.json", "._b.tif", ".x.tif")))
    touch(tmp_path / "folder.tif" / "inner.tif")
    assert [source.scene_id for source in find_sources([str(tmp_path)])] == ["a", "b", "c", "d"]


def test_a_folder_without_rasters_is_refused(tmp_path: Path):
    touch(tmp_path / "notes.txt")
    with pytest.raises(Refused, match=rf"{tmp_path}: no rasters in this folder \(looked for \.tif"):
        find_sources([str(tmp_path)])


def test_a_glob_is_its_files_in_order(tmp_path: Path):
    touch(*(tmp_path / name for name in ("s2_b.tif", "s2_a.tif", "other.tif")))
    (tmp_path / "s2_folder.tif").mkdir()
    assert [source.scene_id for source in find_sources([str(tmp_path / "s2_*.tif")])] == ["s2_a", "s2_b"]
    with pytest.raises(Refused, match=r"s3_\*\.tif: no file matches this pattern"):
        find_sources([str(tmp_path / "s3_*.tif")])


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(tmp_path: Path):
    touch(tmp_path / "a[1].tif", tmp_path / "a1.tif")
    assert one(str(tmp_path / "a[1].tif")).scene_id == "a[1]"


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(Refused, match=r"gone\.tif: no such file or folder"):
        find_sources([str(tmp_path / "gone.tif")])


def test_each_scene_is_there_once_however_often_it_is_named(tmp_path: Path):
    touch(tmp_path / "a.tif", tmp_path / "b.tif")
    places = [str(tmp_path / "b.tif"), str(tmp_path), str(tmp_path / "*.tif")]
    assert [source.scene_id for source in find_sources(places)] == ["b", "a"], "in the order in which they were first named"


def test_an_item_of_stac_1_0(tmp_path: Path):
    content = item(assets={
        "B4": {
            "href": "../data/b4.tif", "roles": ["data", "reflectance"],
            "eo:bands": [{"name": "band4", "common_name": "red"}],
            "raster:bands": [{"scale": 0.0001, "offset": -0.1, "nodata": 0}],
        },
        "rgbn": {"href": f"file://{tmp_path}/rgbn.tif", "eo:bands": [{"name": name} for name in ("r", "g", "b", "n")]},
        "thumbnail": {"href": "thumb.png", "roles": ["thumbnail"]},
        "labels": {"href": "labels.tif", "roles": ["labels"]},
        "metadata": {"href": "mtl.txt"},
    })  # fmt: skip
    source = one(write(tmp_path / "items" / "item.json", content))
    assert (source.scene_id, source.datetime) == ("scene", "2015-08-18T17:58:00Z")
    assert source.uri == str(tmp_path / "items" / "item.json")
    assert [asset.path for asset in source.assets] == [tmp_path / "data" / "b4.tif", tmp_path / "rgbn.tif"]
    assert source.assets[0].bands == (BandEntry(("band4", "red", "B4"), 0.0001, -0.1, 0.0),)
    assert [entry.names for entry in source.assets[1].bands] == [("r",), ("g",), ("b",), ("n",)], "only a lone band has its asset's key"


def test_an_item_of_stac_1_1(tmp_path: Path):
    content = item(assets={
        "image": {
            "href": "image.tif", "roles": ["data"], "nodata": "nan", "raster:scale": 0.5,
            "bands": [{"name": "B02", "eo:common_name": "blue", "nodata": -1}, {"name": "B03", "raster:scale": 2, "raster:offset": 1}],
        },
    })  # fmt: skip
    blue, green = one(write(tmp_path / "item.json", content)).assets[0].bands
    assert blue == BandEntry(("B02", "blue"), 0.5, None, -1.0)
    assert (green.names, green.scale, green.offset) == (("B03",), 2.0, 1.0)
    assert green.nodata is not None and green.nodata != green.nodata, "bands inherit what is said of their asset: NaN here"


def test_an_asset_without_a_list_of_bands_says_what_it_says_of_all(tmp_path: Path):
    """Its key names a lone band; whether there is one only the file knows."""
    content = item(assets={"nir": {"href": "nir.tif", "roles": ["data"], "raster:scale": 0.1, "eo:common_name": "nir08"}})
    (entry,) = one(write(tmp_path / "item.json", content)).assets[0].bands
    assert (entry.names, entry.scale, entry.of_asset) == (("nir08", "nir"), 0.1, True)


def test_an_item_collection_is_its_items(tmp_path: Path):
    content = {"type": "FeatureCollection", "features": [item("b"), item("a", datetime=None, start_datetime="2020-01-01T00:00:00Z")]}
    sources = find_sources([write(tmp_path / "items.geojson", content)])
    assert [(source.scene_id, source.datetime) for source in sources] == [("b", "2015-08-18T17:58:00Z"), ("a", "2020-01-01T00:00:00Z")]
    assert [source.uri for source in sources] == [f"{tmp_path}/items.geojson#b", f"{tmp_path}/items.geojson#a"]


def test_two_items_of_one_id_are_refused_rather_than_one_lost(tmp_path: Path):
    content = {"type": "FeatureCollection", "features": [item("a"), item("b"), item("a")]}
    with pytest.raises(Refused, match="lists 1 ids more than once, a among them"):
        find_sources([write(tmp_path / "items.json", content)])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"type": "FeatureCollection", "features": []}, "this item collection is empty"),
        ({"type": "FeatureCollection"}, "is not valid STAC"),
        ({"type": "FeatureCollection", "features": [7]}, "is not valid STAC"),
        ({"type": "Feature", "geometry": None, "properties": {}}, "needs an id and assets"),
        ({"type": "Collection", "id": "c"}, "not a STAC item or item collection"),
        ({"a": 1}, "not a STAC item or item collection"),
        ([1, 2], "not a STAC item or item collection"),
        (item(assets={}), "lists no raster assets with the role data"),
        (item(assets={"thumbnail": {"href": "a.png", "roles": ["thumbnail"]}}), "lists no raster assets with the role data"),
        (item(assets={"red": {"roles": ["data"]}}), "is not valid STAC .KeyError: 'href'"),
        (item(assets={"red": "red.tif"}), "is not valid STAC"),
        (item(assets={"red": {"href": "a.tif", "bands": [{"name": "red", "raster:scale": "much"}]}}), "is not valid STAC"),
        (item(assets={"red": {"href": "https://host/a.tif", "roles": ["data"]}}), "https:// is not supported"),
    ],
    ids=str,
)
def test_other_json_is_refused_in_one_line(tmp_path: Path, content: Any, reason: str):
    with pytest.raises(Refused, match=reason) as refused:
        find_sources([write(tmp_path / "other.json", content)])
    assert "\n" not in str(refused.value)


def test_damaged_json_is_refused(tmp_path: Path):
    (tmp_path / "item.json").write_text('{"type": "Feature", ')
    with pytest.raises(Refused, match=r"item\.json is not valid JSON"):
        find_sources([str(tmp_path / "item.json")])


@pytest.mark.parametrize(
    ("scene_id", "folder"),
    [
        ("LC80380342015230LGN00", "LC80380342015230LGN00"),
        ("../../etc/passwd", "etc_passwd"),
        ("..", "scene"),
        ("", "scene"),
        ("/", "scene"),
        (".hidden", "hidden"),
        ("a b\tc\nd", "a_b_c_d"),
        ("C:\\scenes\\1", "C_scenes_1"),
        ("Žďár nad Sázavou", "r_nad_S_zavou"),
        ("a\0b", "a_b"),
    ],
)
def test_a_scenes_folder_has_a_safe_name(tmp_path: Path, scene_id: str, folder: str):
    assert unique_folder(scene_id, "uri", taken=False) == folder
    for taken in (False, True):
        inside = (tmp_path / unique_folder(scene_id, "uri", taken)).resolve()
        assert inside.parent == tmp_path.resolve()
        inside.mkdir()


def test_a_folder_that_is_taken_is_told_apart_by_the_uri():
    names = {unique_folder("scene", f"file-{number}", taken=True) for number in range(100)}
    assert len(names) == 100 and all(len(name) == len("scene-") + 8 for name in names)
    assert unique_folder("scene", "file-1", taken=True) in names, "the same for the same URI"
    assert len(unique_folder("x" * 500, "uri", taken=True)) < 200


def test_a_name_that_is_no_text_is_refused_before_it_is_written_anywhere(tmp_path: Path):
    """A file system takes any bytes for a name, and JSON takes half a character."""
    (tmp_path / os.fsdecode(b"a\xff.tif")).touch()
    for href, called in (("a.tif", "\udcff"), ("\udcff.tif", "a"), ("a\x00.tif", "a")):
        (tmp_path / "item.json").write_text(json.dumps(item(called, {"a": {"href": href, "roles": ["data"]}})))
        with pytest.raises(Refused, match="is a name that is no valid text: rename it"):
            find_sources([str(tmp_path / "item.json")])
    with pytest.raises(Refused, match=r"a\?\.tif: is a name that is no valid text: rename it"):
        find_sources([str(tmp_path / "*.tif")])


@pytest.mark.parametrize("bands", [[{"name": 5}], [{"name": ["a"]}], [{"name": "x", "scale": float("nan")}], "red", [None], [[]], 7])
def test_a_catalogue_of_other_types_is_refused_or_passed_over(tmp_path: Path, bands: object):
    assets = {"a": {"href": "a.tif", "roles": ["data"], "bands": bands}}
    (tmp_path / "item.json").write_text(json.dumps({"type": "Feature", "id": "a", "assets": assets, "properties": {"datetime": 7}}))
    try:
        (found,) = find_sources([str(tmp_path / "item.json")])
    except Refused as refused:
        assert "is not valid STAC" in str(refused)
    else:
        assert found.datetime is None and all(isinstance(name, str) for entry in found.assets[0].bands for name in entry.names)
