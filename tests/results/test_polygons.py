"""polygons.parquet: GDAL's polygons of the published mask, with areas that add up to the table's, in a file that others open."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import geopandas
import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
from rasterio.transform import Affine, from_origin
from scipy import ndimage

from pipeline.errors import Refused, Unreadable
from pipeline.imagery import storage
from pipeline.imagery.storage import Remote
from pipeline.inference.segment import segment_scene
from pipeline.models.bundle import Bundle, load_bundle
from pipeline.results import polygons as polygons_module
from pipeline.results import wkb
from pipeline.results.polygons import PolygonOptions, polygons_made_from, write_polygons
from tests.geometry.rasters import key_of, polygons_of_whole
from tests.results.scenes import NODATA_VALUE, Done, class_bundle, publish, stripes
from tests.servers import Store, put_file

CONTRACT = {
    "polygon_id": "int64", "class_id": "uint8", "class_name": "string", "area_m2": "double", "perimeter_m": "double",
    "pixel_count": "int64", "mean_confidence": "double", "model_id": "string", "input_id": "string", "geometry": "binary",
    "bbox": "struct<xmin: double not null, ymin: double not null, xmax: double not null, ymax: double not null>",
}  # fmt: skip
PLACES = {
    "utm": {"crs": "EPSG:32633", "transform": from_origin(480_000, 5_100_000, 10, 10)},
    "degrees": {"crs": "EPSG:4326", "transform": from_origin(-10, 61, 0.01, 0.01)},
    "south up": {"crs": "EPSG:32733", "transform": Affine(10, 0, 480_000, 0, 10, 5_100_000)},
    "turned": {"crs": "EPSG:3413", "transform": Affine(400, 90, -600_000, 90, -400, 500_000)},
    "nowhere": {"crs": None},
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return class_bundle(tmp_path_factory.mktemp("polygons") / "bundle")


@pytest.fixture(scope="module", params=PLACES)
def done(request: pytest.FixtureRequest, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A published scene of patches, with confidence and a corner of nodata; 600 rows are two rows of blocks."""
    random = np.random.default_rng(0)
    fields = [ndimage.gaussian_filter(random.normal(size=(600, 170)), 2) for _ in range(4)]
    ids_HW = np.argmax(fields, axis=0).astype(np.uint8)
    ids_HW[:60, :70] = NODATA_VALUE
    out = tmp_path_factory.mktemp(request.param.replace(" ", "_")) / "out"
    return publish(out, bundle, ids_HW, layers=("mask", "confidence"), **PLACES[request.param])


def write(done: Done, bundle: Bundle, path: Path, options: PolygonOptions = PolygonOptions(), rows: int | None = None) -> Path:
    write_polygons(path, done.plan, bundle, done.folder, done.ledger.attempt, done.published.rows, options, rows)
    return path


