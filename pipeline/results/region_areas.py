"""Class areas of a region on one date: where scenes overlap, each place on the ground counts once, for the first scene that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import shapely
from rasterio.enums import Resampling
from rasterio.features import geometry_mask, rasterize
from rasterio.io import DatasetReader
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow

from pipeline.geometry.areas import ground_areas
from pipeline.geometry.windows import BLOCK, Window, cells
from pipeline.imagery.pixel_space import from_pixels, to_pixels
from pipeline.imagery.raster import Grid, grid_of, opened_dataset
from pipeline.imagery.reader import WARP_TOLERANCE_PX
from pipeline.imagery.storage import Place
from pipeline.models.area_estimate import error_adjusted_areas
from pipeline.models.bundle import NODATA, Bundle
from pipeline.results.tables import REGION_AREAS

if TYPE_CHECKING:
    import geopandas

STRIP_PX = 2**25  # of a mask, held at once


class Districts(NamedTuple):
    """What a region is divided into; polygons do not overlap, or the later one has the place."""

    ids: list[str]
    polygons: geopandas.GeoSeries


class Counts(NamedTuple):
    """What was counted of a region. Rows are the districts in order, then what lies in none; columns are classes."""

    pixels_DK: np.ndarray
    area_m2_DK: np.ndarray
    seen_m2_D: np.ndarray  # valid or not


def count_region(masks: Sequence[Place], districts: Districts, classes: int, aoi: geopandas.GeoSeries | None = None) -> Counts:
    """Count masks of one date, in order of priority: a pixel counts where no earlier mask has a class at its centre.

    Masks may lie on any grids with a CRS; what of them lies outside `aoi` is no part of the region. A pixel belongs to the district
    that holds its centre. Memory is that of a strip.
    """
    shape = (len(districts.ids) + 1, classes)
    total = Counts(np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape[0]))
    with ExitStack() as stack:
        opened = [stack.enter_context(opened_dataset(mask)) for mask in masks]
        for number, dataset in enumerate(opened):
            grid = grid_of(dataset)
            polygons = _in_pixels(districts.polygons, grid) if districts.ids else np.empty(0, object)
            inside = None if aoi is None else _in_pixels(aoi, grid)
            earlier = [(other, outline) for other in opened[:number] if (outline := _outline(grid_of(other), grid)) is not None]
            views = [stack.enter_context(_on_grid(other, grid)) for other, _ in earlier]
            rows = max(BLOCK, STRIP_PX // grid.width // BLOCK * BLOCK)
            for span in cells(grid.window.rows, rows):
                window = Window.of(span, grid.window.cols)
                _count_strip(total, dataset, grid, window, polygons, views, [outline for _, outline in earlier], inside)
    return total


def _count_strip(
    total: Counts, dataset: DatasetReader, grid: Grid, window: Window, polygons: np.ndarray, views: Sequence[WarpedVRT],
    outlines: Sequence[shapely.Geometry], inside: np.ndarray | None,
) -> None:  # fmt: skip
    """Add a strip of a mask to `total`, in place."""
    area = RasterioWindow(window.col, window.row, window.width, window.height)
    mask_HW = dataset.read(1, window=area)
    taken_HW = np.zeros(mask_HW.shape, bool)
    for view in views:
        taken_HW |= view.read(1, window=area) != NODATA
    at = Affine.translation(window.col, window.row)
    seen_HW = np.ones(mask_HW.shape, bool)
    if outlines:
        seen_HW = geometry_mask(outlines, out_shape=mask_HW.shape, transform=at)
    if inside is not None:
        seen_HW &= geometry_mask(inside, out_shape=mask_HW.shape, transform=at, invert=True)
    none = len(total.seen_m2_D) - 1
    district_HW = np.full(mask_HW.shape, none, np.int32)
    there = np.flatnonzero(~shapely.is_empty(polygons))
    if len(there):
        rasterize(zip(polygons[there], there.tolist(), strict=True), out=district_HW, transform=at)
    classes = total.pixels_DK.shape[1]
    counted_HW = (mask_HW < classes) & ~taken_HW
    label_HW = np.where(counted_HW, district_HW * classes + mask_HW, total.pixels_DK.size)
    grounds = ground_areas(window, grid.affine, grid.rasterio_crs)
    total.pixels_DK[:] += np.bincount(label_HW.ravel(), minlength=total.pixels_DK.size + 1)[:-1].reshape(total.pixels_DK.shape)
    total.area_m2_DK[:] += grounds.totals_m2(label_HW, total.pixels_DK.size + 1)[:-1].reshape(total.pixels_DK.shape)
    total.seen_m2_D[:] += grounds.totals_m2(np.where(seen_HW, district_HW, none + 1), none + 2)[:-1]


def _on_grid(dataset: DatasetReader, grid: Grid) -> WarpedVRT:
    return WarpedVRT(
        dataset, crs=grid.rasterio_crs, transform=grid.affine, width=grid.width, height=grid.height, resampling=Resampling.nearest,
        src_nodata=NODATA, nodata=NODATA, tolerance=WARP_TOLERANCE_PX,
    )  # fmt: skip


def _outline(other: Grid, grid: Grid) -> shapely.Geometry | None:
    """The outline of another grid in (col, row) of this one; None where they do not meet."""
    (pixels,) = to_pixels(
        from_pixels(np.array([shapely.box(0, 0, other.width, other.height)]), other.crs or "", other), other.crs or "", grid
    )
    return None if shapely.is_empty(pixels) else pixels


def _in_pixels(polygons: geopandas.GeoSeries, grid: Grid) -> np.ndarray:
    """Polygons in (col, row) of a grid; empty where they do not touch it."""
    return to_pixels(polygons.to_numpy(), polygons.crs.to_wkt(), grid)


def region_areas_table(counts: Counts, districts: Districts, bundle: Bundle, input_id: str) -> pa.Table:
    """REGION_AREAS: the whole region first, then the districts in order, then what lies in none, where there are districts."""
    groups: list[tuple[str | None, np.ndarray, np.ndarray, float]] = [
        (None, counts.pixels_DK.sum(axis=0), counts.area_m2_DK.sum(axis=0), float(counts.seen_m2_D.sum()))
    ]
    if districts.ids:
        groups += [
            (name, *each)
            for name, *each in zip([*districts.ids, ""], counts.pixels_DK, counts.area_m2_DK, map(float, counts.seen_m2_D), strict=True)
        ]
    rows = []
    for district, pixels_K, area_K, seen_m2 in groups:
        adjusted = _adjusted(bundle, area_K)
        for entry in bundle.classes:
            valid_m2 = float(area_K.sum())
            rows.append({
                "district_id": district, "class_id": entry.id, "class_name": entry.name, "pixel_count": int(pixels_K[entry.id]),
                "area_m2": float(area_K[entry.id]), "share": float(area_K[entry.id]) / valid_m2 if valid_m2 else None,
                "valid_area_m2": valid_m2, "seen_area_m2": max(seen_m2, valid_m2),
                **{name: of_K[entry.id] for name, of_K in adjusted.items()},
                "model_id": bundle.model_id, "input_id": input_id,
            })  # fmt: skip
    return pa.Table.from_pylist(rows, schema=REGION_AREAS)


def _adjusted(bundle: Bundle, area_K: np.ndarray) -> dict[str, list[float | None]]:
    """Error-adjusted areas of the classes with their 95 % interval (Olofsson et al. 2014); nothing without a confusion matrix."""
    told = bundle.metrics.get("evaluation") or {}
    confusion = np.array(told.get("confusion_truth_predicted") or [])
    if confusion.shape != (len(area_K), len(area_K)) or not area_K.sum():
        return {}
    estimate = error_adjusted_areas(confusion, area_K)
    columns = {"adjusted_area_m2": estimate.area, "standard_error_m2": estimate.area_se, "low_m2": estimate.low, "high_m2": estimate.high}
    return {name: [float(value) if np.isfinite(value) else None for value in of_K] for name, of_K in columns.items()}
