"""Laws 5 and 6 in what is published: the manifest first, each file as a whole and only where it is missing, nothing in silence."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image

from pipeline.errors import Unreadable
from pipeline.imagery import storage
from pipeline.models.bundle import NODATA, Bundle
from pipeline.results import publish as publishing
from pipeline.results.polygons import PolygonOptions, polygons_made_from
from pipeline.results.publish import is_done, publish_scene, table_path
from tests.results.scenes import NODATA_VALUE, Done, class_bundle, publish, stripes, value_bundle

LAYERS = ("mask", "confidence")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return class_bundle(tmp_path_factory.mktemp("publish") / "bundle")


def files(done: Done) -> dict[str, tuple[bytes, int]]:
    """The final files, their bytes and inodes."""
    paths = [*done.folder.glob("*.*"), table_path(done.ledger, "mask")]
    return {path.name: (path.read_bytes(), path.stat().st_ino) for path in paths}


def again(done: Done, bundle: Bundle, run_id: str = "another run", **about: Any) -> publishing.Published:
    return publish_scene(done.ledger, done.plan, bundle, run_id, **{"accept_partial": False} | about)


def test_a_scene_is_done_when_its_manifest_and_files_agree(tmp_path: Path, bundle: Bundle):
    ids_HW = stripes(80, 600, corner=20)
    done = publish(tmp_path / "out", bundle, ids_HW, layers=LAYERS)
    assert done.published.complete and done.published.committed and is_done(done.ledger, LAYERS)
    with rasterio.open(done.published.raster) as mask:
        assert np.array_equal(mask.read(1), np.where(ids_HW == NODATA_VALUE, NODATA, ids_HW))
    assert set(files(done)) == {"mask.tif", "confidence.tif", "quicklook.png", "item.json", "scene.parquet"}
    left = {path.name for path in done.out.rglob("*") if path.is_file()} - set(files(done))
    assert left == {"plan.json", "manifest.json", "r00000c00000.part"}, "and nothing temporary"


@pytest.mark.parametrize("name", ["mask.tif", "confidence.tif", "quicklook.png", "item.json", "scene.parquet"])
def test_only_what_is_missing_is_published_again(tmp_path: Path, bundle: Bundle, name: str):
    done = publish(tmp_path / "out", bundle, stripes(80, 90), layers=LAYERS)
    before = files(done)
    (table_path(done.ledger, "mask") if name == "scene.parquet" else done.folder / name).unlink()
    assert not is_done(done.ledger, LAYERS)
    assert not again(done, bundle).committed, "the first manifest holds"
    after = files(done)
    assert is_done(done.ledger, LAYERS)
    assert {path: content for path, (content, _) in after.items()} == {path: content for path, (content, _) in before.items()}
    assert {path for path in before if before[path] != after[path]} <= {name}


def test_files_of_another_attempt_are_replaced(tmp_path: Path, bundle: Bundle):
    """After --fresh, or where the input changed, each file is old or new as a whole, and the scene not done before all are new."""
    done = publish(tmp_path / "out", bundle, stripes(80, 90))
    ledger = replace(done.ledger, attempt=f"{done.ledger.attempt}-1")
    assert not is_done(ledger, ("mask",))
    os.rename(done.ledger.folder, ledger.folder)
    (ledger.folder / "manifest.json").unlink()
    publish_scene(ledger, done.plan, bundle, "run", accept_partial=False)
    assert is_done(ledger, ("mask",)) and not is_done(done.ledger, ("mask",))
    with Image.open(done.folder / "quicklook.png") as picture:
        assert picture.info["input_id"] == ledger.attempt


def test_without_all_parts_only_a_partial_mask_is_there(tmp_path: Path, bundle: Bundle):
    ids_HW = stripes(60, 1300)
    done = publish(tmp_path / "whole" / "out", bundle, ids_HW)
    part = done.ledger.folder / f"{done.plan.shard_name(done.plan.shards()[1])}.part"
    kept = part.read_bytes()
    for path in [*done.folder.glob("*.*"), table_path(done.ledger, "mask"), done.ledger.folder / "manifest.json", part]:
        path.unlink()
    published = again(done, bundle)
    assert not published.complete and published.raster.name == "mask.partial.tif"
    (failed,) = published.failed
    assert failed[:4] == done.plan.shards()[1] and failed.reason
    assert [path.name for path in done.folder.glob("*.*")] == ["mask.partial.tif"] and not table_path(done.ledger, "mask").exists()
    assert done.ledger.manifest() is None and not is_done(done.ledger, ("mask",))
    with rasterio.open(published.raster) as mask:
        mask_HW = mask.read(1)
    rows, cols = done.plan.shards()[1].slices()
    assert (mask_HW[rows, cols] == NODATA).all()
    mask_HW[rows, cols] = ids_HW[rows, cols]
    assert np.array_equal(mask_HW, ids_HW), "the rest is there"
    part.write_bytes(kept)
    assert again(done, bundle).complete and is_done(done.ledger, ("mask",))
    assert not published.raster.exists(), "the partial mask goes when the whole one comes"


def test_a_part_that_is_missing_for_good_is_accepted_when_asked(tmp_path: Path, bundle: Bundle):
    done = publish(tmp_path / "out", bundle, stripes(60, 1300))
    (done.ledger.folder / "manifest.json").unlink()
    (done.ledger.folder / f"{done.plan.shard_name(done.plan.shards()[0])}.part").unlink()
    (done.folder / "mask.tif").unlink()
    published = again(done, bundle, accept_partial=True)
    assert published.complete and len(published.failed) == 1
    assert done.ledger.manifest()["failed_windows"] == [list(published.failed[0])]


@pytest.mark.parametrize("how", ["rewritten", "gone"])
def test_an_input_that_changed_meanwhile_publishes_nothing(tmp_path: Path, bundle: Bundle, how: str):
    done = publish(tmp_path / "out", bundle, stripes(60, 70))
    before, path = files(done), tmp_path / "scene.tif"
    (done.folder / "mask.tif").unlink()
    time.sleep(0.02)
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes())
    with pytest.raises(Unreadable, match=r"changed while it was read|cannot be opened any more"):
        again(done, bundle)
    assert set(files(done)) == set(before) - {"mask.tif"}


def test_a_part_that_was_damaged_since_is_named_and_nothing_is_published(tmp_path: Path, bundle: Bundle):
    done = publish(tmp_path / "out", bundle, stripes(60, 70))
    (done.folder / "mask.tif").unlink()
    part = done.ledger.folder / "r00000c00000.part"
    whole = part.read_bytes()
    part.write_bytes(whole[:9] + bytes([whole[9] ^ 1]) + whole[10:])
    with pytest.raises(Unreadable, match=r"r00000c00000\.part: is damaged .*remove it and start again"):
        again(done, bundle)
    assert not (done.folder / "mask.tif").exists() and not is_done(done.ledger, ("mask",))
    assert not list(done.folder.glob(".*")), "nothing temporary is left"


def test_a_part_that_another_driver_adds_meanwhile_makes_no_hole(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    """A shard that was missing when the parts were listed is not taken for one whose pixels are nodata for good."""
    done = publish(tmp_path / "out", bundle, stripes(60, 1300))
    part = done.ledger.folder / f"{done.plan.shard_name(done.plan.shards()[1])}.part"
    kept = part.read_bytes()
    for path in (part, done.ledger.folder / "manifest.json", done.folder / "mask.tif"):
        path.unlink()
    honest = publishing.read_part

    def late(path: Path) -> object:
        part.write_bytes(kept)
        return honest(path)

    monkeypatch.setattr(publishing, "read_part", late)
    assert not again(done, bundle).complete and done.ledger.manifest() is None
    assert again(done, bundle).complete


def test_the_loser_of_two_drivers_changes_nothing(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    """Even where the winner has cleaned up; and its partial mask does not outlive the whole one."""
    done = publish(tmp_path / "out", bundle, stripes(60, 1300))
    done.ledger.clean()
    before = files(done)
    loser = again(done, bundle)
    assert loser.complete and not loser.committed and loser.rows == done.published.rows
    assert again(done, bundle, "run").committed, "an attempt of the winner that was cut short is the winner's"
    assert files(done) == before
    monkeypatch.setattr(publishing, "is_done", lambda *_: False)  # it looked before the winner was done
    assert not again(done, bundle).complete
    assert files(done) == before


def changed(done: Done, before: dict[str, tuple[bytes, int]]) -> set[str]:
    """The final files that are not those of `before`."""
    return {name for name, content in files(done).items() if before.get(name) != content}


def test_polygons_are_added_later_and_follow_their_options(tmp_path: Path, bundle: Bundle):
    """From the mask: the parts may be gone. The item names them, and how they were made."""
    done = publish(tmp_path / "out", bundle, stripes(80, 600, corner=20), layers=LAYERS)
    done.ledger.clean()
    before, plain, sieved = files(done), PolygonOptions(), PolygonOptions(min_area_m2=9000.0)
    assert not is_done(done.ledger, LAYERS, plain)
    assert again(done, bundle, polygons=plain).complete and is_done(done.ledger, LAYERS, plain) and is_done(done.ledger, LAYERS)
    assert changed(done, before) == {"polygons.parquet", "item.json"}
    asset = storage.read_json(done.folder / "item.json")["assets"]["polygons"]
    assert asset["file:checksum"] == f"1220{storage.sha256(done.folder / 'polygons.parquet')}"
    assert asset["tilewright:min_area_m2"] == 0 and asset["type"] == "application/vnd.apache.parquet"
    before = files(done)
    again(done, bundle, polygons=plain)
    again(done, bundle)
    assert changed(done, before) == set(), "there is nothing to do, nor does anyone take them away"
    assert not is_done(done.ledger, LAYERS, sieved)
    again(done, bundle, polygons=sieved)
    assert changed(done, before) == {"polygons.parquet", "item.json"} and not is_done(done.ledger, LAYERS, plain)


def test_a_run_that_was_killed_between_polygons_and_item_is_finished(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    done = publish(tmp_path / "out", bundle, stripes(80, 90))
    honest = publishing.make_item

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(publishing, "make_item", killed)
    with pytest.raises(KeyboardInterrupt):
        again(done, bundle, polygons=PolygonOptions())
    assert not is_done(done.ledger, ("mask",), PolygonOptions()) and is_done(done.ledger, ("mask",))
    before = files(done)
    monkeypatch.setattr(publishing, "make_item", honest)
    again(done, bundle, polygons=PolygonOptions())
    assert changed(done, before) == {"item.json"} and is_done(done.ledger, ("mask",), PolygonOptions())


def test_polygons_of_an_older_mask_do_not_outlive_it(tmp_path: Path, bundle: Bundle):
    """A new attempt makes them again where they are asked for; else they go, and the item no longer names them."""
    done = publish(tmp_path / "out", bundle, stripes(80, 90))
    again(done, bundle, polygons=PolygonOptions())
    for number, polygons in enumerate((PolygonOptions(), None), 1):
        ledger = replace(done.ledger, attempt=f"{done.plan.scene.input_id}-{number}")
        os.rename(done.ledger.folder, ledger.folder)
        (ledger.folder / "manifest.json").unlink()
        done = replace(done, ledger=ledger)
        assert not is_done(ledger, ("mask",), polygons)
        again(done, bundle, polygons=polygons)
        assert is_done(ledger, ("mask",), polygons)
        found = polygons_made_from(done.folder / "polygons.parquet")
        assert found == ((ledger.attempt, polygons) if polygons else None)
    assert "polygons" not in storage.read_json(done.folder / "item.json")["assets"]


def test_without_all_parts_polygons_wait(tmp_path: Path, bundle: Bundle):
    done = publish(tmp_path / "out", bundle, stripes(60, 1300))
    for path in (done.ledger.folder / "manifest.json", done.ledger.folder / "r00000c00000.part"):
        path.unlink()
    assert not again(done, bundle, polygons=PolygonOptions()).complete and not (done.folder / "polygons.parquet").exists()


def test_an_older_input_does_not_replace_a_newer_result(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    """The input is looked at again just before each file gets its name."""
    done = publish(tmp_path / "out", bundle, stripes(60, 70))
    (done.folder / "mask.tif").unlink()
    honest = publishing.write_layer

    def slow(*arguments: object, **named: object) -> None:
        honest(*arguments, **named)
        os.utime(tmp_path / "scene.tif")

    monkeypatch.setattr(publishing, "write_layer", slow)
    with pytest.raises(Unreadable, match="changed while it was read"):
        again(done, bundle)
    assert not (done.folder / "mask.tif").exists() and not list(done.ledger.folder.glob(".*"))


def test_values_without_all_parts_are_partial_and_wait(tmp_path: Path):
    bundle = value_bundle(tmp_path / "bundle")
    done = publish(tmp_path / "out", bundle, stripes(60, 1300))
    assert {path.name for path in done.folder.glob("*.*")} == {"value.tif", "quicklook.png", "item.json"}
    assert is_done(done.ledger, ("value",)) and table_path(done.ledger, "value").parent.name == "values"
    part = done.ledger.folder / f"{done.plan.shard_name(done.plan.shards()[1])}.part"
    kept, whole = part.read_bytes(), (done.folder / "value.tif").read_bytes()
    for path in [*done.folder.glob("*.*"), table_path(done.ledger, "value"), done.ledger.folder / "manifest.json", part]:
        path.unlink()
    published = again(done, bundle)
    assert not published.complete and published.raster.name == "value.partial.tif" and not table_path(done.ledger, "value").exists()
    with rasterio.open(published.raster) as dataset:
        values_HW = dataset.read(1)
    rows, cols = done.plan.shards()[1].slices()
    assert np.isnan(values_HW[rows, cols]).all() and np.isnan(values_HW).sum() == done.plan.shards()[1].pixels
    part.write_bytes(kept)
    assert again(done, bundle).complete and not published.raster.exists()
    assert (done.folder / "value.tif").read_bytes() == whole
