"""The polygons of a published mask, as GeoParquet: `--save polygons`.

The mask is read strip by strip, so what is in memory are a strip, the polygons that reach its last row, and one row group. A
polygon that covers the scene is kept until it ends: 8 bytes a vertex, and about 100 while it is written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rasterio.transform import Affine

from pipeline.errors import Refused, Unreadable
from pipeline.geometry.ground_lengths import GroundLengths
from pipeline.geometry.ground_runs import GroundRuns
from pipeline.geometry.polygons import Polygoniser, Polygons
from pipeline.geometry.simplify import kept_vertices
from pipeline.geometry.windows import BLOCK, ceil_to
from pipeline.imagery import storage
from pipeline.imagery.raster import Scene, opened_dataset
from pipeline.imagery.storage import Place
from pipeline.inference.part import COUNTED_ROWS
from pipeline.inference.plan import Plan
from pipeline.models.bundle import Bundle
from pipeline.results.geoparquet import GeoParquetWriter
from pipeline.results.mask_strips import Strips, raster_strips, sieved
from pipeline.results.tables import POLYGONS
from pipeline.results.wkb import bounds_of, polygons_as_wkb

STRIP_PIXELS = 2**21  # 50 to 120 MiB while a strip is worked on, by how much its classes are mixed
POLYGON_BYTES = 600 * 2**20  # of a worker that makes them, as measured (tests/benchmarks/RESULTS.md), beside what it segments with
ROW_GROUP = 2**15
MOST_VERTICES = 2**20  # of the rows made at once
LENGTH_QUANTUM_M = 2.0**-20  # lengths are summed in whole numbers, in whatever order


@dataclass(frozen=True)
class PolygonOptions:
    """What may be asked of polygons: regions smaller than `min_area_m2` join a neighbour, borders are simplified by `simplify_m`."""

    min_area_m2: float = 0.0
    simplify_m: float = 0.0

    def label(self) -> str:
        """What the file's metadata says of them."""
        return json.dumps(asdict(self))


def polygons_made_from(path: Place) -> tuple[str, PolygonOptions] | None:
    """The input and the options that a file of polygons was made from; None where there is none."""
    try:
        with storage.sought(path) as file:
            metadata = pq.read_metadata(file).metadata or {}
        return metadata[b"input_id"].decode(), PolygonOptions(**json.loads(metadata[b"options"]))
    except (OSError, pa.ArrowInvalid, KeyError, ValueError, TypeError):
        return None


