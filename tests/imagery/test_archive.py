"""Dated scenes are found in catalogues, servers and folders; what cannot be one is named and stops nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Refused
from pipeline.imagery.archive import Asked, find_dated
from pipeline.imagery.sentinel2 import NOT_CLEAR


def item(name: str, day: str, box: list[float] | None = None, href: str = "a.tif", **properties: Any) -> dict[str, Any]:
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": name, "geometry": None, "links": [], **({"bbox": box} if box else {}),
        "properties": {"datetime": f"{day}T10:00:00Z", **properties},
        "assets": {"red": {"href": href, "roles": ["data"]}, "clm": {"href": "clm.tif", "roles": ["data"]}},
    }  # fmt: skip


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def catalogue(folder: Path, days: list[str]) -> Path:
    """A catalogue of a collection of items, as static catalogues are nested."""
    for day in days:
        write(folder / "s2" / day / "item.json", item(f"scene-{day}", day))
    links = [{"rel": "item", "href": f"./{day}/item.json"} for day in days]
    write(folder / "s2" / "collection.json", {"type": "Collection", "links": [*links, {"rel": "parent", "href": "../catalog.json"}]})
    return write(folder / "catalog.json", {"type": "Catalog", "links": [{"rel": "child", "href": "./s2/collection.json"}]})


def test_a_static_catalogue_is_followed_to_its_items_in_order_of_time(tmp_path: Path):
    found = find_dated(str(catalogue(tmp_path, ["2017-05-01", "2016-05-01", "2018-05-01"])), Asked(), ["red"])
    assert [source.scene_id for source in found.sources] == ["scene-2016-05-01", "scene-2017-05-01", "scene-2018-05-01"]
    assert found.listed == 3 and not found.refused
    assert found.sources[0].uri == str(tmp_path / "s2" / "2016-05-01" / "item.json")


def test_dates_and_box_choose(tmp_path: Path):
    place = str(catalogue(tmp_path, ["2016-05-01", "2017-05-01", "2018-05-01"]))
    asked = Asked(since=date(2017, 5, 1), until=date(2017, 5, 1))
    assert [source.scene_id for source in find_dated(place, asked, []).sources] == ["scene-2017-05-01"]
    boxes = [item("here", "2017-05-01", [10, 45, 11, 46]), item("far", "2017-05-01", [20, 45, 21, 46]), item("unsaid", "2017-05-01")]
    collection = write(tmp_path / "items.json", {"type": "FeatureCollection", "features": boxes})
    found = find_dated(str(collection), Asked(bbox=(10.5, 45.5, 12, 47)), [])
    assert [source.scene_id for source in found.sources] == ["here", "unsaid"]


def test_a_bad_item_is_named_and_stops_nothing(tmp_path: Path):
    place = catalogue(tmp_path, ["2016-05-01", "2017-05-01"])
    (tmp_path / "s2" / "2016-05-01" / "item.json").unlink()
    write(tmp_path / "s2" / "2018-05-01" / "item.json", item("elsewhere", "2018-05-01", href="gopher://host/a.tif"))
    content = json.loads((tmp_path / "s2" / "collection.json").read_text())
    content["links"].append({"rel": "item", "href": "./2018-05-01/item.json"})
    write(tmp_path / "s2" / "collection.json", content)
    found = find_dated(str(place), Asked(), [])
    assert [source.scene_id for source in found.sources] == ["scene-2017-05-01"]
    assert len(found.refused) == 2 and "is not there" in " ".join(found.refused.values()) and "gopher" in " ".join(found.refused.values())


def test_the_item_counts_not_the_file_that_lists_it(tmp_path: Path):
    one, other = item("a", "2017-05-01"), item("b", "2017-05-02")
    place = write(tmp_path / "items.json", {"type": "FeatureCollection", "features": [one]})
    (before,) = find_dated(str(place), Asked(), []).sources
    write(place, {"type": "FeatureCollection", "features": [one, other]})
    assert find_dated(str(place), Asked(), []).sources[0] == before
    one["properties"]["updated"] = "2018-01-01T00:00:00Z"
    write(place, {"type": "FeatureCollection", "features": [one, other]})
    assert find_dated(str(place), Asked(), []).sources[0].said != before.said


def test_a_scene_that_was_processed_again_counts_once(tmp_path: Path):
    about = {"constellation": "sentinel-2", "grid:code": "MGRS-33TVM"}
    listed = [
        item("new", "2018-05-01", **about, **{"s2:processing_baseline": "05.00"}),
        item("old", "2018-05-01", **about, **{"s2:processing_baseline": "02.08"}),
        item("neighbour", "2018-05-01", constellation="sentinel-2", **{"grid:code": "MGRS-33TVN", "s2:processing_baseline": "02.08"}),
    ]
    for entry in listed:
        entry["assets"] = {"B04": {"href": f"{entry['id']}.tif", "roles": ["data"]}, "SCL": {"href": "scl.tif", "roles": ["data"]}}
    place = write(tmp_path / "items.json", {"type": "FeatureCollection", "features": listed})
    found = find_dated(str(place), Asked(), ["B04"])
    assert sorted(source.scene_id for source in found.sources) == ["neighbour", "new"]
    assert found.superseded == {f"{place}#old": f"{place}#new"}


def test_the_scene_classification_is_a_mask_of_clouds(tmp_path: Path):
    listed = item("a", "2018-05-01", constellation="sentinel-2")
    listed["assets"] = {"B04": {"href": "b4.tif", "roles": ["data"]}, "SCL": {"href": "scl.tif", "roles": ["data"]}}
    (source,) = find_dated(str(write(tmp_path / "item.json", listed)), Asked(), ["B04"]).sources
    assert source.clouds and (source.clouds.path, source.clouds.hidden) == (str(tmp_path / "scl.tif"), NOT_CLEAR)
    assert [asset.path.name for asset in source.assets] == ["b4.tif"]


def test_another_mask_of_clouds_is_named(tmp_path: Path):
    place = str(write(tmp_path / "item.json", item("a", "2018-05-01")))
    (source,) = find_dated(place, Asked(clouds=("clm", (1, 2))), []).sources
    assert source.clouds and (source.clouds.path, source.clouds.hidden) == (str(tmp_path / "clm.tif"), (1, 2))
    found = find_dated(place, Asked(clouds=("fog", (1,))), [])
    assert not found.sources and "has no asset fog" in found.refused[place]


def test_a_folder_of_dated_files(tmp_path: Path):
    touch(tmp_path, "ndvi_20170501.tif", "sub/ndvi_2017-06-01T101112.tif", "ndvi_2017_07_01.tif", "v20171345.tif", "notes.txt")
    found = find_dated(str(tmp_path), Asked(), ["ndvi"])
    assert [(source.scene_id, source.datetime) for source in found.sources] == [
        ("v20171345", None),
        ("ndvi_20170501", "2017-05-01T00:00:00Z"),
        ("ndvi_2017-06-01T101112", "2017-06-01T10:11:12Z"),
        ("ndvi_2017_07_01", "2017-07-01T00:00:00Z"),
    ]


def test_bands_that_files_do_not_name_are_named(tmp_path: Path):
    touch(tmp_path, "m_4709963_se_14_1_20090818.tif")
    (source,) = find_dated(str(tmp_path), Asked(bands=("red", "green", "blue", "nir")), ["red", "nir"]).sources
    assert source.datetime == "2009-08-18T00:00:00Z"
    assert [entry.names for entry in source.assets[0].bands] == [("red",), ("green",), ("blue",), ("nir",)]


def test_files_that_differ_by_their_band_are_one_scene(tmp_path: Path):
    touch(
        tmp_path,
        "x_20170501_red.tif",
        "x_20170501_nir.tif",
        "x_20170501_qa.tif",
        "x_20170502_red.tif",
        "x_20170502_nir.tif",
        "x_20170502_qa.tif",
    )
    found = find_dated(str(tmp_path), Asked(clouds=("qa", (1,))), ["red", "nir"])
    assert [(source.scene_id, [asset.bands[0].names for asset in source.assets]) for source in found.sources] == [
        ("x_20170501", [("nir",), ("red",)]), ("x_20170502", [("nir",), ("red",)]),
    ]  # fmt: skip
    assert all(source.clouds and source.clouds.path.endswith("_qa.tif") for source in found.sources)


def test_the_folder_of_a_product(tmp_path: Path):
    name = "T33TVM_20230415T100029"
    top = "S2B_MSIL2A_20230415T100029_N0509_R122_T33TVM_20230415T120000.SAFE/GRANULE/L2A/IMG_DATA"
    touch(
        tmp_path,
        *(f"{top}/R{side}m/{name}_{band}_{side}m.jp2" for side, band in ((10, "B04"), (20, "B04"), (20, "B11"), (20, "SCL"), (10, "TCI"))),
    )
    found = find_dated(str(tmp_path), Asked(), ["B04", "B11"])
    source = next(source for source in found.sources if source.scene_id == name)
    bands = {entry.names[0]: (asset.path.name, entry.offset) for asset in source.assets for entry in asset.bands}
    assert bands == {"B04": (f"{name}_B04_10m.jp2", -0.1), "B11": (f"{name}_B11_20m.jp2", -0.1)}
    assert source.clouds and source.clouds.path.endswith("SCL_20m.jp2") and source.datetime == "2023-04-15T10:00:29Z"


def test_an_empty_place_is_refused(tmp_path: Path):
    with pytest.raises(Refused, match="holds no rasters and is no STAC catalogue"):
        find_dated(str(tmp_path), Asked(), [])
    with pytest.raises(Refused, match="is no STAC catalogue"):
        find_dated(str(write(tmp_path / "a.json", {"type": "Nonsense"})), Asked(), [])


@contextmanager
def served(items: list[dict[str, Any]], asked: list[dict[str, Any]]) -> Iterator[str]:
    """A STAC API of two pages; what it was asked is added to `asked`."""

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/nowhere"):
                return self.send_error(404)
            conforms = [f"https://api.stacspec.org/v1.0.0/{part}" for part in ("core", "item-search")]
            self._answer({
                "type": "Catalog", "stac_version": "1.0.0", "id": "api", "description": "", "conformsTo": conforms,
                "links": [
                    {"rel": "self", "href": url}, {"rel": "root", "href": url},
                    {"rel": "search", "href": f"{url}/search", "method": "POST", "type": "application/geo+json"},
                ],
            })  # fmt: skip

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            second = body.get("token") == "next"
            link = {"rel": "next", "href": f"{url}/search", "method": "POST", "body": {"token": "next"}, "merge": True}
            self._answer({"type": "FeatureCollection", "features": items[1:] if second else items[:1], "links": [] if second else [link]})

        def _answer(self, content: Any) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield url
    finally:
        server.shutdown()
        server.server_close()


def test_a_server_is_asked_for_what_is_wanted_page_by_page():
    where = "https://bucket-of-cogs.s3.us-west-2.amazonaws.com/33/a.tif"
    listed = [
        item("first", "2017-05-01", href=where),
        item("second", "2017-05-02", href="relative.tif"),
        item("third", "2017-05-03", href=where),
    ]
    for entry in (listed[0], listed[2]):
        del entry["assets"]["clm"]
        entry["links"] = [{"rel": "self", "href": f"https://catalogue/{entry['id']}"}]
    bodies: list[dict[str, Any]] = []
    with served(listed, bodies) as url:
        found = find_dated(url, Asked(date(2017, 5, 1), date(2017, 5, 3), (10, 45, 11, 46), ("s2",)), ["red"])
    assert [(source.uri, str(source.assets[0].path)) for source in found.sources] == [
        ("https://catalogue/first", "s3://bucket-of-cogs/33/a.tif"), ("https://catalogue/third", "s3://bucket-of-cogs/33/a.tif"),
    ]  # fmt: skip
    assert [*found.refused.values()] and all("http" in reason for reason in found.refused.values())
    assert len(bodies) == 2 and bodies[0]["collections"] == ["s2"] and bodies[0]["bbox"] == [10, 45, 11, 46]
    assert bodies[0]["datetime"] == "2017-05-01T00:00:00Z/2017-05-03T23:59:59Z"


def test_a_server_that_does_not_answer_is_no_empty_archive():
    with pytest.raises(OSError, match=r"127\.0\.0\.1"):
        find_dated("http://127.0.0.1:9", Asked(), [])
    with served([], []) as url, pytest.raises(Refused, match="check the address and the collections"):
        find_dated(f"{url}/nowhere", Asked(), [])
