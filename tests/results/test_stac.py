"""The STAC item: pystac validates and reads it offline, and what it says of place and files is true."""

from __future__ import annotations

import hashlib
import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pystac
import pytest
import shapely
from pystac.extensions.classification import ClassificationExtension
from pystac.extensions.file import FileExtension
from pystac.extensions.projection import ProjectionExtension
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from rasterio.crs import CRS
from rasterio.transform import Affine, from_origin

from pipeline.geometry.areas import ground_areas
from pipeline.geometry.windows import Window
from pipeline.imagery.raster import Grid
from pipeline.imagery.region import Region
from pipeline.models.bundle import Bundle
from pipeline.results.stac import EXTENSIONS, MadeFile, item_made_from, make_item
from tests.results.scenes import COLOURS, Done, class_bundle, publish, stripes, value_bundle
from tests.toys import HEIGHT

GEOSTATIONARY = "+proj=geos +h=35785831 +lon_0=0 +sweep=y +datum=WGS84"
WEB = "https://stac-extensions.github.io"


def rules(uri: str, fields: dict[str, Any], prefix: str, required: list[str] | None = None) -> dict[str, Any]:
    """What an extension demands of its fields, in an item's properties and assets, and that it has no others."""
    known = {"type": "object", "properties": fields, "patternProperties": {f"^(?!{prefix}:)": {}}, "additionalProperties": False}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": uri,
        "type": "object",
        "properties": {
            "stac_extensions": {"contains": {"const": uri}},
            "properties": {**known, "required": required or []},
            "assets": {"additionalProperties": known},
        },
    }


