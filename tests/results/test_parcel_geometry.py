"""The geometry of parcels opens in geopandas and DuckDB, lies where it lay, and knows its district."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely

from pipeline.imagery.parcels import Parcels, read_parcels
from pipeline.results.parcel_geometry import write_districts, write_parcel_geometry
from pipeline.results.tables import MONITORING_SCHEMA_VERSION, PARCEL_GEOMETRY_COLUMNS, table_input_id
from tests.toys import SHARED

FIBOA = SHARED / "data" / "fiboa-parcels" / "tests" / "data-files" / "convert"


def parcels_of(path: Path, ids: list[str], polygons: list[shapely.Geometry], crs: str = "EPSG:32633") -> Parcels:
    geopandas.GeoDataFrame({"id": ids}, geometry=polygons, crs=crs).to_parquet(path)
    return read_parcels(path)


def row(count: int, side: float) -> list[shapely.Polygon]:
    return [shapely.box(500_000 + side * n, 5e6, 500_000 + side * (n + 1) - 3, 5e6 + side) for n in range(count)]


def test_geopandas_and_duckdb_open_it(tmp_path: Path):
    parts = shapely.MultiPolygon([shapely.box(5e5, 5.1e6, 5.01e5, 5.101e6), shapely.box(5.02e5, 5.1e6, 5.03e5, 5.101e6)])
    parcels = parcels_of(tmp_path / "in.parquet", ["c", "a", "b", "d"], [*row(3, 100), parts])
    districts = parcels_of(tmp_path / "d.parquet", ["west", "east"], row(2, 190))
    write_parcel_geometry(tmp_path / "out.parquet", parcels, districts, "abc")
    write_parcel_geometry(tmp_path / "again.parquet", parcels, districts, "abc")
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "again.parquet").read_bytes()
    frame = geopandas.read_parquet(tmp_path / "out.parquet")
    assert tuple(pq.read_schema(tmp_path / "out.parquet").names) == PARCEL_GEOMETRY_COLUMNS
    assert frame.crs.to_epsg() == 4326 and frame["parcel_id"].tolist() == ["a", "b", "c", "d"]
    assert (
        frame["district_id"].fillna("").tolist() == ["west", "east", "west", ""] and frame["area_m2"].tolist() == parcels.area_m2.tolist()
    )
    back = frame.to_crs("EPSG:32633").geometry.to_numpy()
    assert shapely.equals_exact(back, parcels.polygons, 1e-5, normalize=True).all()
    assert shapely.is_ccw(shapely.get_exterior_ring(frame.geometry.to_numpy()[:3])).all()
    meta = pq.read_metadata(tmp_path / "out.parquet").metadata
    geo = json.loads(meta[b"geo"])
    assert geo["version"] == "1.1.0" and geo["columns"]["geometry"]["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
    assert meta[b"schema_version"].decode() == MONITORING_SCHEMA_VERSION and table_input_id(tmp_path / "out.parquet") == "abc"
    west, _, east, north = frame.total_bounds
    found = duckdb.sql(
        f"SELECT parcel_id, bbox.xmin, bbox.ymax FROM '{tmp_path / 'out.parquet'}'"
        f" WHERE bbox.xmin <= {frame.geometry[0].bounds[0]} AND bbox.ymax < {north} ORDER BY parcel_id"
    ).fetchall()
    assert [name for name, *_ in found] == ["a", "c"] and found[0][1:] == (frame.geometry[0].bounds[0], frame.geometry[0].bounds[3])
    part = geopandas.read_parquet(tmp_path / "out.parquet", bbox=(west, frame.geometry[3].bounds[1], east, north))
    assert part["parcel_id"].tolist() == ["d"], "by the covering"


def test_without_districts_there_is_none_and_districts_have_a_file(tmp_path: Path):
    parcels = parcels_of(tmp_path / "in.parquet", ["b", "a"], row(2, 100))
    write_parcel_geometry(tmp_path / "out.parquet", parcels, None, "abc")
    assert geopandas.read_parquet(tmp_path / "out.parquet")["district_id"].isna().all()
    write_districts(tmp_path / "districts.parquet", parcels, "abc")
    frame = geopandas.read_parquet(tmp_path / "districts.parquet")
    assert list(frame.columns) == ["district_id", "area_m2", "geometry"] and frame["district_id"].tolist() == ["a", "b"]


def test_the_district_is_that_of_the_middle_and_of_several_the_first(tmp_path: Path):
    bent = shapely.Polygon([(5e5, 5e6), (500_300, 5e6), (500_300, 5e6 + 100), (5e5, 5e6 + 100)])
    parcels = parcels_of(tmp_path / "in.parquet", ["one"], [bent])
    left, right = shapely.box(499_000, 4.99e6, 500_140, 5.01e6), shapely.box(500_140, 4.99e6, 501_000, 5.01e6)
    for ids, polygons, wanted in ((["l", "r"], [left, right], "r"), (["z", "m", "k"], [right, right, left], "m")):
        in_degrees = geopandas.GeoSeries(polygons, crs="EPSG:32633").segmentize(100).to_crs("EPSG:4326").tolist()
        districts = parcels_of(tmp_path / "d.parquet", ids, in_degrees, "EPSG:4326")
        write_parcel_geometry(tmp_path / "out.parquet", parcels, districts, "abc")
        assert geopandas.read_parquet(tmp_path / "out.parquet")["district_id"].tolist() == [wanted]


def test_a_parcel_across_the_antimeridian_is_cut_there(tmp_path: Path):
    across = shapely.box(3.33e6, -2e6, 3.35e6, -1.99e6)  # 180 degrees is at x 3,339,585 m
    parcels = parcels_of(tmp_path / "in.parquet", ["a"], [across], "EPSG:3832")
    write_parcel_geometry(tmp_path / "out.parquet", parcels, None, "abc")
    (polygon,) = geopandas.read_parquet(tmp_path / "out.parquet").geometry
    west, _, east, _ = shapely.bounds(polygon.geoms).T
    assert (west.min(), east.max()) == (-180, 180) and (east - west).max() < 0.2
    again = read_parcels(tmp_path / "out.parquet", "parcel_id")
    assert again.area_m2 == pytest.approx(parcels.area_m2, rel=1e-6)


@pytest.mark.skipif(not FIBOA.is_dir(), reason=f"{FIBOA} is not here")
def test_real_parcels_come_back(tmp_path: Path):
    parcels = read_parcels(FIBOA / "us_usda_cropland" / "NationalCSB_2017-2024_rev23.zip")
    write_parcel_geometry(tmp_path / "out.parquet", parcels, None, "abc")
    again = read_parcels(tmp_path / "out.parquet")
    assert np.array_equal(again.ids, parcels.ids) and again.area_m2 == pytest.approx(parcels.area_m2, rel=1e-4)
