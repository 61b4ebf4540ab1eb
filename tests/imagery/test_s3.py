"""Law 5 in a bucket, on a server process of its own: created once, replaced as a whole, faults and all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import Refused, Unreadable
from pipeline.geometry.windows import Window
from pipeline.imagery import s3, storage
from pipeline.imagery.bands import Band
from pipeline.imagery.catalogue import find_sources
from pipeline.imagery.raster import open_scene
from pipeline.imagery.reader import SceneReader, preview
from pipeline.imagery.region import Area
from pipeline.imagery.storage import Remote, Taken
from tests.servers import Fault, Store, get_bytes, put_bytes, put_file
from tests.toys import PROJECT, smooth_noise, write_scene

BANDS = [Band("1"), Band("2"), Band("3")]
BLOCKS = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
TRANSIENT = [
    Fault(500, every=3),
    Fault(503, every=3),
    Fault(429, every=3),
    Fault("reset", every=3),
    Fault("truncate", method="GET", every=4),
    Fault("delay", every=3, seconds=0.3),
    Fault(503, times=3),
]


@pytest.fixture
def bucket(store: Store, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Remote:
    """A prefix of this test's own in a bucket, where nothing fails yet; this process is a user of the store."""
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    store.calm()
    put_bytes(store, b"", "tests/exists")
    return Remote("tests", f"{abs(hash(request.node.nodeid)):x}")


def test_places():
    place = storage.place_of("s3://bucket/a/b.tar.gz")
    assert place == Remote("bucket", "a/b.tar.gz") == Remote("bucket") / "a" / "b.tar.gz" and str(place) == "s3://bucket/a/b.tar.gz"
    assert (place.name, place.stem, place.suffix, place.parent) == ("b.tar.gz", "b.tar", ".gz", Remote("bucket", "a"))
    assert place.with_name("c") == Remote("bucket", "a/c") and str(Remote("bucket")) == "s3://bucket"
    assert storage.gdal_name(place) == "/vsis3/bucket/a/b.tar.gz" and storage.of_gdal("/vsis3/bucket/a/b.tar.gz") == place
    with pytest.raises(TypeError):
        Path(place)  # type: ignore[arg-type]
    virtual = ("/vsis3/bucket/key", "/vsicurl/http://host/x", "/a/../vsicurl/http://host/x", "file:///vsizip/x.zip")
    for wrong in ("s3://", "s3:///key", "gs://bucket/key", "https://host/file.tif", *virtual):
        with pytest.raises(Refused, match=r"names no bucket|is not supported|virtual file systems"):
            storage.place_of(wrong)
    with pytest.raises(Refused, match="must be a local path"):
        storage.local_path("s3://bucket/key")


def test_create_once_list_read_replace_remove(bucket: Remote, store: Store):
    plan = bucket / "parts" / "plan.json"
    assert storage.read_json(plan) is None and storage.version(plan) is None and storage.names(bucket) == set()
    assert storage.create_json(plan, {"writer": 1}) and not storage.create_json(plan, {"writer": 2})
    assert storage.read_json(plan) == {"writer": 1} and json.loads(get_bytes(store, f"tests/{plan.key}") or b"") == {"writer": 1}
    assert storage.names(bucket) == {"parts"} and storage.names(bucket / "parts") == {"plan.json"}
    assert storage.is_file(plan) and not storage.is_folder(plan) and storage.is_folder(bucket) and not storage.is_file(bucket)
    before = storage.version(plan)
    storage.replace_json(plan, {"writer": 3})
    assert storage.read_json(plan) == {"writer": 3} and storage.version(plan) != before
    storage.remove(plan)
    storage.remove(plan)
    assert storage.names(bucket) == set()


def test_listings_longer_than_a_page(bucket: Remote, store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(s3, "PAGE", 3)
    for name in [f"{number}.part" for number in range(8)] + [f"{number}/deeper" for number in range(4)]:
        put_bytes(store, b"", f"tests/{bucket.key}/{name}")
    store.calm()
    assert storage.names(bucket) == {f"{number}.part" for number in range(8)} | set("0123")
    assert len(store.requests) == 4


@pytest.mark.parametrize("size", [10, 11 * 2**20], ids=["one request", "in parts"])
def test_replace_only_what_was_seen(bucket: Remote, monkeypatch: pytest.MonkeyPatch, size: int):
    monkeypatch.setattr(s3, "PART_BYTES", 5 * 2**20)
    place, contents = bucket / "mask.tif", [os.urandom(size) for _ in range(4)]

    def publish(content: bytes, onto: str | None) -> None:
        finished = storage.temporary(bucket, "mask.tif")
        finished.write_bytes(content)
        with storage.discarded(finished):
            storage.publish(finished, place, onto=onto)

    publish(contents[0], None)
    seen = storage.version(place)
    with pytest.raises(Taken, match="another one"):
        publish(contents[1], None)
    publish(contents[2], seen)
    with pytest.raises(Taken, match="another one"):
        publish(contents[3], seen)
    assert storage.read(place) == contents[2]
    with storage.here(place) as copy:
        assert copy.read_bytes() == contents[2]
    assert not copy.exists()


def test_of_sixteen_writers_exactly_one_wins(bucket: Remote):
    for attempt in range(5):
        place, start = bucket / f"{attempt}.json", threading.Barrier(16)

        def create(writer: int, place: Remote = place, start: threading.Barrier = start) -> bool:
            start.wait()
            return storage.create_json(place, {"writer": writer})

        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(create, range(16)))
        assert sum(won) == 1 and storage.read_json(place) == {"writer": won.index(True)}