# Written from the extensions' field tables for the fields that our items have; pystac itself brings the core's schemas only.
TEXT, HEX = {"type": "string"}, "^[a-f0-9]+$"
CLASS = {
    "type": "object",
    "required": ["value", "name"],
    "properties": {
        "value": {"type": "integer"},
        "name": {"type": "string", "pattern": "^[0-9A-Za-z_-]+$"},
        "title": TEXT,
        "color_hint": {"type": "string", "pattern": "^[0-9A-F]{6}$"},
    },
    "additionalProperties": False,
}
RULES = {
    f"{WEB}/projection/v2.0.0/schema.json": (
        "proj",
        {
            "proj:code": {"type": ["string", "null"]},
            "proj:wkt2": {"type": ["string", "null"]},
            "proj:shape": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
            "proj:transform": {"type": "array", "items": {"type": "number"}, "minItems": 6, "maxItems": 6},
        },
        ["proj:code"],
    ),
    f"{WEB}/classification/v2.0.0/schema.json": (
        "classification",
        {"classification:classes": {"type": "array", "items": CLASS, "minItems": 1, "uniqueItems": True}},
        [],
    ),
    f"{WEB}/processing/v1.2.0/schema.json": (
        "processing",
        {"processing:level": TEXT, "processing:software": {"type": "object", "additionalProperties": TEXT}},
        ["processing:level"],
    ),
    f"{WEB}/file/v2.1.0/schema.json": (
        "file",
        {"file:size": {"type": "integer", "minimum": 0}, "file:checksum": {"type": "string", "pattern": HEX}},
        [],
    ),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return class_bundle(tmp_path_factory.mktemp("stac") / "bundle", ["forest", "built up / roads", "Žito", "water"])


@pytest.fixture(scope="module")
def done(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Done:
    out = tmp_path_factory.mktemp("item") / "out"
    layers = ("mask", "confidence", "probabilities")
    return publish(out, bundle, stripes(60, 70, corner=9), layers=layers, datetime="2015-08-18T19:58:00.5+02:00")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("nothing is asked of the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def validate(item: dict[str, Any]) -> None:
    validator = JsonSchemaSTACValidator()
    validator.schema_cache |= {uri: rules(uri, fields, prefix, required) for uri, (prefix, fields, required) in RULES.items()}
    pystac.validation.validate_dict(item, validator=validator)


def read(done: Done) -> dict[str, Any]:
    return json.loads((done.folder / "item.json").read_text())


FILES = {"mask": "mask.tif", "quicklook": "quicklook.png"}


def placed(
    done: Done, bundle: Bundle, crs: str | None, transform: Affine, shape: tuple[int, int], window: Window | None = None
) -> dict[str, Any]:
    """The item of the same files as if the scene lay elsewhere."""
    grid = Grid(*shape, tuple(transform)[:6], CRS.from_user_input(crs).to_wkt() if crs else None)
    scene = replace(done.plan.scene, grid=grid, resolution_m=30.0 if crs and "LOCAL" not in crs else None)
    plan = replace(done.plan, scene=scene, region=Region(window or grid.window))
    return make_item(plan, bundle, {name: MadeFile.of(done.folder / file) for name, file in FILES.items()}, "i", done.published.rows)


# ---- the item as a whole


def test_pystac_validates_what_a_run_publishes(done: Done):
    item = read(done)
    assert sorted(item["stac_extensions"]) == sorted(EXTENSIONS) == sorted(RULES)
    validate(item)
    assert pystac.Item.from_file(str(done.folder / "item.json")).id == "scene-mask"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda item: item["properties"].pop("datetime"),
        lambda item: item["properties"].update(datetime="2015-08-18"),
        lambda item: item.pop("bbox"),
        lambda item: item["properties"].update({"proj:shape": [1, 2, 3]}),
        lambda item: item["properties"].update({"proj:epsg": 32612}),
        lambda item: item["assets"]["mask"].update({"file:checksum": "XYZ"}),
        lambda item: item["assets"]["mask"]["classification:classes"][0].update(color_hint="#1b7837"),
        lambda item: item["properties"].pop("processing:level"),
        lambda item: item["assets"]["mask"].pop("href"),
    ],
)
def test_the_validation_would_find_a_mistake(done: Done, spoil: Any):
    item = read(done)
    spoil(item)
    with pytest.raises(pystac.STACValidationError):
        validate(item)


def test_what_the_item_says(done: Done, bundle: Bundle):
    item = read(done)
    properties = item["properties"]
    assert properties["datetime"] == "2015-08-18T17:58:00.500000Z" and properties["tilewright:datetime_source"] == "the scene"
    assert properties["tilewright:input_id"] == done.ledger.attempt == item_made_from(done.folder / "item.json")
    assert properties["tilewright:model_id"] == bundle.model_id and properties["processing:level"] == "L4"
    links = {link["rel"]: link["href"] for link in item["links"]}
    assert links["derived_from"] == done.source.uri and Path(links["mlm:model"]).name == "model.json" and Path(links["mlm:model"]).exists()


def test_pystacs_own_extensions_read_it(done: Done, bundle: Bundle):
    item = pystac.Item.from_dict(read(done))
    projection = ProjectionExtension.ext(item)
    assert projection.code == "EPSG:32612" and projection.shape == [60, 70]
    assert projection.transform[:6] == [30.0, 0.0, 301905.0, 0.0, -30.0, 4154085.0]
    classes = ClassificationExtension.ext(item.assets["mask"]).classes
    assert [(entry.value, entry.name, entry.color_hint) for entry in classes] == [
        (0, "forest", COLOURS[0][1:]), (1, "built-up---roads", COLOURS[1][1:]), (2, "-ito", COLOURS[2][1:]), (3, "water", COLOURS[3][1:]),
    ]  # fmt: skip
    assert [entry.to_dict()["title"] for entry in classes] == [entry.name for entry in bundle.classes]
    assert FileExtension.ext(item.assets["mask"]).size == (done.folder / "mask.tif").stat().st_size
    assert [band["name"] for band in read(done)["assets"]["probabilities"]["bands"]] == [entry.name for entry in bundle.classes]


def test_every_file_is_there_under_a_relative_name_with_its_checksum(done: Done):
    item = read(done)
    assert set(item["assets"]) == {"mask", "confidence", "probabilities", "quicklook"}
    for asset in item["assets"].values():
        assert asset["href"].startswith("./") and asset["title"] and asset["roles"]
        path = done.folder / asset["href"]
        sha256 = hashlib.sha256(path.read_bytes()).digest()
        assert bytes.fromhex(asset["file:checksum"]) == bytes([0x12, 32]) + sha256, "a multihash: SHA-256, 32 bytes"
        assert asset["file:size"] == path.stat().st_size


@pytest.mark.parametrize("said", [None, "last summer", "0000:00:00"])
def test_a_scene_without_a_date_has_the_files_time_and_says_so(done: Done, bundle: Bundle, said: str | None):
    plan = replace(done.plan, scene=replace(done.plan.scene, datetime=said))
    item = make_item(plan, bundle, {"mask": MadeFile.of(done.folder / "mask.tif")}, "i", [])
    assert item["properties"]["tilewright:datetime_source"] == "the file's time of change"
    validate(item)


def test_no_item_has_no_input(tmp_path: Path):
    assert item_made_from(tmp_path / "item.json") is None


# ---- of values


@pytest.mark.parametrize(("unit", "corner"), [("m", 5), ("", 30)])
def test_an_item_of_values_has_unit_and_statistics_and_no_classes(tmp_path: Path, unit: str, corner: int):
    done = publish(tmp_path / "out", value_bundle(tmp_path / "bundle", replace(HEIGHT, unit=unit)), stripes(30, 20, corner=corner))
    item, row = read(done), done.published.rows[0]
    validate(item)
    assert pystac.Item.from_file(str(done.folder / "item.json")).id == "scene-value"
    assert "classification" not in json.dumps(item) and set(item["assets"]) == {"value", "quicklook"}
    asset = item["assets"]["value"]
    assert (asset["data_type"], asset["nodata"], asset["title"]) == ("float32", "nan", "canopy height") and asset.get("unit", "") == unit
    valid_percent = 100 * row["valid_pixel_count"] / 600
    statistics = {"minimum": row["minimum"], "maximum": row["maximum"], "mean": row["mean"], "stddev": row["std"]}
    assert asset["statistics"] == ({"valid_percent": 0} if corner == 30 else {**statistics, "valid_percent": valid_percent})


# ---- its place

PLACES = {
    "UTM": ("EPSG:32612", from_origin(301905, 4154085, 30, 30), (600, 700)),
    "south up": ("EPSG:32612", Affine(30, 0, 301905, 0, 30, 4154085), (600, 700)),
    "rotated": ("EPSG:32612", Affine(26, 11, 301905, 9, -28, 4154085), (600, 700)),
    "wide in longitude and latitude": ("EPSG:4326", from_origin(-120, 40, 0.5, 0.5), (100, 460)),
    "the whole globe": ("EPSG:4326", from_origin(-180, 90, 1, 1), (180, 360)),
    "the whole globe from 0 to 360": ("EPSG:4326", from_origin(0, 90, 1, 1), (180, 360)),
    "the whole globe in web Mercator": ("EPSG:3857", from_origin(-20037508.34, 20037508.34, 156543.03392, 156543.03392), (256, 256)),
    "over the antimeridian": ("EPSG:32660", from_origin(560000, 7_500_000, 300, 300), (700, 700)),
    "over the antimeridian in longitudes": ("EPSG:4326", from_origin(170, 10, 0.1, 0.1), (100, 200)),
    "east of 180": ("EPSG:4326", from_origin(190, 10, 0.1, 0.1), (100, 200)),
    "over the north pole": ("EPSG:3413", from_origin(-3e6, 2e6, 1e4, 1e4), (500, 600)),
    "over the south pole": ("EPSG:3031", from_origin(-3e6, 2e6, 1e4, 1e4), (500, 600)),
    "beside the pole": ("EPSG:3413", from_origin(1e5, 2e6, 1e4, 1e4), (150, 300)),
    "a single pixel": ("EPSG:32612", from_origin(301905, 4154085, 30, 30), (1, 1)),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=list(PLACES))
def test_the_footprint_holds_the_scene(done: Done, bundle: Bundle, place: tuple[str, Affine, tuple[int, int]]):
    crs, transform, shape = place
    item = placed(done, bundle, crs, transform, shape)
    validate(item)
    footprint = shapely.geometry.shape(item["geometry"])
    assert footprint.is_valid and footprint.geom_type in ("Polygon", "MultiPolygon")
    west, south, east, north = footprint.bounds
    assert -180 <= west <= east <= 180 and -90 <= south <= north <= 90
    chance = np.random.default_rng(1)
    x, y = transform * (chance.uniform(0.02, 0.98, 300) * shape[1], chance.uniform(0.02, 0.98, 300) * shape[0])
    lon, lat = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)
    lon = (lon + 180) % 360 - 180
    assert shapely.contains_xy(footprint, lon, lat).mean() > 0.99, "edges are chords of 32 points"
    areas = ground_areas(Window(0, 0, *shape), transform, CRS.from_user_input(crs))
    expected_m2 = areas.totals_m2(np.zeros(shape, np.uint8)).sum()
    assert equal_area_m2(footprint) == pytest.approx(expected_m2, rel=0.01)
    left, bottom, right, top = item["bbox"]
    assert (bottom, top) == pytest.approx((south, north))
    inside = (lon >= left) & (lon <= right) if left <= right else (lon >= left) | (lon <= right)
    assert inside.mean() > 0.99 and -180 <= left <= 180 and -180 <= right <= 180


