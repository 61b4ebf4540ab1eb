"""The parcels of a published scene: against shapely, made once, made again where mask or parcels changed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from rasterio.transform import Affine

from pipeline.errors import Refused, Unreadable
from pipeline.imagery.parcels import Parcels, read_parcels
from pipeline.imagery.s3 import Remote
from pipeline.models.bundle import Bundle
from pipeline.results import scene_parcels
from pipeline.results.publish import parcels_path, publish_scene
from pipeline.results.scene_parcels import check_parcels, publish_parcels
from pipeline.results.tables import INDICES, PARCELS, read_rows
from pipeline.results.zonal import Coverages
from tests.results.scenes import Done, class_bundle, publish, stripes, value_bundle
from tests.servers import Store, get_bytes, put_file
from tests.toys import UTM


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return class_bundle(tmp_path_factory.mktemp("parcels") / "bundle")


FIELDS = {"north": (10.5, 20.25, 40, 35), "south": (60, 70, 61, 75.5), "nodata": (1, 1, 9, 9), "far": (900, 10, 950, 30)}


def parcels_of(folder: Path, fields: dict[str, tuple[float, ...]] = FIELDS, crs: str = "EPSG:4326") -> Parcels:
    """Boxes in (col, row) of the scene, in degrees."""
    transform: Affine = UTM["transform"]
    boxes = [shapely.box(*(transform * (left, bottom)), *(transform * (right, top))) for left, top, right, bottom in fields.values()]
    frame = geopandas.GeoDataFrame({"id": list(fields)}, geometry=boxes, crs=UTM["crs"])
    frame.to_crs(crs).to_parquet(folder / "parcels.parquet")
    return read_parcels(folder / "parcels.parquet")


def rows_of(done: Done) -> list[dict[str, Any]]:
    return read_rows(parcels_path(done.ledger))


def test_a_row_a_parcel_and_class_of_those_the_scene_reaches(tmp_path: Path, bundle: Bundle):
    ids_HW = stripes(80, 90, corner=20)
    done = publish(tmp_path / "out", bundle, ids_HW, layers=("mask", "confidence"), datetime="2024-05-01T10:00:00Z")
    parcels = parcels_of(tmp_path)
    assert publish_parcels(done.ledger, bundle, Coverages(parcels))
    rows = rows_of(done)
    assert [row["parcel_id"] for row in rows] == ["nodata"] + ["north"] * 4 + ["south"] * 4, "sorted; the one that is far is left out"
    assert pq.read_schema(parcels_path(done.ledger)).equals(PARCELS)
    assert {row["scene_id"] for row in rows} == {"scene"} and {row["scene_datetime"].day for row in rows} == {1}
    assert {row["model_id"] for row in rows} == {bundle.model_id}
    assert (rows[0]["state"], rows[0]["valid_share"], rows[0]["class_id"]) == ("unknown", 0, None)
    col, row = np.meshgrid(np.arange(90), np.arange(80))
    with rasterio.open(done.folder / "confidence.tif") as raster:
        confidence_HW = raster.read(1)
    pixel_boxes = shapely.box(col, row, col + 1, row + 1)
    for name in ("north", "south"):
        left, top, right, bottom = FIELDS[name]
        share_HW = shapely.area(shapely.intersection(pixel_boxes, shapely.box(left, top, right, bottom)))
        wanted = np.array([share_HW[ids_HW == number].sum() for number in range(4)])
        of_it = [row for row in rows if row["parcel_id"] == name]
        assert [row["pixel_count"] for row in of_it] == pytest.approx(wanted, abs=0.01)
        assert [row["area_m2"] for row in of_it] == pytest.approx(wanted * 900, rel=2e-3, abs=1)
        for row, share in zip(of_it, wanted, strict=True):
            inside = share_HW * (ids_HW == row["class_id"])
            assert row["mean_confidence"] == (pytest.approx((confidence_HW * inside).sum() / share, abs=0.1) if share else None)
        assert sum(row["share"] for row in of_it) == pytest.approx(1) and of_it[0]["state"] == "known"
        assert of_it[0]["parcel_area_m2"] == pytest.approx((right - left) * (bottom - top) * 900, rel=2e-3)


def test_it_is_made_once_and_again_where_the_parcels_changed(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    done = publish(tmp_path / "out", bundle, stripes(80, 90))
    assert publish_parcels(done.ledger, bundle, Coverages(parcels_of(tmp_path)))
    first = parcels_path(done.ledger).read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(scene_parcels, "parcel_statistics", None)
        assert not publish_parcels(done.ledger, bundle, Coverages(parcels_of(tmp_path, crs="EPSG:4326")))
    smaller = parcels_of(tmp_path, FIELDS | {"south": (60, 70, 61, 74)})
    assert publish_parcels(done.ledger, bundle, Coverages(smaller))
    assert parcels_path(done.ledger).read_bytes() != first
    assert publish_parcels(done.ledger, bundle, Coverages(parcels_of(tmp_path)))
    assert parcels_path(done.ledger).read_bytes() == first, "law 4"


def test_it_goes_when_the_scene_is_done_again_without_it(tmp_path: Path, bundle: Bundle):
    done = publish(tmp_path / "out", bundle, stripes(80, 90))
    coverages = Coverages(parcels_of(tmp_path))
    publish_parcels(done.ledger, bundle, coverages)
    publish_scene(done.ledger, done.plan, bundle, "run", accept_partial=False)
    assert parcels_path(done.ledger).exists(), "it is of this attempt"
    again = replace(done.ledger, attempt=f"{done.ledger.attempt}-1")
    with pytest.raises(Unreadable, match="is of another attempt at the scene"):
        publish_parcels(again, bundle, coverages)
    os.rename(done.ledger.folder, again.folder)
    (again.folder / "manifest.json").unlink()
    publish_scene(again, done.plan, bundle, "run", accept_partial=False)
    assert not parcels_path(done.ledger).exists()
    assert publish_parcels(again, bundle, coverages) and rows_of(done)[0]["input_id"].startswith(f"{again.attempt}+")


def test_of_a_number_a_pixel_there_are_its_statistics(tmp_path: Path):
    bundle = value_bundle(tmp_path / "bundle")
    done = publish(tmp_path / "out", bundle, stripes(80, 90, corner=20), layers=("value",))
    assert publish_parcels(done.ledger, bundle, Coverages(parcels_of(tmp_path, FIELDS | {"square": (50, 30, 60, 50)})))
    nodata, *_, square = rows = rows_of(done)
    assert [row["parcel_id"] for row in rows] == ["nodata", "north", "south", "square"] and pq.read_schema(
        parcels_path(done.ledger)
    ).equals(INDICES)
    with rasterio.open(done.published.raster) as raster:
        values = raster.read(1)[30:50, 50:60].astype(float)
    assert square["index_name"] == bundle.target.name and square["scene_id"] == "scene"
    assert (square["minimum"], square["maximum"]) == (values.min(), values.max())
    assert (square["mean"], square["std"]) == pytest.approx((values.mean(), values.std()), rel=1e-3)
    assert (nodata["state"], nodata["mean"]) == ("unknown", None)


def test_parcels_that_lie_in_no_scene_are_named_or_refused(tmp_path: Path, bundle: Bundle):
    done = publish(tmp_path / "out", bundle, stripes(80, 90))
    scene = done.plan.scene
    assert check_parcels("a.gpkg", parcels_of(tmp_path), [scene]) == ["1 of 4 parcels lie in no scene (far)"]
    assert check_parcels("a.gpkg", parcels_of(tmp_path, {"north": FIELDS["north"]}), [scene]) == []
    with pytest.raises(Refused, match=r"a.gpkg: none of its 1 parcels lies in a scene: check its CRS"):
        check_parcels("a.gpkg", parcels_of(tmp_path, {"far": FIELDS["far"]}), [scene])
    with pytest.raises(Refused, match="has no place on the ground, so no parcel lies in it"):
        check_parcels("a.gpkg", parcels_of(tmp_path), [replace(scene, resolution_m=None)])


def test_on_a_bucket_it_is_the_same(tmp_path: Path, bundle: Bundle, store: Store, monkeypatch: pytest.MonkeyPatch):
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    done = publish(tmp_path / "out", bundle, stripes(80, 90))
    publish_parcels(done.ledger, bundle, Coverages(parcels_of(tmp_path)))
    for path in done.out.rglob("*"):
        if path.is_file() and path.parent.name != "parcels":
            put_file(store, path, f"parcels-of-scenes/out/{path.relative_to(done.out)}")
    put_file(store, tmp_path / "parcels.parquet", "parcels-of-scenes/fields/parcels.parquet")
    parcels = read_parcels(Remote("parcels-of-scenes", "fields/parcels.parquet"))
    there = replace(done.ledger, out="s3://parcels-of-scenes/out")
    assert publish_parcels(there, bundle, Coverages(parcels)) and not publish_parcels(there, bundle, Coverages(parcels))
    assert get_bytes(store, "parcels-of-scenes/out/results/parcels/scene.parquet") == parcels_path(done.ledger).read_bytes()