@pytest.mark.parametrize("size", [10, 11 * 2**20], ids=["one request", "in parts"])
def test_a_lost_answer_is_settled_by_reading_back(bucket: Remote, store: Store, monkeypatch: pytest.MonkeyPatch, size: int):
    monkeypatch.setattr(s3, "PART_BYTES", 5 * 2**20)
    store.fail(Fault("lose", method="PUT|POST", times=1, path="json$|uploadId=[^&]*$"))
    assert storage.create(bucket / "manifest.json", b"x" * size)
    assert store.injected == 1 and storage.read(bucket / "manifest.json") == b"x" * size
    assert not storage.create(bucket / "manifest.json", b"y" * size)


@pytest.mark.parametrize("fault", TRANSIENT, ids=lambda fault: f"{fault.kind}-{fault.times if fault.times < 9 else fault.every}")
def test_transient_faults_change_nothing(bucket: Remote, store: Store, tmp_path: Path, fault: Fault):
    values_CHW = smooth_noise(1, (3, 700, 900))
    scene = put_file(store, write_scene(tmp_path / "scene.tif", values_CHW, **BLOCKS), f"tests/{bucket.key}/scene.tif")
    store.fail(fault)
    for number in range(3):
        assert storage.create_json(bucket / f"{number}.json", number)
    assert [storage.read_json(bucket / f"{number}.json") for number in range(3)] == [0, 1, 2]
    (source,) = find_sources([scene])
    opened = open_scene(source, BANDS)
    with SceneReader(opened) as reader:
        for window in (opened.grid.window, Window(256, 300, 300, 300)):
            read = reader.read(window).values_CHW
            np.testing.assert_array_equal(read, values_CHW[:, *window.slices()])
    assert store.injected > 0


def test_a_store_that_stays_away_is_an_unreadable_window(bucket: Remote, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage, "WAITS_S", (0.0,))
    monkeypatch.setattr(s3, "GDAL_RETRIES", 0)
    scene = put_file(store, write_scene(tmp_path / "scene.tif", smooth_noise(1, (3, 700, 900)), **BLOCKS), f"tests/{bucket.key}/scene.tif")
    opened = open_scene(find_sources([scene])[0], BANDS)
    with SceneReader(opened) as reader:
        store.fail(Fault(503, method="GET"))
        with pytest.raises(Unreadable, match=r"scene.tif: .*rows 0 to 700|for rows 0 to 700.*scene.tif") as told:
            reader.read(opened.grid.window)
        assert store.url.removeprefix("http://") not in str(told.value), "no endpoint in what is recorded"
        store.calm()
        np.testing.assert_array_equal(reader.read(opened.grid.window).values_CHW, smooth_noise(1, (3, 700, 900)))


def test_an_object_that_was_replaced_is_read_anew(bucket: Remote, store: Store, tmp_path: Path):
    versions = []
    for seed, shape in ((1, (3, 700, 900)), (2, (3, 500, 600)), (1, (3, 700, 900))):
        values_CHW = smooth_noise(seed, shape)
        scene = put_file(store, write_scene(tmp_path / "scene.tif", values_CHW, **BLOCKS), f"tests/{bucket.key}/scene.tif")
        opened = open_scene(find_sources([scene])[0], BANDS)
        with SceneReader(opened) as reader:
            np.testing.assert_array_equal(reader.read(opened.grid.window).values_CHW, values_CHW)
        np.testing.assert_array_equal(preview(opened, opened.grid.window, shape[1:])[0], values_CHW)
        versions.append(opened.version)
    assert versions[0] == versions[2] != versions[1]


