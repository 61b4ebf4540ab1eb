"""Real index series for the tests of curves, seasons and changes: parcels of Slovenia, fields of FuseTS.

Days count from 1970-01-01. Values are NaN, and valid shares 0, where nothing is known.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import geopandas
import h5py
import numpy as np
import pytest
from rasterio.features import rasterize
from rasterio.transform import from_bounds

from tests.toys import SHARED

SLOVENIA = SHARED / "data/eolearn-slovenia/example_data/TestEOPatch"
FUSETS = SHARED / "data/fusets-fields"
FIELDS = ("workshops/BIDS/demo", "workshops/BIDS/workshop", "workshops/FOSS4G/demo", "notebooks/FOSS4G")
FUSETS_EPOCH = (date(1990, 1, 1) - date(1970, 1, 1)).days
needs_slovenia = pytest.mark.skipif(not SLOVENIA.exists(), reason="needs ../shared/data/eolearn-slovenia")
needs_fusets = pytest.mark.skipif(not FUSETS.exists(), reason="needs ../shared/data/fusets-fields")


@dataclass(frozen=True)
class Series:
    """Observations T x P, and what is known of each of the P parcels or pixels."""

    days_T: np.ndarray
    values_TP: np.ndarray
    shares_TP: np.ndarray
    names: list[str]  # of the land cover
    xy_P2: np.ndarray  # metres


def slovenia(minimum_pixels: int = 1) -> Series:
    """The parcels of the Slovenian patch that hold pixel centres: means of the valid NDVI."""
    ndvi = np.load(SLOVENIA / "data/NDVI.npy")[..., 0]
    valid = np.load(SLOVENIA / "mask/IS_VALID.npy")[..., 0]
    times = [datetime.fromisoformat(text).date() for text in json.loads((SLOVENIA / "timestamps.json").read_text())]
    corners = np.array(json.loads((SLOVENIA / "bbox.geojson").read_text())["coordinates"][0])
    transform = from_bounds(*corners.min(axis=0), *corners.max(axis=0), ndvi.shape[2], ndvi.shape[1])
    parcels = geopandas.read_file(SLOVENIA / "vector_timeless/LULC.gpkg")
    values, shares, names, places = [], [], [], []
    for geometry, name in zip(parcels.geometry, parcels["LULC_NAME"], strict=True):
        inside = rasterize([geometry], ndvi.shape[1:], transform=transform, dtype="uint8").astype(bool)
        if inside.sum() < minimum_pixels:
            continue
        count = valid[:, inside].sum(axis=1)
        total = np.where(valid[:, inside], ndvi[:, inside], 0.0).sum(axis=1, dtype=np.float64)
        share = count / inside.sum()
        values.append(np.where(share >= 0.5, total / np.maximum(count, 1), np.nan))
        shares.append(np.where(share >= 0.5, share, 0.0))
        names.append(name)
        places.append((geometry.centroid.x, geometry.centroid.y))
    days = np.array([(day - date(1970, 1, 1)).days for day in times])
    return Series(days, np.stack(values, 1), np.stack(shares, 1), names, np.array(places))


def fusets_raw(field: str) -> Series:
    """Sentinel-2 NDVI of a field's pixels: of a date only where SCL is vegetation, bare soil or unclassified, and CLM is no cloud."""
    with h5py.File(FUSETS / field / "raw_s2_ndvi_field.nc") as file:
        days = file["t"][:] + FUSETS_EPOCH
        clear = np.isin(file["SCL"][:], (4, 5, 7))
        if "CLM" in file:
            clear &= file["CLM"][:] != 1
        values = np.where(clear, file["NDVI"][:], np.nan).astype(np.float64)
        return _pixels(days, values, file["y"][:], file["x"][:])


def fusets_cropsar(field: str) -> Series:
    """The reference: NDVI of the same pixels every 5 days, from optical and radar images."""
    with h5py.File(FUSETS / field / "cropsar_ndvi.nc") as file:
        stored = file["NDVI"][:].view(np.uint8).astype(np.float64)
        values = np.where(stored == 255, np.nan, stored * 0.004 - 0.08)
        return _pixels(file["t"][:] + FUSETS_EPOCH, values, file["y"][:], file["x"][:])


def _pixels(days_T: np.ndarray, values_TYX: np.ndarray, y: np.ndarray, x: np.ndarray) -> Series:
    places = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    values = values_TYX.reshape(len(days_T), -1)
    return Series(days_T, values, np.isfinite(values).astype(float), [""] * len(places), places)


def day(text: str) -> int:
    """Days from 1970-01-01 to an ISO date."""
    return (date.fromisoformat(text) - date(1970, 1, 1)).days


def date_of(day: float) -> date:
    return date(1970, 1, 1) + timedelta(days=round(float(day)))