def equal_area_m2(footprint: shapely.Geometry) -> float:
    """The area of a polygon whose edges are straight in longitude and latitude, in a cylindrical equal-area CRS."""
    fine = shapely.segmentize(footprint, 0.5)
    place = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:6933", always_xy=True)
    return shapely.transform(fine, lambda xy: np.column_stack(place.transform(*xy.T))).area


def test_a_scene_over_the_antimeridian_is_cut_there(done: Done, bundle: Bundle):
    item = placed(done, bundle, *PLACES["over the antimeridian"])
    west, _, east, _ = item["bbox"]
    assert item["geometry"]["type"] == "MultiPolygon" and 170 < west < 180 and -180 < east < -170, "RFC 7946, 5.2"


def test_a_scene_over_the_pole_reaches_it(done: Done, bundle: Bundle):
    for name, pole in (("over the north pole", 90), ("over the south pole", -90)):
        item = placed(done, bundle, *PLACES[name])
        west, south, east, north = item["bbox"]
        assert (west, east) == (-180, 180) and pole in (south, north)
        assert shapely.contains_xy(shapely.geometry.shape(item["geometry"]), 12.3, pole * 0.999)


def test_only_the_regions_footprint_counts(done: Done, bundle: Bundle):
    crs, transform, _ = PLACES["UTM"]
    item = placed(done, bundle, crs, transform, (2000, 2000), Window(512, 1024, 512, 512))
    shifted = placed(done, bundle, crs, transform * Affine.translation(1024, 512), (512, 512))
    assert item["geometry"] == shifted["geometry"] and item["bbox"] == shifted["bbox"]
    assert item["properties"]["proj:transform"] == shifted["properties"]["proj:transform"]
    assert item["properties"]["proj:shape"] == [512, 512]