def write_polygons(
    target: Path, plan: Plan, bundle: Bundle, folder: Place, input_id: str, rows: Sequence[Mapping[str, Any]],
    options: PolygonOptions = PolygonOptions(), strip_rows: int | None = None,
) -> None:  # fmt: skip
    """Write the polygons of the published mask in `folder`, whose table of areas holds `rows`, to the file `target`.

    The same mask and options give the same bytes, whatever the rows of a strip. Raises Refused where options are in metres and the
    scene has no place on the ground.
    """
    check_options(plan.scene, options)
    width = plan.region.window.width
    strip_rows = strip_rows or max(1, STRIP_PIXELS // width)
    if options.simplify_m:
        strip_rows = ceil_to(strip_rows, BLOCK)  # whole bands
    made = _Rows(plan, bundle, input_id, sum(row["area_m2"] or 0.0 for row in rows))
    with ExitStack() as opened:
        mask, *confidence = (
            raster_strips(opened.enter_context(opened_dataset(folder / f"{layer}.tif")), strip_rows)
            for layer in ("mask", "confidence") if layer in plan.layers
        )  # fmt: skip
        if options.min_area_m2:
            scratch = target.with_name(f"{target.name}.sieve.tmp")
            mask = opened.enter_context(sieved(mask, width, made.areas, made.quanta(options.min_area_m2), scratch))
        metadata = {"input_id": input_id, "options": options.label()}
        repeated = ["class_name", "model_id", "input_id"]
        writer = opened.enter_context(GeoParquetWriter(target, POLYGONS, plan.scene.grid.crs, metadata, ROW_GROUP, repeated))
        for polygons in _polygons(mask, confidence, made, width, options.simplify_m / (plan.scene.resolution_m or 1)):
            for some in _pieces(polygons):
                writer.add(*made.of(some))
        writer.finish()


def check_options(scene: Scene, options: PolygonOptions) -> None:
    """Raise Refused where what was asked for takes a place on the ground, which the scene has not."""
    for option, value in (("min-area", options.min_area_m2), ("simplify", options.simplify_m)):
        if value and not scene.on_ground:
            raise Refused(f"{scene.uri}: has no place on the ground, so --{option} {value:g} cannot be measured: leave it out")


def _polygons(mask: Strips, confidence: Sequence[Strips], made: _Rows, width: int, tolerance_px: float) -> Iterator[Polygons]:
    layers_HW: list[np.ndarray] = []
    polygoniser = Polygoniser(width, lambda *runs: made.measure(*runs, *layers_HW), nodes_every=BLOCK if tolerance_px else None)
    for mask_HW, *layers_HW[:] in zip(mask(), *(strips() for strips in confidence), strict=True):
        yield polygoniser.push(mask_HW, kept_vertices(mask_HW, tolerance_px) if tolerance_px else None)
    yield polygoniser.finish()


def _pieces(polygons: Polygons) -> Iterator[Polygons]:
    """The polygons, so many at a time as have a row group's vertices, or one."""
    counts = polygons.ring_counts
    last_ring = np.cumsum(counts)
    vertices = np.append(0, np.cumsum(polygons.rings.lengths))
    start = 0
    while start < len(counts):
        first = last_ring[start] - counts[start]
        stop = max(start + 1, int(np.searchsorted(vertices[last_ring], vertices[first] + MOST_VERTICES, side="right")))
        yield polygons if stop - start == len(counts) else polygons.take(start, stop)
        start = stop


class _Rows:
    """Makes the rows of the table from polygons."""

    def __init__(self, plan: Plan, bundle: Bundle, input_id: str, total_m2: float):
        window, grid = plan.region.window, plan.scene.grid
        crs = grid.rasterio_crs
        self._model_id, self._input_id = bundle.model_id, input_id
        self._names = {entry.id: entry.name for entry in bundle.classes}
        self._transform = grid.affine * Affine.translation(window.col, window.row)
        self._confidence = "confidence" in plan.layers
        self._areas: GroundRuns | None = None
        self._lengths: GroundLengths | None = None
        self._count = 0
        if plan.scene.on_ground and crs:
            self._areas = GroundRuns(window, plan.shards(), COUNTED_ROWS, grid.affine, crs, total_m2)
            self._lengths = GroundLengths.over(window, grid.affine, crs)

    def quanta(self, area_m2: float) -> int:
        """An area in the unit of `areas`."""
        assert self._areas
        return math.ceil(area_m2 / self._areas.quantum_m2)

    def areas(self, first_row: int, first_pixel: np.ndarray, last_pixel: np.ndarray) -> np.ndarray:
        """The areas of runs, 1 x runs."""
        assert self._areas
        return self._areas.areas(first_row, first_pixel, last_pixel)[None]

    def measure(self, first_row: int, first_pixel: np.ndarray, last_pixel: np.ndarray, *confidence_HW: np.ndarray) -> np.ndarray:
        """Pixels, area and confidence of runs: 3 x runs, zeros for what is not known."""
        sums = np.zeros((3, len(first_pixel)), np.int64)
        sums[0] = last_pixel - first_pixel
        if self._areas:
            sums[1] = self._areas.areas(first_row, first_pixel, last_pixel)
        for layer_HW in confidence_HW:
            sums[2] = np.add.reduceat(layer_HW.reshape(-1), first_pixel, dtype=np.int64)
        return sums

    def of(self, polygons: Polygons) -> tuple[dict[str, pa.Array], pa.Array, np.ndarray]:
        """The columns, the polygons in the scene's coordinates as WKB, and their bounds."""
        pixels, quanta, confidence = polygons.sums
        count = len(pixels)
        numbers = np.arange(self._count, self._count + count)
        self._count += count
        nothing = pa.nulls(count, pa.float64())
        columns = {
            "polygon_id": pa.array(numbers),
            "class_id": pa.array(polygons.values),
            "class_name": pa.array([self._names[value] for value in polygons.values.tolist()], pa.string()),
            "area_m2": pa.array(quanta * self._areas.quantum_m2) if self._areas else nothing,
            "perimeter_m": pa.array(self._perimeters(polygons, self._lengths)) if self._lengths else nothing,
            "pixel_count": pa.array(pixels),
            "mean_confidence": pa.array(confidence / pixels) if self._confidence else nothing,
            "model_id": pa.array([self._model_id] * count, pa.string()),
            "input_id": pa.array([self._input_id] * count, pa.string()),
        }
        return columns, *self._geometries(polygons)

    def _perimeters(self, polygons: Polygons, lengths: GroundLengths) -> np.ndarray:
        rings = polygons.rings
        sides_m = lengths.lengths_m(rings.vertices_N2, rings.vertices_N2[rings.following()])
        quanta = np.add.reduceat(np.rint(sides_m / LENGTH_QUANTUM_M).astype(np.int64), rings.starts)
        total = np.zeros(len(polygons.values), np.int64)
        np.add.at(total, rings.regions, quanta)
        return total * LENGTH_QUANTUM_M

    def _geometries(self, polygons: Polygons) -> tuple[pa.Array, np.ndarray]:
        """Rings closed, and turned round where the scene's second axis runs down, as rows do."""
        rings, counts = polygons.rings, polygons.ring_counts
        row, col = rings.closed(backward=self._transform.determinant > 0).astype(np.float64).T
        xy_N2 = np.column_stack(self._transform * (col, row))
        points = rings.lengths + 1
        try:
            return polygons_as_wkb(xy_N2, points, counts), bounds_of(xy_N2, np.add.reduceat(points, np.cumsum(counts) - counts))
        except OverflowError as error:
            raise Unreadable(f"a polygon is too large for GeoParquet ({error}): give --simplify or --min-area") from None
