"""Read the parcels of a vector file: ids, polygons, their ground areas, and a hash that tells them from others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyproj
import shapely
from rasterio.crs import CRS
from rasterio.errors import CRSError

from pipeline.errors import Refused
from pipeline.geometry.areas import polygon_areas_m2
from pipeline.imagery import storage
from pipeline.imagery.pixel_space import SURFACES, in_chunks, only_polygons
from pipeline.imagery.region import check_coordinates
from pipeline.imagery.storage import Place
from pipeline.imagery.vectors import read_polygon_layer

FID = "fid"  # what asks for the features' own numbers
# Names of id columns, in lower case: fiboa's; in general; INSPIRE's in Austria and Ireland; the US Crop Sequence Boundaries'; Flanders'.
KNOWN_IDS = ("parcel_id", "field_id", "parcelid", "fieldid", "inspire_id", "localid", "csbid", "ref_id")
HASHED_DIGITS = 3  # decimals of a metre: formats write the last bits of a coordinate differently
HASHED_DEGREE_DIGITS = 8
SHOWN = 5  # ids in a message
LONGEST_ID = 256  # characters
ID_TYPES = (pa.types.is_integer, pa.types.is_floating, pa.types.is_string, pa.types.is_large_string)


@dataclass(frozen=True)
class Parcels:
    """P parcels, sorted by id as text; `parcels_id` is the same for the same ids and polygons, whatever the file's format or order."""

    ids: np.ndarray  # P, str
    polygons: np.ndarray  # P, valid polygons and multipolygons in `crs`, without Z
    crs: str  # WKT
    area_m2: np.ndarray  # P, float64, on the ground
    parcels_id: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


def read_parcels(path: Place, column: str | None = None) -> Parcels:
    """The parcels of a vector file that GDAL reads, a zip of one, or a GeoParquet.

    `column` holds the ids; `fid` takes the features' own numbers (or the rows', from 0) where no column has that name. Without
    it the column is `id` or another well-known one. Raises Refused, in one line that says what to do.
    """
    if not storage.is_file(path) and not storage.is_folder(path):
        raise Refused(f"{path}: no such file (--parcels)")
    values, geometries = read_polygon_layer(path, lambda columns, fid: _id_column(path, columns, fid, column), column)
    if geometries.crs is None:
        raise Refused(f"{path}: declares no CRS: assign it (ogr2ogr -a_srs)")
    ids, polygons = _as_text(path, values), geometries.to_numpy()
    check_coordinates(path, polygons)
    ids, polygons, notes = _polygons_of(ids, polygons)
    if not len(ids):
        raise Refused(f"{path}: holds no polygons")
    return _parcels(path, ids, polygons, geometries.crs, notes)


def _parcels(path: Place, ids: np.ndarray, polygons: np.ndarray, crs: pyproj.CRS, notes: list[str]) -> Parcels:
    order = np.argsort(ids, kind="stable")
    ids, polygons = ids[order], polygons[order]
    hashed = _hashed(polygons, crs)
    again = np.append(False, ids[1:] == ids[:-1])
    if again.any():
        same = again & np.append(False, hashed[1:] == hashed[:-1])
        if (again & ~same).any():
            raise Refused(
                f"{path}: {int((again & ~same).sum()):,} rows repeat the id of another polygon ({some(ids[again & ~same])}):"
                " choose a column of unique ids (--parcel-id), or fid for the number of the row"
            )
        notes = [*notes, f"{int(same.sum()):,} rows repeat a parcel, its polygon included, and were dropped ({some(ids[same])})"]
        ids, polygons, hashed = ids[~same], polygons[~same], hashed[~same]
    try:
        ground = CRS.from_wkt(crs.to_wkt())
        area_m2 = np.concatenate([polygon_areas_m2(polygons[some_P], ground) for some_P in in_chunks(len(polygons))])
    except CRSError as error:
        raise Refused(f"{path}: its CRS is tied to no place on the ground ({storage.told(error)[:160]}): correct it") from None
    if not np.isfinite(area_m2).all():
        raise Refused(f"{path}: {some(ids[~np.isfinite(area_m2)])} lie where the CRS has no place on the ground: correct the CRS")
    digest = hashlib.sha256(_crs_name(crs).encode())
    for name, content in zip(ids, hashed, strict=True):
        digest.update(name.encode() + b"\0" + content)
    return Parcels(ids, polygons, crs.to_wkt(), area_m2, digest.hexdigest()[:16], tuple(notes))