def test_what_is_not_there_is_refused_in_one_line(bucket: Remote, store: Store):
    put_bytes(store, b"no raster", f"tests/{bucket.key}/broken.tif")
    for place, reason in (
        ("s3://tests/none.tif", "no such file or folder"),
        ("s3://nowhere/none.tif", "no such bucket"),
        (f"{bucket}/*.jp2", "no file matches"),
    ):
        with pytest.raises(Refused, match=reason):
            find_sources([place])
    (source,) = find_sources([str(bucket)])
    with pytest.raises(Refused, match="cannot be opened as a raster"):
        open_scene(source, BANDS)
    with pytest.raises(Refused, match="no such bucket"):
        storage.check_writable(Remote("nowhere", "out"))
    store.fail(Fault(403))
    for attempt in (lambda: find_sources([str(bucket)]), lambda: storage.check_writable(bucket)):
        with pytest.raises(Refused, match="access denied: check the AWS credentials"):
            attempt()


def test_scenes_and_items_in_a_bucket(bucket: Remote, store: Store, tmp_path: Path):
    for name in ("b.tif", "a.TIF", ".hidden.tif", "notes.txt", "deeper/c.tif"):
        put_file(store, write_scene(tmp_path / "one.tif", smooth_noise(3, (3, 40, 50))), f"tests/{bucket.key}/{name}")
    item = {"type": "Feature", "id": "item", "assets": {"red": {"href": "../deeper/c.tif", "roles": ["data"]}}, "properties": {}}
    put_bytes(store, json.dumps(item).encode(), f"tests/{bucket.key}/items/item.json")
    assert [source.uri for source in find_sources([str(bucket)])] == [f"{bucket}/a.TIF", f"{bucket}/b.tif"]
    assert [source.scene_id for source in find_sources([f"{bucket}/?.tif", f"{bucket}/**/c.tif"])] == ["b", "c"]
    (source,) = find_sources([f"{bucket}/items/item.json"])
    assert source.assets[0].path == bucket / "deeper" / "c.tif" and open_scene(source, BANDS).grid.width == 50


def test_a_region_in_a_bucket(bucket: Remote, store: Store):
    corners = [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    square = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [corners]}}
    content = json.dumps({"type": "FeatureCollection", "features": [square]}).encode()
    assert Area.from_file(storage.place_of(put_bytes(store, content, f"tests/{bucket.key}/region.geojson"))).label.startswith("aoi ")
    with pytest.raises(Refused, match="no such file"):
        Area.from_file(bucket / "none.geojson")
    with pytest.raises(Refused, match="several files"):
        Area.from_file(storage.place_of(put_bytes(store, content, f"tests/{bucket.key}/region.shp")))


def test_a_store_that_ignores_conditions_is_found_out(bucket: Remote, store: Store):
    assert storage.check_writable(bucket) == []
    store.fail(Fault("deaf"))
    (note,) = storage.check_writable(bucket)
    assert "ignores conditional writes" in note and storage.names(bucket) == set()
    assert storage.create_json(bucket / "plan.json", 1) and not storage.create_json(bucket / "plan.json", 2), "one after another it holds"
    assert storage.read_json(bucket / "plan.json") == 1


def test_uploads_that_were_never_ended_are_swept(bucket: Remote, store: Store):
    s3._call("create_multipart_upload", bucket / "scenes" / "mask.tif")
    (page,) = s3._pages("list_multipart_uploads", bucket)
    assert len(page["Uploads"]) == 1
    s3.abort_uploads(bucket, before=page["Uploads"][0]["Initiated"])
    (page,) = s3._pages("list_multipart_uploads", bucket)
    assert len(page["Uploads"]) == 1, "of a run that may be under way"
    storage.sweep(bucket / "scenes")
    (page,) = s3._pages("list_multipart_uploads", bucket)
    assert not page.get("Uploads")


def test_what_a_killed_process_left_in_its_own_folder_is_swept(bucket: Remote, tmp_path: Path):
    code = (
        "import os, signal\nfrom pipeline.imagery import storage\nfolder = storage.workshop(storage.Remote('tests', 'x'))\n"
        "(folder / 'left').touch()\nprint(folder, flush=True)\n"
    )
    environment, pipe = {**os.environ, "TMPDIR": str(tmp_path)}, subprocess.PIPE

    def start(then: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", code + then], cwd=PROJECT, env=environment, text=True, stdin=pipe, stdout=pipe)

    killed, living = start("os.kill(os.getpid(), signal.SIGKILL)"), start("input()")
    folders = [Path(process.stdout.readline().strip()) for process in (killed, living) if process.stdout]
    killed.wait()
    start("").wait()
    assert not folders[0].exists() and (folders[1] / "left").exists()
    living.kill()
    living.wait()


def end_of(place: storage.Place, size: int) -> bytes:
    """As a Parquet footer is read."""
    with storage.sought(place) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return file.read()


def test_the_end_of_an_object(bucket: Remote):
    storage.create(bucket / "object", b"0123456789")
    assert [end_of(bucket / "object", size) for size in (4, 10, 40)] == [b"6789", b"0123456789", b"0123456789"]
    with pytest.raises(FileNotFoundError, match="missing"):
        end_of(bucket / "missing", 4)
