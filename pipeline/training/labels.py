"""Labels on a scene's grid: from a raster of ids or colours, or from polygons, a window at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import rasterio.features
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader
from rasterio.warp import transform_bounds
from shapely import box, get_parts, make_valid, union_all
from shapely.geometry.base import BaseGeometry

from pipeline.errors import Refused
from pipeline.geometry.windows import Window, shards
from pipeline.imagery.bands import Band
from pipeline.imagery.catalogue import RASTER_SUFFIXES, Asset, BandEntry, Source
from pipeline.imagery.raster import Grid, Scene, open_scene, opened_dataset
from pipeline.imagery.reader import SceneReader
from pipeline.imagery.region import check_coordinates
from pipeline.imagery.storage import Place
from pipeline.imagery.vectors import read_vectors
from pipeline.training.classes import ClassTable, Value
from pipeline.training.targets import VALUE, Numbers
from pipeline.training.unknown import unknown

if TYPE_CHECKING:
    import geopandas  # a second to import, which only those who have polygons should wait

LABELS = ("labels", "labels green", "labels blue")  # what the bands of a mask are called beside the image's
READERS_OPEN = 64
PIECE = 1024  # px: the windows in which a mask is looked through
LARGEST_EXACT = 2**24  # up to which float32, as which a mask may be read, has every whole number


@lru_cache(READERS_OPEN)
def _reader(scene: Scene, process: int) -> SceneReader:
    return SceneReader(scene)


def reader_of(scene: Scene) -> SceneReader:
    """The open files of a scene, kept open for the next window; each process has its own."""
    return _reader(scene, os.getpid())


class RasterLabels(NamedTuple):
    """A mask on the grid of its image: ids, indices of a palette, colours in three bands, or numbers."""

    place: str
    scene: Scene
    palette: tuple[int, ...] | None = None  # 0xRRGGBB of each index
    named: str = ""  # as the file describes its numbers
    unit: str = ""

    @property
    def coloured(self) -> bool:
        """Whether it shows its classes as colours."""
        return self.palette is not None or len(self.scene.bands) == len(LABELS)

    def ids(self, window: Window, table: ClassTable) -> np.ndarray:
        """The class ids of a window inside the grid, uint8 H x W; 255 where ignored. Raises Refused and Unreadable."""
        values_HW, valid_HW = self._values(window, table.coloured)
        return table.ids(values_HW, valid_HW, self.place)

    def numbers(self, window: Window, ignored: Sequence[float]) -> np.ndarray:
        """The numbers of a window inside the grid after the file's scale and offset, float32 H x W; NaN where there is none, or
        one of `ignored`. Raises Unreadable."""
        values_CHW, valid_CHW = reader_of(self.scene).read(window)
        stored_HW, band = values_CHW[0].astype(np.float32), self.scene.bands[0]
        with np.errstate(over="ignore"):
            numbers_HW = (stored_HW.astype(np.float64) * band.scale + band.offset).astype(np.float32)
        unknown_HW = ~np.isfinite(numbers_HW) | np.isin(stored_HW, np.array(ignored, np.float32))
        if valid_CHW is not None:
            unknown_HW |= ~valid_CHW.all(axis=0)
        return np.where(unknown_HW, np.float32(np.nan), numbers_HW)

    def values(self) -> set[Value]:
        """The values, or colours, that it holds anywhere."""
        grid, found = self.scene.grid, set()
        for window in shards(grid.window, PIECE):
            values_HW, valid_HW = self._values(window, self.coloured)
            found |= set(np.unique(values_HW[valid_HW]).tolist())
        return found

    def _values(self, window: Window, coloured: bool) -> tuple[np.ndarray, np.ndarray]:
        values_CHW, valid_CHW = reader_of(self.scene).read(window)
        valid_HW = np.ones(values_CHW.shape[1:], bool) if valid_CHW is None else np.logical_and.reduce(valid_CHW)
        if len(values_CHW) == len(LABELS):
            red, green, blue = values_CHW.astype(np.int64)
            if not coloured:
                raise Refused(f"{self.place}: is a mask in colours; the class table lists values: write colours (#RRGGBB) in --classes")
            return red << 16 | green << 8 | blue, valid_HW
        values_HW = values_CHW[0].astype(np.int64)
        odd_HW = (values_HW != values_CHW[0]) | (np.abs(values_HW) > LARGEST_EXACT)
        if odd_HW.any():
            raise Refused(f"{self.place}: holds {values_CHW[0][odd_HW][0]:.10g}: labels are whole numbers up to {LARGEST_EXACT}")
        if coloured:
            if self.palette is None:
                raise Refused(f"{self.place}: is a mask of values, not of colours: list the values of each class in --classes")
            values_HW = np.array(self.palette, np.int64)[values_HW]
        return values_HW, valid_HW


@dataclass(frozen=True, eq=False)
class PolygonLabels:
    """Polygons in the CRS of their image; of those that overlap, the last in the file is drawn on top."""

    place: str
    grid: Grid
    shapes: geopandas.GeoDataFrame  # columns value and geometry, in the CRS of the grid
    coloured: bool = False
    named: str = ""  # the column
    unit: str = ""

    def ids(self, window: Window, table: ClassTable) -> np.ndarray:
        """As of `RasterLabels`; a pixel belongs to a polygon if its centre does."""
        elsewhere_HW = np.full((window.height, window.width), table.elsewhere, np.uint8)
        return self._drawn(window, elsewhere_HW, lambda values: table.ids_of(values, self.place).tolist())

    def numbers(self, window: Window, ignored: Sequence[float]) -> np.ndarray:
        """As of `RasterLabels`; likewise."""
        unknown_HW = np.full((window.height, window.width), np.nan, np.float32)
        return self._drawn(window, unknown_HW, lambda values: [np.nan if value in ignored else value for value in values])

    def _drawn(self, window: Window, out_HW: np.ndarray, shown: Callable[[list[Any]], list[Any]]) -> np.ndarray:
        """The polygons drawn into `out_HW`, each as what `shown` makes of its value."""
        affine = self.grid.affine
        corners = [affine * corner for corner in _corners(window)]
        (west, east), (south, north) = ((min(axis), max(axis)) for axis in zip(*corners, strict=True))
        near = self.shapes.iloc[np.sort(self.shapes.sindex.query(box(west, south, east, north)))]
        if len(near):
            drawn = zip(near.geometry, shown(near["value"].tolist()), strict=True)
            moved = affine * affine.translation(window.col, window.row)
            rasterio.features.rasterize(drawn, out=out_HW, transform=moved)
        return out_HW

    def values(self) -> set[Value]:
        """The values that the polygons have."""
        return set(self.shapes["value"].tolist())


def _corners(window: Window) -> list[tuple[int, int]]:
    return [(col, row) for col in (window.col, window.cols.stop) for row in (window.row, window.rows.stop)]


def open_labels(
    image: Source, path: Place, bands: Sequence[Band], class_column: str | None = None, numbers: Numbers | None = None
) -> tuple[Scene, RasterLabels | PolygonLabels]:
    """Open an image and its labels, of classes or of `numbers`, on one grid, the image's.

    A raster of classes is taken to it by nearest neighbour, one of numbers as `_number_bands` says; without a CRS on either side
    it must have the image's size. Raises Refused, naming both files, for what does not fit together.
    """
    if path.suffix.lower() not in RASTER_SUFFIXES:
        scene = open_scene(image, bands)
        return scene, _polygons(path, scene, class_column, numbers is not None)
    with opened_dataset(path, image.trusted) as dataset:
        count, placed, shape = _label_bands(dataset), bool(dataset.crs), dataset.shape
        if numbers is None:
            about: dict[str, Any] = {"palette": _palette(dataset)}
        else:
            if dataset.colorinterp[0] == ColorInterp.palette:
                raise Refused(f"{path}: is a palette image: its values are places in a list of colours, not numbers to learn")
            about = {"named": dataset.descriptions[0] or path.stem, "unit": dataset.units[0] or ""}
    if numbers is not None and count != 1:
        raise Refused(f"{path}: has {count} bands: numbers to learn are in one band (gdal_translate -b 1)")
    label_asset = Asset(path, tuple(BandEntry(names=(name,)) for name in LABELS[:count]))
    label_bands = [Band(name, categorical=True) for name in LABELS[:count]] if numbers is None else _number_bands(numbers)
    scene = open_scene(image, bands)
    if placed and scene.grid.crs:
        both = open_scene(replace(image, assets=(*image.assets, label_asset)), [*bands, *label_bands])
        own = both.bands[len(bands) :]
        return scene, RasterLabels(str(path), replace(both, bands=own if own[0].warped else own[:count]), **about)
    if shape != (scene.grid.height, scene.grid.width):
        ours = f"{scene.grid.height} x {scene.grid.width}"
        raise Refused(f"{path}: is {shape[0]} x {shape[1]} px, its image {image.uri} {ours} px; without a CRS both must have one size")
    mask = open_scene(Source(str(path), path.stem, None, (label_asset,), trusted=image.trusted), label_bands[:count])
    return scene, RasterLabels(str(path), replace(mask, grid=scene.grid), **about)


def _number_bands(numbers: Numbers) -> list[Band]:
    """How a raster of numbers is taken to another grid.

    Bilinear (where its pixels are smaller GDAL averages those under a pixel), from what is known alone, but no farther than it
    reaches: the band is read by nearest neighbour too, and a pixel is known where both are. Values that are to be ignored must not
    be mixed with others: then by nearest neighbour only.
    """
    nearest = Band(LABELS[0], categorical=True)
    return [nearest] if numbers.ignored else [Band(LABELS[0]), nearest]


def _label_bands(dataset: DatasetReader) -> int:
    count = sum(use != ColorInterp.alpha for use in dataset.colorinterp)
    if count != 1 and (count, dataset.dtypes[0]) != (len(LABELS), "uint8"):
        raise Refused(f"{dataset.name}: has {count} bands of {dataset.dtypes[0]}: labels are one band of values, or three of uint8 colours")
    return count


def _palette(dataset: DatasetReader) -> tuple[int, ...] | None:
    if dataset.colorinterp[0] != ColorInterp.palette:
        return None
    colours = dataset.colormap(1)
    listed = (colours.get(index, (0, 0, 0, 0)) for index in range(np.iinfo(dataset.dtypes[0]).max + 1))
    return tuple(red << 16 | green << 8 | blue for red, green, blue, _ in listed)


def _polygons(path: Place, scene: Scene, class_column: str | None, numbers: bool) -> PolygonLabels:
    import geopandas
    from pandas import notna

    shapes = read_vectors(path)
    if not isinstance(shapes, geopandas.GeoDataFrame):
        raise Refused(f"{path}: is a table without polygons")
    if shapes.empty:
        raise Refused(f"{path}: holds no polygons")
    if scene.grid.rasterio_crs is None or shapes.crs is None:
        raise Refused(f"{path}: polygons and scene must both have a CRS; {scene.uri if shapes.crs else path} has none")
    columns = [name for name in shapes.columns if name != shapes.geometry.name]
    usual = VALUE if numbers else "class"
    if class_column is None and usual in columns:
        class_column = usual
    if class_column not in columns:
        asked = f"no column {class_column}" if class_column else f"no column called {usual}"
        raise Refused(f"{path}: {asked}; there are {', '.join(columns)}: name one with --class-column")
    check_coordinates(path, shapes.geometry.to_numpy())
    value_of = partial(_number, place=path, column=class_column) if numbers else _value
    told = [
        (_polygonal(shape), value_of(value))
        for shape, value in zip(shapes.geometry, shapes[class_column], strict=True)
        if shape and notna(value)
    ]
    values = [value for shape, value in told if not shape.is_empty]
    if not values:
        raise Refused(f"{path}: holds no polygons with a {usual} in {class_column}")
    placed = _on_grid(geopandas.GeoSeries([shape for shape, _ in told if not shape.is_empty], crs=shapes.crs), scene.grid)
    drawn = [_polygonal(shape) for shape in placed]  # empty where it is far from the grid
    return PolygonLabels(str(path), scene.grid, geopandas.GeoDataFrame({"value": values}, geometry=drawn), named=str(class_column))


def _on_grid(shapes: geopandas.GeoSeries, grid: Grid) -> geopandas.GeoSeries:
    """Shapes in the CRS of the grid. What is farther than the grid is long is cut off first: it may lie where that CRS is not defined."""
    crs = grid.rasterio_crs
    assert crs is not None
    corners = [grid.affine * corner for corner in _corners(grid.window)]
    (west, east), (south, north) = ((min(axis), max(axis)) for axis in zip(*corners, strict=True))
    west, south, east, north = transform_bounds(crs, CRS.from_user_input(shapes.crs), west, south, east, north)
    if np.isfinite([west, south, east, north]).all() and west < east:  # not across the 180th meridian
        near = box(west, south, east, north).buffer(max(east - west, north - south), join_style="mitre")
        far = ~shapes.within(near)
        shapes = shapes.where(~far, shapes[far].intersection(near))
    return shapes.to_crs(crs.to_wkt())


def _polygonal(shape: BaseGeometry) -> BaseGeometry:
    """The polygons of a shape, made valid; empty where it has none."""
    valid = shape if shape.is_valid else make_valid(shape)
    if valid.geom_type in ("Polygon", "MultiPolygon"):
        return valid
    return union_all([part for part in get_parts(get_parts(valid)) if part.geom_type == "Polygon"])


def _value(value: Any) -> Value:
    """Whole numbers as such, all else as text."""
    if isinstance(value, (int, float, np.number)) and float(value).is_integer():
        return int(value)
    return str(value)


def _number(value: Any, place: Place, column: str | None) -> float:
    """A number that float32 can hold; NaN for one that it cannot. Raises Refused for what is none."""
    if isinstance(value, (str, bool, np.bool_)):
        raise Refused(f"{place}: {column} holds {str(value)[:60]!r}, which is no number: name a column of numbers with --class-column")
    with np.errstate(over="ignore"):
        number = np.float32(value)
    return float(number) if np.isfinite(number) else float("nan")


def ignored_outside(labels_HW: np.ndarray, window: Window, own: Sequence[Window], never: Sequence[Window]) -> np.ndarray:
    """In place: unknown (255, or NaN of numbers) where a pixel of `window` lies in none of `own` or in one of `never`; returns it."""
    keep_HW = np.zeros(labels_HW.shape, bool)
    for areas, kept in ((own, True), (never, False)):
        for area in areas:
            cut = area.intersection(window)
            if cut:
                keep_HW[cut.relative_to(window).slices()] = kept
    labels_HW[~keep_HW] = unknown(labels_HW)
    return labels_HW
