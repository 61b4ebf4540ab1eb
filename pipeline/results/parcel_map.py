"""A picture of a region's parcels in the colours of their classes: north up, as small in bytes as a million of them allow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely
from PIL import Image
from rasterio.features import rasterize

from pipeline.imagery import storage
from pipeline.imagery.storage import Place
from pipeline.results.page import picture_uri

LONGEST = 1600  # px: the longer side
BATCH = 20_000  # parcels in memory at once
DEGREE_M = 111_320.0  # of latitude
OUTSIDE, UNKNOWN, EDGE, CHANGED = 255, 254, 253, 252  # in the palette; below are class ids
PALETTE = {OUTSIDE: "#FFFFFF", UNKNOWN: "#B9C0C8", EDGE: "#FFFFFF", CHANGED: "#111111"}
SMALL, OUTLINED = 2.0, 9.0  # px: a parcel below it is a point; parcels of this size in the middle have edges
OUTLINE_SHARE, OUTLINE_PX = 0.02, (1.6, 4.0)  # to either side of a changed parcel's edge: of its side, and the least and most
LENGTHS = (1, 2, 5)


class ParcelMap(NamedTuple):
    """The picture as a data URI, its size in px, and what stands below it: a length in metres, and what share of the width it takes."""

    uri: str
    width: int
    height: int
    scale_m: float
    scale_share: float
    outlined: bool  # whether changed parcels can be seen


class View(NamedTuple):
    """Where longitude and latitude fall in the picture: degrees of the north-west corner, px a degree."""

    west: float
    north: float
    across: float
    down: float
    width: int
    height: int

    def pixels(self, lonlat_N2: np.ndarray) -> np.ndarray:
        return (lonlat_N2 - (self.west, self.north)) * (self.across, -self.down)


def draw_map(geometry: Place, ids: Sequence[str], classes: Sequence[int], colours: Mapping[int, str], changed: Sequence[str]) -> ParcelMap:
    """Parcels `ids` are of `classes` (their colours #RRGGBB), all others are unknown; `changed` ones have a dark edge.

    `geometry` is the GeoParquet of the region's parcels.
    """
    known, kinds = pa.array(ids, pa.string()), np.append(np.asarray(classes, np.uint8), np.uint8(UNKNOWN))
    marked = pa.array(changed, pa.string())
    with _opened(geometry) as file:
        view = _view(file)
        canvas = np.full((view.height, view.width), OUTSIDE, np.uint8)
        edges: list[shapely.Geometry] = []
        sides: list[np.ndarray] = []
        for names, shapes in _batches(file):
            place = pc.fill_null(pc.index_in(names, known), len(known)).to_numpy()
            drawn = shapely.transform(shapes, view.pixels)
            sides.append(_burn(canvas, drawn, kinds[place]))
            edges += list(drawn[pc.is_in(names, marked).to_numpy(zero_copy_only=False)])
        side = float(np.median(np.concatenate(sides))) if sides else 0.0
        outlined = side >= OUTLINED
        if outlined:
            thick = min(max(OUTLINE_SHARE * side, OUTLINE_PX[0]), OUTLINE_PX[1])
            for _, shapes in _batches(file):
                _burn_lines(canvas, shapely.boundary(shapely.transform(shapes, view.pixels)), EDGE)
            _burn_lines(canvas, shapely.buffer(shapely.boundary(np.array(edges, dtype=object)), thick), CHANGED)
    length = _round_length(0.25 * view.width / view.down * DEGREE_M)
    return ParcelMap(_png(canvas, colours), view.width, view.height, length, length / DEGREE_M * view.down / view.width, outlined)


@contextmanager
def _opened(geometry: Place) -> Iterator[pq.ParquetFile]:
    with storage.here(geometry) as path, pq.ParquetFile(path, pre_buffer=False) as file:
        yield file


def _batches(file: pq.ParquetFile) -> Iterator[tuple[pa.Array, np.ndarray]]:
    for batch in file.iter_batches(BATCH, columns=["parcel_id", "geometry"], use_threads=False):
        shapes = shapely.from_wkb(batch.column("geometry").to_numpy(zero_copy_only=False))
        told = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
        yield batch.column("parcel_id").filter(pa.array(told)), shapes[told]


def _view(file: pq.ParquetFile) -> View:
    """All parcels, with a margin; a degree of longitude is as long as it is in the middle."""
    west, south, east, north = np.inf, np.inf, -np.inf, -np.inf
    for batch in file.iter_batches(BATCH, columns=["bbox"], use_threads=False):
        edges = [pc.struct_field(batch.column("bbox"), edge) for edge in ("xmin", "ymin", "xmax", "ymax")]
        xmin, ymin, xmax, ymax = (edge.to_numpy(zero_copy_only=False).astype(float) for edge in edges)
        west, south = np.fmin.reduce(xmin, initial=west), np.fmin.reduce(ymin, initial=south)
        east, north = np.fmax.reduce(xmax, initial=east), np.fmax.reduce(ymax, initial=north)
    if not west <= east:  # no parcel has a place
        west, south, east, north = 0.0, 0.0, 1.0, 1.0
    shrink = max(0.05, math.cos(math.radians((south + north) / 2)))
    margin = 0.01 * max((east - west) * shrink, north - south, 1e-5)
    tall, wide = north - south + 2 * margin, (east - west) * shrink + 2 * margin
    down = LONGEST / max(tall, wide)
    width, height = max(1, round(wide * down)), max(1, round(tall * down))
    return View(west - margin / shrink, north + margin, down * shrink, down, width, height)


def _burn(canvas: np.ndarray, shapes: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Paint shapes, in place; returns their sides in px. Each has at least the pixel in its middle."""
    box = shapely.bounds(shapes)
    sides = np.sqrt(np.maximum((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]), 0))
    large = np.flatnonzero(sides >= SMALL)
    if len(large):  # gaps between small ones would make the picture pale
        dense = bool(np.median(sides) < OUTLINED)
        rasterize(zip(shapes[large], kinds[large].tolist(), strict=True), out=canvas, all_touched=dense)
    row = np.clip((box[:, 1] + box[:, 3]) / 2, 0, canvas.shape[0] - 1).astype(int)
    col = np.clip((box[:, 0] + box[:, 2]) / 2, 0, canvas.shape[1] - 1).astype(int)
    small = sides < SMALL
    canvas[row[small], col[small]] = kinds[small]
    return sides


def _burn_lines(canvas: np.ndarray, shapes: np.ndarray, value: int) -> None:
    drawn = [shape for shape in shapes if not shape.is_empty]
    if drawn:
        rasterize(((shape, value) for shape in drawn), out=canvas)


def _png(canvas: np.ndarray, colours: Mapping[int, str]) -> str:
    picture = Image.fromarray(canvas, mode="P")
    palette = {**dict.fromkeys(range(256), "#B9C0C8"), **colours, **PALETTE}
    picture.putpalette(bytes(channel for number in range(256) for channel in bytes.fromhex(palette[number][1:])))
    return picture_uri(picture)


def _round_length(most_m: float) -> float:
    """The longest of 1, 2, 5, 10, ... metres that is no longer than `most_m`.

    >>> _round_length(730.0)
    500.0
    """
    power = 10.0 ** math.floor(math.log10(most_m))
    return max(times * power for times in LENGTHS if times * power <= most_m * 1.0001)
