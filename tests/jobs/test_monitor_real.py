"""Real archives, watched: six years of aerial images, whose grids differ, and twelve monthly composites for a model of all of them."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import geopandas
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
import yaml
from rasterio.transform import from_origin

from jobs.monitor_crops import main
from tests.results.scenes import class_bundle
from tests.toys import SHARED

NAIP = SHARED / "data" / "naip-north-dakota"
WORLDCEREAL = SHARED / "data" / "worldcereal" / "tests" / "worldcerealtests" / "testresources" / "worldcereal_preprocessed_inputs.nc"
MONTHS = (11, 2, 3, 4, 5, 6, 7, 8, 9, 10)  # December and January have no clear pixel there


def rows(path: Path) -> list[dict[str, Any]]:
    return pq.ParquetFile(path).read(use_threads=False).to_pylist()


def boxes(path: Path, crs: str, left: float, top: float, side: float, shape: tuple[int, int]) -> None:
    """A grid of square parcels."""
    squares = [
        shapely.box(left + col * side, top - (row + 1) * side, left + (col + 1) * side, top - row * side)
        for row in range(shape[0]) for col in range(shape[1])
    ]  # fmt: skip
    geopandas.GeoDataFrame({"id": [f"{n:03d}" for n in range(len(squares))]}, geometry=squares, crs=crs).to_file(path, driver="GPKG")


def covered(low: float, high: float, length: int) -> np.ndarray:
    """How much of each of `length` pixels in a row lies between two places."""
    edges = np.arange(length + 1)
    return np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, 1)


def config(folder: Path, **content: Any) -> str:
    path = folder / "monitor.yaml"
    path.write_text(yaml.safe_dump({"region": "real", "parcels": "grid.gpkg", "output": "out", **content}))
    return str(path)


@pytest.mark.skipif(not NAIP.exists(), reason="needs ../shared/data/naip-north-dakota")
def test_six_years_of_aerial_images_whose_grids_differ(tmp_path: Path):
    """NDVI of a parcel against a mean weighted by what is covered of each pixel; classes against all valid pixels."""
    boxes(tmp_path / "grid.gpkg", "EPSG:26914", 486000, 5209000, 450, (6, 8))
    rules = [{"name": "green", "when": "(nir - red) / (nir + red) > 0.15"}, {"name": "other"}]
    said = config(
        tmp_path, scenes=str(NAIP), bands=["red", "green", "blue", "nir"], rules=rules, indices={"ndvi": "(nir - red) / (nir + red)"}
    )  # fmt: skip
    assert main(["--config", said]) == 0
    results = tmp_path / "out" / "results"
    images = {file.stem[-8:]: file for file in NAIP.glob("*.tif")}
    assert sorted(path.name for path in (results / "areas").iterdir()) == sorted(f"date={d[:4]}-{d[4:6]}-{d[6:]}" for d in images)
    assert len({rasterio.open(file).shape for file in images.values()}) > 1
    for day, file in images.items():
        folder = f"date={day[:4]}-{day[4:6]}-{day[6:]}"
        with rasterio.open(file) as image:
            red, nir = image.read([1, 4]).astype(float)
            valid, transform = (image.read([1, 4]) != 0).all(axis=0), image.transform
        ndvi_HW = np.where(valid, (nir - red) / np.where(valid, nir + red, 1), np.nan)
        areas = {row["class_name"]: row for row in rows(results / "areas" / folder / "real.parquet") if row["district_id"] is None}
        assert areas["green"]["pixel_count"] == (ndvi_HW > 0.15).sum() and areas["other"]["pixel_count"] == (ndvi_HW <= 0.15).sum()
        told = {row["parcel_id"]: row for row in rows(results / "indices" / folder / "real.parquet")}
        for name in ("000", "013", "047"):
            row, col = divmod(int(name), 8)
            left, top = (486000 + col * 450 - transform.c) / transform.a, (5209000 - row * 450 - transform.f) / transform.e
            across, down = (
                covered(low, low + 450 / transform.a, length) for low, length in ((left, valid.shape[1]), (top, valid.shape[0]))
            )
            weight_HW = np.outer(down, across) * valid
            assert told[name]["mean"] == pytest.approx(float(np.nansum(ndvi_HW * weight_HW) / weight_HW.sum()), abs=1e-5)


@pytest.mark.skipif(not WORLDCEREAL.exists(), reason="needs ../shared/data/worldcereal")
def test_monthly_composites_for_a_model_of_all_of_them(tmp_path: Path):
    """The stack of a season is the cube that it came from, and the classes are the model's on it."""
    with h5py.File(WORLDCEREAL) as cube:
        x, y, days = cube["x"][:], cube["y"][:], cube["t"][:]
        nir_THW = cube["S2-L2A-B08"][:].astype(np.int64) & 0xFFFF
    nir_THW = nir_THW[:, ::-1] if y[1] > y[0] else nir_THW
    left, top = x[0] - 5, y.max() + 5
    (tmp_path / "monthly").mkdir()
    months = []
    for number, nir_HW in zip(days, nir_THW, strict=True):
        day = date(1990, 1, 1) + timedelta(days=int(number))
        months.append(day.month)
        with rasterio.open(
            tmp_path / "monthly" / f"composite_{day:%Y%m%d}_B08.tif", "w", driver="GTiff", height=100, width=100, count=1, dtype="uint16",
            crs="EPSG:32631", transform=from_origin(left, top, 10, 10), nodata=65535,
        ) as dataset:  # fmt: skip
            dataset.write(nir_HW.astype(np.uint16), 1)
            dataset.scales = (1e-4,)
    boxes(tmp_path / "grid.gpkg", "EPSG:32631", left, top, 100, (10, 10))
    bundle = class_bundle(tmp_path / "model", ("low", "high"), bands=[f"B08@{month:02d}" for month in MONTHS])  # by the first: November
    said = config(tmp_path, scenes="monthly", model=bundle.path, precision="fp32", until="2021-10-31")
    assert main(["--config", said]) == 0
    (stack,) = tmp_path.glob("out/models/*/stacks/season-2021-*.tif")
    with rasterio.open(stack) as dataset:
        made = dataset.read()
    for band, month in zip(made, MONTHS, strict=True):
        truth = nir_THW[months.index(month)]
        assert np.allclose(band, np.where(truth == 65535, np.nan, truth * 1e-4), atol=1e-7, equal_nan=True)
    november = nir_THW[months.index(11)]
    assert (nir_THW[[months.index(month) for month in MONTHS]] != 65535).all()
    told = rows(tmp_path / "out" / "results" / "areas" / "date=2021-10-31" / "real.parquet")
    assert [row["pixel_count"] for row in told] == [(november <= 5000).sum(), (november > 5000).sum()], "the lower of two that are as near"
