"""The geometry of parcels and districts for analysts: GeoParquet in longitude and latitude, in the order of all other tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyproj
import shapely

from pipeline.imagery.parcels import Parcels
from pipeline.imagery.pixel_space import only_polygons
from pipeline.results.geoparquet import GeoParquetWriter
from pipeline.results.tables import BBOX, MONITORING_SCHEMA_VERSION, ROW_GROUP

LON_LAT = pyproj.CRS.from_epsg(4326).to_wkt()
HALVES = (shapely.box(-180, -90, 180, 90), shapely.box(180, -90, 540, 90))  # of what runs past the antimeridian
SHAPE = [pa.field("area_m2", pa.float64(), nullable=False), pa.field("geometry", pa.binary(), nullable=False), pa.field("bbox", BBOX)]
DISTRICTS = pa.schema([pa.field("district_id", pa.string(), nullable=False), *SHAPE])
PARCEL_GEOMETRY = pa.schema([pa.field("parcel_id", pa.string(), nullable=False), pa.field("district_id", pa.string()), *SHAPE])


def write_parcel_geometry(path: Path, parcels: Parcels, districts: Parcels | None, input_id: str) -> None:
    """Write a row for each parcel, with PARCEL_GEOMETRY_COLUMNS; `district_id` is null outside all districts, or without them."""
    columns = {"parcel_id": pa.array(parcels.ids, pa.string()), "district_id": pa.array(districts_of(parcels, districts), pa.string())}
    _write(path, PARCEL_GEOMETRY, columns, parcels, input_id)


def write_districts(path: Path, districts: Parcels, input_id: str) -> None:
    """Write a row for each district: district_id, area_m2, geometry, bbox."""
    _write(path, DISTRICTS, {"district_id": pa.array(districts.ids, pa.string())}, districts, input_id)


def districts_of(parcels: Parcels, districts: Parcels | None) -> np.ndarray:
    """The id of the district that holds a point in the middle of each parcel, the first of several; None where none does."""
    found = np.full(len(parcels), None, object)
    if districts is not None:
        way = pyproj.Transformer.from_crs(parcels.crs, districts.crs, always_xy=True)
        middles = shapely.transform(shapely.point_on_surface(parcels.polygons), way.transform, interleaved=False)
        parcel_N, district_N = shapely.STRtree(districts.polygons).query(middles, predicate="intersects")
        order = np.lexsort((-district_N, parcel_N))  # of several the first is put last, and stays
        found[parcel_N[order]] = districts.ids[district_N[order]]
    return found


def _write(path: Path, schema: pa.Schema, columns: dict[str, pa.Array], parcels: Parcels, input_id: str) -> None:
    metadata = {"schema_version": MONITORING_SCHEMA_VERSION, "input_id": input_id}
    columns["area_m2"] = pa.array(parcels.area_m2)
    kinds = ["Polygon", "MultiPolygon"]
    with GeoParquetWriter(path, schema, LON_LAT, metadata, ROW_GROUP, ["district_id"], kinds) as writer:
        for start in range(0, len(parcels), ROW_GROUP):
            rows = slice(start, start + ROW_GROUP)
            placed = in_degrees(parcels.polygons[rows], parcels.crs)
            values = {name: column[rows] for name, column in columns.items()}
            writer.add(values, pa.array(shapely.to_wkb(placed), pa.binary()), shapely.bounds(placed))
        writer.finish()


def in_degrees(polygons: np.ndarray, crs: str) -> np.ndarray:
    """Polygons in longitude and latitude, cut where they cross the antimeridian; outlines run counterclockwise (RFC 7946)."""
    way = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    placed = shapely.transform(polygons, way.transform, interleaved=False)
    west, _, east, _ = shapely.bounds(placed).T
    for number in np.flatnonzero(east - west > 180):
        turned = shapely.transform(placed[number], lambda xy: np.column_stack([xy[:, 0] % 360, xy[:, 1]]))
        if np.ptp(shapely.bounds(turned)[::2]) < 180:
            here, beyond = (shapely.intersection(shapely.make_valid(turned), half) for half in HALVES)
            back = shapely.transform(beyond, lambda xy: xy - (360, 0))
            placed[number] = only_polygons(np.array([shapely.GeometryCollection([here, back])], object))[0]
    invalid = ~shapely.is_valid(placed)
    placed[invalid] = only_polygons(shapely.make_valid(placed[invalid]))
    return shapely.orient_polygons(placed)