def _id_column(path: Place, columns: Sequence[str], fid: str, asked: str | None) -> str:
    """The column that holds the ids."""
    there = [*columns, *([fid] if fid and fid not in columns else [])]
    listed = f"its columns: {', '.join(there)[:300] or 'none'}"
    if asked is not None:
        if asked in there or asked == FID:
            return asked
        raise Refused(f"{path}: has no column {asked} (--parcel-id); {listed}")
    for wanted in (("id",), KNOWN_IDS):
        found = [name for name in there if name.lower() in wanted]
        if len(found) == 1:
            return found[0]
        if found:
            raise Refused(f"{path}: {' and '.join(found)} may hold the parcels' ids: choose one (--parcel-id)")
    raise Refused(f"{path}: has no id column that is known: name it (--parcel-id), or fid for the number of the feature; {listed}")


def _as_text(path: Place, values: np.ndarray) -> np.ndarray:
    """Ids as text, whole numbers without a point."""
    ids = pa.array(values, from_pandas=True)
    if pa.types.is_null(ids.type):
        ids = ids.cast(pa.string())
    if pa.types.is_dictionary(ids.type):
        ids = ids.dictionary_decode()
    if pa.types.is_floating(ids.type):
        numbers = ids.drop_null().to_numpy(zero_copy_only=False)
        if (numbers % 1 == 0).all() and (abs(numbers) < 2**63).all():
            ids = ids.cast(pa.int64())
    if not any(of(ids.type) for of in ID_TYPES):
        raise Refused(f"{path}: ids of type {ids.type} are neither numbers nor text: choose another column (--parcel-id)")
    text = np.array(["" if value is None else str(value).strip() for value in ids.to_pylist()], object)
    missing = int((text == "").sum())
    if missing:
        raise Refused(f"{path}: {missing:,} of {len(text):,} features have no id: give them one, or choose another column (--parcel-id)")
    longest = max(map(len, text), default=0)
    if longest > LONGEST_ID:
        raise Refused(f"{path}: an id has {longest:,} characters, at most {LONGEST_ID} are taken: choose another column (--parcel-id)")
    return text


def _polygons_of(ids: np.ndarray, geometries: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The polygons among the geometries, repaired where they are invalid, and what was done to get them."""
    geometries, notes, high = geometries.copy(), [], shapely.has_z(geometries)
    geometries[high] = shapely.force_2d(geometries[high])
    kinds = shapely.get_type_id(geometries)
    surfaces = np.isin(kinds, (*SURFACES, shapely.GeometryType.GEOMETRYCOLLECTION)) & ~shapely.is_empty(geometries)
    empty = shapely.is_missing(geometries) | shapely.is_empty(geometries)
    for left_out, what in ((empty, "have no geometry"), (~surfaces & ~empty, "are points or lines")):
        if left_out.any():
            notes.append(f"{int(left_out.sum()):,} features {what} and were dropped ({some(ids[left_out])})")
    ids, geometries = ids[surfaces], geometries[surfaces]
    invalid = ~shapely.is_valid(geometries)
    geometries[invalid] = shapely.make_valid(geometries[invalid])
    repaired = only_polygons(geometries)
    lost = shapely.is_empty(repaired)
    if (invalid & ~lost).any():
        notes.append(f"{int((invalid & ~lost).sum()):,} invalid polygons were repaired ({some(ids[invalid & ~lost])})")
    if lost.any():
        notes.append(f"{int(lost.sum()):,} features have no area and were dropped ({some(ids[lost])})")
    return ids[~lost], repaired[~lost], notes


def _hashed(polygons: np.ndarray, crs: pyproj.CRS) -> np.ndarray:
    """What is the same for the same polygons, whichever corner each begins with: bytes."""
    digits = HASHED_DEGREE_DIGITS if crs.is_geographic else HASHED_DIGITS
    hashed = np.empty(len(polygons), object)
    for some_P in in_chunks(len(polygons)):
        rounded = shapely.normalize(shapely.transform(polygons[some_P], lambda xy: np.round(xy, digits) + 0.0))
        hashed[some_P] = [hashlib.sha256(content).digest() for content in shapely.to_wkb(_single(rounded), byte_order=1)]
    return hashed


def _single(polygons: np.ndarray) -> np.ndarray:
    """Multipolygons of one part as that part."""
    one = (shapely.get_type_id(polygons) == shapely.GeometryType.MULTIPOLYGON) & (shapely.get_num_geometries(polygons) == 1)
    return np.where(one, shapely.get_geometry(polygons, 0), polygons)


def _crs_name(crs: pyproj.CRS) -> str:
    known = crs.to_authority()
    return "EPSG:4326" if known == ("OGC", "CRS84") else ":".join(known) if known else crs.to_wkt()


def some(ids: np.ndarray) -> str:
    """The first few ids, for a message."""
    return ", ".join(ids[:SHOWN]) + (", ..." if len(ids) > SHOWN else "")
