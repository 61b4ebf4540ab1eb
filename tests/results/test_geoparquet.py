"""Row groups have their stated size however rows come; the metadata are GeoParquet 1.1's."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import pytest
import shapely

from pipeline.results.geoparquet import GeoParquetWriter
from pipeline.results.tables import BBOX

SCHEMA = pa.schema([pa.field("name", pa.string()), pa.field("geometry", pa.binary()), pa.field("bbox", BBOX)])
BOXES = shapely.box(np.arange(23), 0, np.arange(23) + 1, np.arange(23) + 2)


def write(path: Path, sizes: list[int], wkt: str | None = None) -> Path:
    with GeoParquetWriter(path, SCHEMA, wkt, {"input_id": "abc"}, 5, ["name"]) as writer:
        for some in np.split(BOXES, np.cumsum(sizes))[: len(sizes)]:
            names = pa.array(["box"] * len(some))
            writer.add({"name": names}, pa.array(shapely.to_wkb(some), pa.binary()), shapely.bounds(some))
        writer.finish()
    return path


@pytest.mark.parametrize("sizes", [[23], [1] * 23, [4, 11, 8], [20, 3]], ids=str)
def test_row_groups_do_not_depend_on_how_rows_come(tmp_path: Path, sizes: list[int]):
    found, expected = write(tmp_path / "found", sizes), write(tmp_path / "expected", [23])
    metadata = pq.read_metadata(found)
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [5, 5, 5, 5, 3]
    assert found.read_bytes() == expected.read_bytes() and metadata.metadata[b"input_id"] == b"abc"


@pytest.mark.parametrize("wkt", [None, pyproj.CRS.from_epsg(3035).to_wkt()], ids=["nowhere", "EPSG:3035"])
def test_geopandas_reads_it(tmp_path: Path, wkt: str | None):
    path = write(tmp_path / "boxes", [23], wkt)
    frame = geopandas.read_parquet(path)
    assert shapely.equals_exact(frame.geometry.to_numpy(), BOXES).all()
    assert frame.crs is None if wkt is None else frame.crs.equals(pyproj.CRS.from_epsg(3035))
    assert json.loads(pq.read_metadata(path).metadata[b"geo"])["columns"]["geometry"]["bbox"] == [0, 0, 23, 24]
    assert len(geopandas.read_parquet(path, bbox=(3.5, 0, 4.5, 1))) == 2, "by the bbox column"


def test_a_file_without_rows_opens(tmp_path: Path):
    assert len(geopandas.read_parquet(write(tmp_path / "none", []))) == 0
