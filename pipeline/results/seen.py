"""What one scene of a date shows of parcels: the classes, confidence and indices of the pixels that they cover, with their ground area."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterioWindow

from pipeline.errors import Refused, Unreadable
from pipeline.geometry.areas import ground_areas
from pipeline.geometry.windows import Window
from pipeline.imagery import storage
from pipeline.imagery.expressions import Expression
from pipeline.imagery.formats import GDAL_ERRORS
from pipeline.imagery.raster import Grid, Scene, opened_dataset
from pipeline.imagery.reader import SceneReader
from pipeline.imagery.storage import Place
from pipeline.results.coverage import Piece

NO_CLASS = 255  # nodata in a mask


@dataclass(frozen=True)
class SeenScene:
    """A scene of a date: its mask, and its confidence, where there are any, and indices over its bands by their names.

    Without a mask a pixel is valid where all bands that the scene was opened with are. A mask may lie on a part of the scene's grid.
    """

    scene: Scene
    mask: Place | None
    confidence: Place | None = None
    indices: Mapping[str, Expression] = field(default_factory=dict)


class Sample(NamedTuple):
    """What the pixels of a piece show, an entry for each of its own; `index_N` has NaN where an index has no value."""

    class_N: np.ndarray  # uint8; NO_CLASS where the pixel is not valid; 0 where it is and there is no mask
    confidence_N: np.ndarray | None  # uint8, 0..100
    area_m2_N: np.ndarray  # float64, of the covered part
    index_N: dict[str, np.ndarray]  # float64, by name


Look = Callable[..., Sample]  # of a piece: look(piece, indices=True)


@contextmanager
def opened(seen: SeenScene) -> Iterator[tuple[Grid, Look]]:
    """The grid on which parcels are counted, the mask's or else the scene's, and what looks at pieces on it, while the block lasts.

    Raises Refused where a file is missing, or lies on another grid; `Look` raises Unreadable where a window cannot be read.
    """
    with _dataset(seen.mask) as mask, _dataset(seen.confidence) as confidence, _reader(seen) as reader:
        grid, row, col = _place_of(seen, mask)
        if confidence is not None and (mask is None or (confidence.shape, confidence.transform) != (mask.shape, mask.transform)):
            raise Refused(f"{seen.confidence}: lies on another grid than its mask: make both again (--fresh)")
        bands = {band.name.lower(): number for number, band in enumerate(seen.scene.bands)}
        crs = grid.rasterio_crs
        if crs is None or not seen.scene.on_ground:
            raise Refused(f"{seen.scene.uri}: has no place on the ground, so no parcel lies in it: assign its CRS (gdal_edit.py -a_srs)")

        def look(piece: Piece, *, indices: bool) -> Sample:
            window = piece.window
            area_m2 = ground_areas(window, grid.affine, crs)
            row_N, col_N = np.divmod(piece.pixel_N, window.width)
            area_m2_N = area_m2.area_m2[area_m2.row_cells[row_N], area_m2.col_cells[col_N]] * piece.coverage_N
            class_N = _read(mask, window).ravel()[piece.pixel_N] if mask else np.zeros(len(piece.pixel_N), np.uint8)
            confidence_N = _read(confidence, window).ravel()[piece.pixel_N] if confidence else None
            index_N: dict[str, np.ndarray] = {}
            if reader is not None and (mask is None or indices):
                values, valid_N = _bands(reader, window._replace(row=window.row + row, col=window.col + col), piece.pixel_N)
                class_N = np.where(valid_N.all(axis=0), class_N, NO_CLASS).astype(np.uint8) if mask is None else class_N
                named = {name: values[number] for name, number in bands.items()}
                for name, expression in seen.indices.items() if indices else ():
                    needed = valid_N[[bands[band] for band in expression.names]].all(axis=0) & (class_N != NO_CLASS)
                    index_N[name] = _index(expression, named, needed)
            return Sample(class_N, confidence_N, area_m2_N, index_N)

        yield grid, look


@contextmanager
def _reader(seen: SeenScene) -> Iterator[SceneReader | None]:
    """The scene's bands, where they are asked for: a scene may be gone when its mask is still there."""
    if seen.mask is not None and not seen.indices:
        yield None
        return
    with SceneReader(seen.scene) as reader:
        yield reader


@contextmanager
def _dataset(place: Place | None) -> Iterator[DatasetReader | None]:
    if place is None:
        yield None
        return
    with opened_dataset(place) as dataset:
        yield dataset


def _place_of(seen: SeenScene, mask: DatasetReader | None) -> tuple[Grid, int, int]:
    """The grid to count on, and the row and column of the scene at which it begins."""
    scene = seen.scene.grid
    if mask is None:
        return scene, 0, 0
    col, row = (round(number) for number in ~scene.affine * (mask.transform.c, mask.transform.f))
    a, b, c, d, e, f = tuple(scene.affine * mask.transform.translation(col, row))[:6]
    shifts = np.subtract(~scene.affine * (mask.transform * (mask.width, mask.height)), (col + mask.width, row + mask.height))
    if min(row, col) < 0 or row + mask.height > scene.height or col + mask.width > scene.width or np.abs(shifts).max() > 1e-3:
        raise Refused(f"{seen.mask}: lies on another grid than {seen.scene.uri}: make it again (--fresh)")
    return Grid(mask.height, mask.width, (a, b, c, d, e, f), scene.crs), row, col


def _read(dataset: DatasetReader, window: Window) -> np.ndarray:
    try:
        return dataset.read(1, window=RasterioWindow(window.col, window.row, window.width, window.height))
    except GDAL_ERRORS as error:
        raise Unreadable(f"{dataset.name}: row {window.row} col {window.col}: {storage.told(error)[:160]}") from None


def _bands(reader: SceneReader, window: Window, pixel_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The physical values of the scene's bands in some pixels of a window, C x N float64, and which are valid."""
    pixels, bands = reader.read(window), reader.scene.bands
    scale, offset = (np.array([[getattr(band, name)] for band in bands]) for name in ("scale", "offset"))
    values = pixels.values_CHW.reshape(len(bands), -1)[:, pixel_N] * scale + offset
    if pixels.valid_CHW is None:
        return values, np.ones(values.shape, bool)
    return values, pixels.valid_CHW.reshape(len(bands), -1)[:, pixel_N]


def _index(expression: Expression, values: Mapping[str, np.ndarray], valid_N: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        index_N = np.asarray(expression(values), np.float64) + np.zeros(len(valid_N))
    return np.where(valid_N & np.isfinite(index_N), index_N, np.nan)