@pytest.mark.parametrize("crs", [None, 'LOCAL_CS["drawing",UNIT["metre",1]]'])
def test_a_scene_without_a_place_has_no_footprint(done: Done, bundle: Bundle, crs: str | None):
    item = placed(done, bundle, crs, from_origin(0, 0, 1, 1), (20, 30))
    assert item["geometry"] is None and "bbox" not in item
    assert item["properties"]["proj:code"] is None
    validate(item)


@pytest.mark.parametrize("crs", [GEOSTATIONARY, "+proj=laea +lat_0=12 +lon_0=34 +datum=WGS84"])
def test_a_crs_without_a_code_is_told_in_wkt2(done: Done, bundle: Bundle, crs: str):
    item = placed(done, bundle, crs, from_origin(-2e6, 2e6, 1e4, 1e4), (300, 300))
    assert item["properties"]["proj:code"] is None
    assert pyproj.CRS.from_wkt(item["properties"]["proj:wkt2"]).equals(pyproj.CRS(crs), ignore_axis_order=True)
    validate(item)


def test_a_crs_that_only_resembles_one_with_a_code_is_told_in_wkt2(done: Done, bundle: Bundle):
    """GDAL takes UTM on an ellipsoid without a datum for ETRS89's."""
    resembling = CRS.from_proj4("+proj=utm +zone=33 +ellps=GRS80")
    assert resembling.to_authority() == ("EPSG", "25833") and resembling != CRS.from_epsg(25833)
    item = placed(done, bundle, resembling.to_wkt(), from_origin(301905, 4154085, 30, 30), (60, 70))
    assert item["properties"]["proj:code"] is None and "unknown" in item["properties"]["proj:wkt2"]


def test_a_view_of_the_globe_shows_what_is_on_the_globe(done: Done, bundle: Bundle):
    """Corners in the sky have no longitude; the item then outlines what has, or nothing."""
    for transform in (from_origin(-5.5e6, 5.5e6, 1e5, 1e5), from_origin(1e6, 5e6, 4e4, 4e4)):
        item = placed(done, bundle, GEOSTATIONARY, transform, (110, 110))
        validate(item)
        if item["geometry"]:
            footprint = shapely.geometry.shape(item["geometry"])
            assert footprint.is_valid and footprint.within(shapely.box(-82, -82, 82, 82))
