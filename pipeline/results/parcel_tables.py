"""Tables of parcels from arrays: a row for each parcel and class, and for each parcel and index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.imagery.catalogue import parse_datetime
from pipeline.imagery.raster import Scene
from pipeline.results.tables import INDICES, PARCELS
from pipeline.results.weighted import STATISTICS
from pipeline.results.zonal import KNOWN, STATES, ParcelStatistics


class MadeFrom(NamedTuple):
    """What rows are made from."""

    model_id: str
    input_id: str


def parcels_table(
    ids: np.ndarray, area_m2: np.ndarray, found: ParcelStatistics, scenes: Sequence[Scene], classes: Mapping[int, str], made: MadeFrom
) -> pa.Table:  # fmt: skip
    """The table PARCELS, strings as dictionaries: in the order of `ids` a row for each class of a known parcel, or one of another.

    `ids` and `area_m2` are those of the parcels, `scenes` those that told `found`, `classes` the names by id, 0 to K - 1.
    """
    known_P = found.state_P == KNOWN
    count = len(classes)
    parcel_R = np.repeat(np.arange(len(ids)), np.where(known_P, count, 1))
    first_P = np.cumsum(np.where(known_P, count, 1)) - np.where(known_P, count, 1)
    class_R = np.arange(len(parcel_R)) - first_P[parcel_R]
    unknown_R = ~known_P[parcel_R]
    place_R = (parcel_R, class_R)
    valid_P, dominant_P = found.area_m2_PK.sum(axis=1), found.area_m2_PK.argmax(axis=1)
    pixels_R, area_R = found.pixels_PK[place_R], found.area_m2_PK[place_R]
    with np.errstate(all="ignore"):
        share_R = area_R / valid_P[parcel_R]
        confidence_R = found.confidence_PK[place_R] / pixels_R if found.confidence_PK is not None else np.full(len(parcel_R), np.nan)
    numbers = {
        "pixel_count": pixels_R, "area_m2": area_R, "share": share_R, "mean_confidence": confidence_R,
    }  # fmt: skip
    columns = _of_parcels(ids, found, scenes, parcel_R) | {
        "class_id": pa.array(class_R.astype(np.uint8), mask=unknown_R),
        "class_name": _dictionary(class_R, list(classes.values()), unknown_R),
        **{name: pa.array(values, mask=unknown_R | ~np.isfinite(values)) for name, values in numbers.items()},
        "is_dominant": pa.array(class_R == dominant_P[parcel_R], mask=unknown_R),
        "parcel_area_m2": pa.array(area_m2[parcel_R]),
    }
    return _table(columns, PARCELS, made, len(parcel_R))


def indices_table(ids: np.ndarray, found: ParcelStatistics, scenes: Sequence[Scene], made: MadeFrom) -> pa.Table:
    """The table INDICES, strings as dictionaries: in the order of `ids` a row for each index, in the order of `found.indices`."""
    count = len(found.indices)
    parcel_R = np.repeat(np.arange(len(ids)), count)
    index_R = np.tile(np.arange(count), len(ids))
    unknown_R = (found.state_P != KNOWN)[parcel_R]
    all_PI9 = np.stack(list(found.indices.values()), axis=1) if count else np.empty((len(ids), 0, len(STATISTICS)))
    values_R9 = all_PI9.reshape(-1, len(STATISTICS))
    columns = _of_parcels(ids, found, scenes, parcel_R) | {
        "index_name": _dictionary(index_R, list(found.indices), np.zeros(len(index_R), bool)),
        **{name: pa.array(values_R, mask=unknown_R | np.isnan(values_R)) for name, values_R in zip(STATISTICS, values_R9.T, strict=True)},
    }
    return _table(columns, INDICES, made, len(parcel_R))


def _of_parcels(ids: np.ndarray, found: ParcelStatistics, scenes: Sequence[Scene], parcel_R: np.ndarray) -> dict[str, pa.Array]:
    """The columns OF_PARCEL."""
    scene_R = found.scene_P[parcel_R]
    times = pa.array([parse_datetime(scene.datetime) for scene in scenes], pa.timestamp("us", tz="UTC"))
    return {
        "parcel_id": pa.array(ids, pa.string()).take(pa.array(parcel_R)),
        "scene_id": _dictionary(scene_R, [scene.scene_id for scene in scenes], scene_R < 0),
        "scene_datetime": times.take(pa.array(scene_R, mask=scene_R < 0)),
        "state": _dictionary(found.state_P[parcel_R], list(STATES), np.zeros(len(parcel_R), bool)),
        "valid_share": pa.array(found.valid_share_P[parcel_R]),
    }


def _dictionary(places: np.ndarray, values: list[str], missing: np.ndarray) -> pa.Array:
    """Strings by their place in a list; null where one is missing."""
    return pa.DictionaryArray.from_arrays(pa.array(places.astype(np.int32), mask=missing), pa.array(values, pa.string()))


def _table(columns: dict[str, pa.Array], schema: pa.Schema, made: MadeFrom, rows: int) -> pa.Table:
    nowhere = np.zeros(rows, np.int32)
    columns |= {name: _dictionary(nowhere, [value], nowhere > 0) for name, value in made._asdict().items()}
    fields = [field.with_type(columns[field.name].type) for field in schema]
    return pa.Table.from_arrays([columns[field.name] for field in fields], schema=pa.schema(fields))