@pytest.fixture(scope="module")
def written(done: Done, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(done, bundle, tmp_path_factory.mktemp("written") / "polygons.parquet")


@pytest.fixture(scope="module")
def frame(written: Path) -> geopandas.GeoDataFrame:
    return geopandas.read_parquet(written)


def test_the_columns_are_the_contracts(written: Path):
    assert {field.name: str(field.type) for field in pq.read_schema(written)} == CONTRACT


def test_the_polygons_are_gdals_of_the_whole_mask(done: Done, frame: geopandas.GeoDataFrame):
    with rasterio.open(done.published.raster) as mask:
        expected = polygons_of_whole(mask.read(1), transform=mask.transform)
    assert sorted(key_of(value, polygon) for value, polygon in zip(frame.class_id, frame.geometry, strict=True)) == expected
    assert frame.geometry.is_valid.all() and frame.polygon_id.tolist() == list(range(len(frame)))
    assert shapely.is_ccw(frame.geometry.exterior).all(), "as the metadata says"


def test_areas_pixels_and_confidence_add_up_to_the_table(done: Done, frame: geopandas.GeoDataFrame):
    for row in done.published.rows:
        mine = frame[frame.class_id == row["class_id"]]
        assert mine.pixel_count.sum() == row["pixel_count"] and set(mine.class_name) <= {row["class_name"]}
        assert (mine.mean_confidence * mine.pixel_count).sum() == pytest.approx(row["mean_confidence"] * row["pixel_count"], rel=1e-12)
        if row["area_m2"] is None:
            assert mine.area_m2.isna().all() and mine.perimeter_m.isna().all()
        else:
            assert mine.area_m2.sum() == pytest.approx(row["area_m2"], rel=1e-12)
    assert set(frame.model_id) == {done.plan.model_id} and set(frame.input_id) == {done.ledger.attempt}


def test_perimeters_are_geodesic(done: Done, frame: geopandas.GeoDataFrame):
    if done.plan.scene.grid.crs is None:
        pytest.skip("no place on the ground")
    largest = frame.nlargest(5, "pixel_count")
    degrees = geopandas.GeoSeries(largest.geometry, crs=done.plan.scene.grid.crs).segmentize(1000 if frame.crs.is_projected else 0.01)
    geod = pyproj.Geod(ellps="WGS84")
    for perimeter_m, polygon in zip(largest.perimeter_m, degrees.to_crs(4326), strict=True):
        assert perimeter_m == pytest.approx(sum(geod.line_length(*ring.xy) for ring in (polygon.exterior, *polygon.interiors)), rel=1e-4)


def test_it_is_geoparquet(done: Done, written: Path, frame: geopandas.GeoDataFrame):
    metadata = pq.read_metadata(written).metadata
    geo = json.loads(metadata[b"geo"])
    column = geo["columns"]["geometry"]
    assert geo["version"] == "1.1.0" and geo["primary_column"] == "geometry"
    assert column["encoding"] == "WKB" and column["geometry_types"] == ["Polygon"] and column["orientation"] == "counterclockwise"
    assert column["bbox"] == frame.total_bounds.tolist() and column["covering"]["bbox"]["ymax"] == ["bbox", "ymax"]
    grid = done.plan.scene.grid
    assert frame.crs is None if grid.crs is None else frame.crs.equals(pyproj.CRS.from_wkt(grid.crs))
    bbox = pq.read_table(written, columns=["bbox"])["bbox"].combine_chunks().flatten()
    assert np.array_equal(np.column_stack(bbox), frame.bounds.to_numpy())
    assert polygons_made_from(written) == (done.ledger.attempt, PolygonOptions())


def test_others_open_it(written: Path, frame: geopandas.GeoDataFrame):
    rows = duckdb.sql(f"SELECT class_name, count(*), sum(pixel_count) FROM '{written}' GROUP BY 1 ORDER BY 1").fetchall()
    assert rows == [(name, len(some), some.pixel_count.sum()) for name, some in frame.groupby("class_name")]
    middle = frame.bounds.maxy.median()
    found = duckdb.sql(f"SELECT count(*) FROM '{written}' WHERE bbox.ymax <= {middle}").fetchall()
    assert found == [((frame.bounds.maxy <= middle).sum(),)]
    if "Parquet" in pyogrio.list_drivers():
        assert len(pyogrio.read_dataframe(written)) == len(frame)


@pytest.mark.parametrize("options", [PolygonOptions(), PolygonOptions(2000, 0), PolygonOptions(0, 20), PolygonOptions(4000, 30)], ids=str)
def test_the_rows_of_a_strip_do_not_change_a_byte(bundle: Bundle, tmp_path: Path, options: PolygonOptions, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(polygons_module, "ROW_GROUP", 50)
    monkeypatch.setattr(polygons_module, "MOST_VERTICES", 900)
    made = publish(tmp_path / "out", bundle, stripes(1100, 90, corner=30) % 3, layers=("mask", "confidence"), **PLACES["utm"])
    files = [write(made, bundle, tmp_path / f"{rows}", options, rows) for rows in (None, 7, 512, 1024)]
    found = {hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert len(found) == 1
    assert pq.read_metadata(tmp_path / "7").num_rows > 0


def test_small_regions_join_and_borders_stay_shared(bundle: Bundle, done: Done, tmp_path: Path):
    options = PolygonOptions(3000.0, 15.0)
    if not done.plan.scene.on_ground:
        with pytest.raises(Refused, match=r"no place on the ground, so --min-area 3000 cannot be measured"):
            write(done, bundle, tmp_path / "polygons.parquet", options)
        return
    pixel_m2 = done.plan.scene.resolution_m**2
    options = PolygonOptions(30 * pixel_m2, 1.5 * done.plan.scene.resolution_m)
    frame = geopandas.read_parquet(write(done, bundle, tmp_path / "polygons.parquet", options))
    assert frame.area_m2.min() >= options.min_area_m2 and frame.geometry.is_valid.all()
    assert frame.area_m2.sum() == pytest.approx(sum(row["area_m2"] for row in done.published.rows), rel=1e-12), "nothing is dropped"
    shapes = frame.geometry.to_numpy()
    assert shapely.coverage_is_valid(shapes)
    assert shapely.union_all(shapes).area == pytest.approx(shapely.area(shapes).sum(), rel=1e-9)
    assert not list(tmp_path.glob("*.tmp")), "the sieve's files are gone"
    assert polygons_made_from(tmp_path / "polygons.parquet") == (done.ledger.attempt, options)


def test_nothing_but_nodata(bundle: Bundle, tmp_path: Path):
    made = publish(tmp_path / "out", bundle, stripes(9, 9, corner=9))
    frame = geopandas.read_parquet(write(made, bundle, tmp_path / "polygons.parquet"))
    assert len(frame) == 0 and frame.crs.to_epsg() == 32612


def test_without_confidence_there_is_none(bundle: Bundle, tmp_path: Path):
    made = publish(tmp_path / "out", bundle, stripes(30, 40))
    frame = geopandas.read_parquet(write(made, bundle, tmp_path / "polygons.parquet"))
    assert frame.mean_confidence.isna().all() and frame.area_m2.notna().all()


def test_a_polygon_beyond_the_format_is_named(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wkb, "LONGEST", 300)
    with pytest.raises(Unreadable, match=r"too large for GeoParquet .*: give --simplify or --min-area"):
        write(publish(tmp_path / "out", bundle, stripes(30, 40)), bundle, tmp_path / "polygons.parquet")


def test_what_is_no_file_of_polygons_was_made_from_nothing(tmp_path: Path):
    (tmp_path / "text").write_text("PAR1, it says")
    (tmp_path / "empty").touch()
    assert [polygons_made_from(tmp_path / name) for name in ("text", "empty", "missing")] == [None, None, None]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The demo's mask, in this process."""
    top, jobs = tmp_path_factory.mktemp("demo"), Path(__file__).parents[2] / "jobs" / "demo"
    counts = segment_scene(jobs / "zion" / "item.json", jobs / "model", top / "mask.tif")
    return {"counts": counts, "mask": top / "mask.tif", "bundle": load_bundle(jobs / "model")}


def test_the_demos_mask(bundle: Bundle, demo: dict[str, Any], tmp_path: Path):
    """A mask of a trained network: its polygons are GDAL's, and hold the pixels that were counted."""
    with rasterio.open(demo["mask"]) as mask:
        mask_HW, transform, crs = mask.read(1), mask.transform, mask.crs
    made = publish(tmp_path / "out", bundle, np.where(mask_HW == 255, NODATA_VALUE, mask_HW), crs=crs, transform=transform)
    frame = geopandas.read_parquet(write(replace(made), bundle, tmp_path / "polygons.parquet"))
    expected = polygons_of_whole(mask_HW, transform=transform)
    assert sorted(key_of(value, polygon) for value, polygon in zip(frame.class_id, frame.geometry, strict=True)) == expected
    counted = frame.groupby("class_id").pixel_count.sum().to_dict()
    assert [counted.get(number, 0) for number in range(len(demo["counts"]))] == list(demo["counts"].values())


def test_a_bucket_gives_the_same_bytes(store: Store, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    store.calm()
    made = publish(tmp_path / "out", bundle, stripes(90, 120))
    put_file(store, made.folder / "mask.tif", "tests/polygons/mask.tif")
    expected, far = write(made, bundle, tmp_path / "near").read_bytes(), Remote("tests", "polygons")
    write_polygons(tmp_path / "far", made.plan, bundle, far, made.ledger.attempt, made.published.rows)
    assert (tmp_path / "far").read_bytes() == expected
    storage.publish(tmp_path / "far", far / "polygons.parquet")
    assert polygons_made_from(far / "polygons.parquet") == (made.ledger.attempt, PolygonOptions())
    assert polygons_made_from(far / "missing.parquet") is None
