"""Open, check and describe a scene, and read padded windows of it: everything that is known about GDAL is here."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyproj
import rasterio
from pyproj.exceptions import ProjError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import CRSError, RasterioError
from rasterio.io import DatasetReader
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow

from pipeline.errors import Refused, Unreadable
from pipeline.geometry.areas import ground_areas
from pipeline.geometry.windows import Window
from pipeline.imagery import storage
from pipeline.imagery.bands import Band, Found, find_bands
from pipeline.imagery.catalogue import Source

RAW_DTYPES = ("uint8", "uint16", "int16", "float32")  # read as they are; other dtypes become float32
SAME_GRID_PX = 1e-3
# GDAL's default approximates the transformer within 0.125 px along whole scanlines, so a window warps differently
# from the whole: 15 % of the pixels of the demo's elevation model. At 1e-9 px none differ.
WARP_TOLERANCE_PX = 1e-9


@dataclass(frozen=True)
class SceneBand:
    """Where a scene keeps one band that the model needs."""

    name: str
    path: str
    index: int  # from 1, as GDAL counts
    dtype: str
    nodata: float | None
    scale: float
    offset: float
    masked: bool  # the file has a mask or alpha band beside its nodata value
    warped: bool  # on another grid than the scene
    categorical: bool


@dataclass(frozen=True)
class Grid:
    """Size, place and CRS of a raster: `transform` takes (col, row) to the CRS; `crs` is WKT, or None if unknown."""

    height: int
    width: int
    transform: tuple[float, float, float, float, float, float]
    crs: str | None

    @property
    def affine(self) -> Affine:
        return Affine(*self.transform)

    @property
    def rasterio_crs(self) -> CRS | None:
        return CRS.from_wkt(self.crs) if self.crs else None

    @property
    def window(self) -> Window:
        return Window(0, 0, self.height, self.width)


@dataclass(frozen=True)
class Scene:
    """A scene that was opened and fits its model: its grid is the grid of the model's first band."""

    scene_id: str
    uri: str
    datetime: str | None
    version: str
    grid: Grid
    bands: tuple[SceneBand, ...]
    block: tuple[int, int]  # the tallest and the widest of the files' blocks, px
    resolution_m: float | None  # of the pixel in the middle, on the ground; None where areas cannot be told in square metres
    notes: tuple[str, ...] = ()

    @property
    def on_ground(self) -> bool:
        """Whether areas can be told in square metres."""
        return self.resolution_m is not None

    @property
    def input_id(self) -> str:
        return hashlib.sha256(f"{self.uri}\n{self.version}".encode()).hexdigest()[:16]

    @property
    def dtype(self) -> np.dtype:
        """The dtype in which windows are read: the files' own, where they share one that the engine takes."""
        common = np.result_type(*(band.dtype for band in self.bands))
        return common if common.name in RAW_DTYPES else np.dtype("float32")


class Pixels(NamedTuple):
    """A window as the files hold it: `valid_CHW` is None where every value is valid; invalid values are 0."""

    values_CHW: np.ndarray
    valid_CHW: np.ndarray | None


def open_scene(source: Source, wanted: Sequence[Band]) -> Scene:
    """Open the headers of a scene, find the bands that are wanted, and check them.

    Raises Refused, in one line that says what to do, for what cannot be segmented.
    """
    with ExitStack() as stack:
        files = [(asset, stack.enter_context(_open(asset.path))) for asset in source.assets]
        for _, dataset in files:
            _check_file(dataset)
        chosen = find_bands(source, files, wanted)
        reference = chosen[0].dataset
        grid = _grid_of(reference)
        bands = tuple(_scene_band(band, found, grid) for band, found in zip(wanted, chosen, strict=True))
        used = {found.dataset.name: found.dataset for found in chosen}
        blocks = [shape for dataset in used.values() for shape in dataset.block_shapes]
        resolution_m, notes = _resolution_m(grid), []
        if grid.crs is None:
            notes.append("the scene has no CRS: areas are counted in pixels")
        if grid.crs is not None and resolution_m is None:
            notes.append("the scene's CRS is tied to no place on the ground: areas are counted in pixels")
        if not grid.affine.is_rectilinear:
            notes.append("the scene's grid is rotated: so is the mask's")
        return Scene(
            scene_id=source.scene_id,
            uri=source.uri,
            datetime=source.datetime or _tiff_datetime(reference.tags().get("TIFFTAG_DATETIME")),
            version=_version(source, used),
            grid=grid,
            bands=bands,
            block=(max(height for height, _ in blocks), max(width for _, width in blocks)),
            resolution_m=resolution_m,
            notes=tuple(notes),
        )


def _version(source: Source, used: dict[str, DatasetReader]) -> str:
    listing = {source.listed_in} if source.listed_in else set()
    paths = sorted({Path(file) for dataset in used.values() for file in dataset.files} | listing)
    return ";".join(f"{path.name}:{storage.version(path)}" for path in paths if path.exists())


class SceneReader:
    """The open files of a scene, for one thread at a time; stays open from shard to shard."""

    def __init__(self, scene: Scene):
        self.scene = scene
        self._stack = ExitStack()
        self._lock = threading.Lock()
        opened: dict[tuple[object, ...], DatasetReader] = {}
        self._groups: dict[tuple[DatasetReader, str], list[int]] = {}  # by dtype too: one read of rasterio's has one
        for number, band in enumerate(scene.bands):
            key = (band.path, repr(band.nodata), band.categorical) if band.warped else (band.path,)
            if key not in opened:
                opened[key] = self._keep(_open(Path(band.path)))
                if band.warped:
                    opened[key] = self._keep(_on_grid(opened[key], band, scene.grid))
            self._groups.setdefault((opened[key], band.dtype), []).append(number)

    def __enter__(self) -> SceneReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    def _keep(self, dataset: DatasetReader) -> DatasetReader:
        self._stack.callback(dataset.close)  # not entered: a dataset's context belongs to the thread that entered it
        return dataset

    def read(self, window: Window) -> Pixels:
        """Read a window that may reach over the scene's right and lower edge; what lies outside is invalid.

        Returns C x H x W in the scene's dtype, bands in the model's order. Raises Unreadable, naming file and window.
        """
        inside = window.intersection(self.scene.grid.window)
        if inside is None or (inside.row, inside.col) != (window.row, window.col):
            raise ValueError(f"{window} does not start inside the scene ({self.scene.grid.height} x {self.scene.grid.width} px)")
        with self._lock:
            values_CHW, valid_CHW = self._read_inside(inside)
        if inside != window:
            shape = (len(self.scene.bands), window.height, window.width)
            padded, known = np.zeros(shape, values_CHW.dtype), np.zeros(shape, bool)
            padded[:, : inside.height, : inside.width] = values_CHW
            known[:, : inside.height, : inside.width] = True if valid_CHW is None else valid_CHW
            values_CHW, valid_CHW = padded, known
        return Pixels(values_CHW, valid_CHW)

    def preview(self, window: Window, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Values and validity, C x h x w, of a window inside the scene, reduced to `shape`, from overviews where there are any."""
        with self._lock:
            values_CHW, valid_CHW = self._read_inside(window, shape)
        return values_CHW, np.ones(values_CHW.shape, bool) if valid_CHW is None else valid_CHW

    def _read_inside(self, window: Window, out_shape: tuple[int, int] | None = None) -> Pixels:
        area = RasterioWindow(window.col, window.row, window.width, window.height)
        height, width = out_shape or (window.height, window.width)
        shape = (len(self.scene.bands), height, width)
        values_CHW, valid_CHW = np.empty(shape, self.scene.dtype), np.ones(shape, bool)
        for (dataset, _), numbers in self._groups.items():
            bands = [self.scene.bands[number] for number in numbers]
            try:
                values = dataset.read([band.index for band in bands], window=area, out_shape=(len(bands), height, width))
                shown = _read_mask(dataset, area, (height, width), {band.index for band in bands}) if bands[0].masked else None
            except (RasterioError, UnicodeDecodeError, MemoryError) as error:
                reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
                raise Unreadable(
                    f"{bands[0].path}: rows {window.row} to {window.rows.stop}, columns {window.col} to {window.cols.stop}: {reason[:200]}"
                ) from error
            for number, band, plane in zip(numbers, bands, values, strict=True):
                valid = valid_CHW[number]
                if band.nodata is not None and not np.isnan(band.nodata):
                    np.not_equal(plane, plane.dtype.type(band.nodata), out=valid)
                if plane.dtype.kind == "f":
                    with np.errstate(over="ignore"):  # a float64 that float32 cannot hold is infinite, and invalid
                        plane = plane.astype(self.scene.dtype, copy=False)
                    valid &= np.isfinite(plane)
                if shown is not None:
                    valid &= shown
                values_CHW[number] = np.where(valid, plane, 0)
        return Pixels(values_CHW, None if valid_CHW.all() else valid_CHW)


def _read_mask(dataset: DatasetReader, area: RasterioWindow, shape: tuple[int, int], data: set[int]) -> np.ndarray:
    """Which pixels both the file's mask and its alpha bands show, save those that are `data`.

    GDAL itself looks past an alpha band where there is a nodata value.
    """
    shown = np.ones(shape, bool)
    if dataset.mask_flag_enums[0] == [MaskFlags.per_dataset]:
        shown &= dataset.read_masks(1, window=area, out_shape=shape) > 0
    for index, use in enumerate(dataset.colorinterp, 1):
        if use == ColorInterp.alpha and index not in data:
            shown &= dataset.read(index, window=area, out_shape=shape) > 0
    return shown


def check_scaling(scene: Scene, wanted: Sequence[Band]) -> None:
    """Read three small windows along the diagonal and refuse values that no scale of the training data explains.

    A scene in reflectance and the same scene in raw digital numbers differ by a factor of 10,000: a model would answer
    either without complaint. Refused is a median further outside the training range than ten times its width.
    """
    grid = scene.grid
    samples = []
    with SceneReader(scene) as reader:
        for share in (0.25, 0.5, 0.75):
            corner = Window(int(grid.height * share), int(grid.width * share), 64, 64)
            try:
                samples.append(reader.read(corner.intersection(grid.window) or grid.window._replace(height=1, width=1)))
            except Unreadable:
                continue  # law 6 names the window when its shard is read
    for number, (band, spec) in enumerate(zip(scene.bands, wanted, strict=True)):
        values = [pixels.values_CHW[number][_valid(pixels, number)] for pixels in samples]
        if spec.range is None or not sum(map(len, values)):
            continue
        median = float(np.median(np.concatenate(values))) * band.scale + band.offset
        low, high = spec.range
        if not low - 10 * (high - low) <= median <= high + 10 * (high - low):
            raise Refused(
                f"{scene.uri}: band {spec.name} holds values around {median:g}, the model was trained on {low:g} to {high:g}"
                f"{' ' + spec.unit if spec.unit else ''}: set the file's scale and offset tags, or use a model trained on this scaling"
            )


def _valid(pixels: Pixels, number: int) -> np.ndarray:
    shape = pixels.values_CHW.shape[1:]
    return np.ones(shape, bool) if pixels.valid_CHW is None else pixels.valid_CHW[number]


def _open(path: Path) -> DatasetReader:
    try:
        return rasterio.open(path)
    except (RasterioError, CRSError, UnicodeDecodeError) as error:
        if not path.exists():
            raise Refused(f"{path}: no such file") from None
        raise Refused(f"{path}: cannot be opened as a raster ({' '.join(str(error).split())[:160]})") from None


def _check_file(dataset: DatasetReader) -> None:
    """Refuse by name the files that hold no plain bands on an affine grid."""
    path = dataset.name
    if dataset.count == 0:
        raise Refused(f"{path}: holds no bands itself, only subdatasets: extract one with gdal_translate")
    if any(dtype.startswith("complex") for dtype in dataset.dtypes):
        raise Refused(f"{path}: holds complex numbers: convert them to intensity first (gdal_calc.py --calc 'abs(A)**2')")
    if dataset.gcps[0] and dataset.transform.is_identity:
        raise Refused(f"{path}: is placed by ground control points only: warp it to a grid first (gdalwarp -t_srs EPSG:4326)")
    if dataset.transform.is_degenerate:
        raise Refused(f"{path}: its geotransform has no area: correct it first (gdal_edit.py -a_ullr)")


def _scene_band(band: Band, found: Found, grid: Grid) -> SceneBand:
    dataset, path = found.dataset, found.dataset.name
    if found.palette and not band.categorical:
        raise Refused(f"{path}: is a palette image: expand it to colours first (gdal_translate -expand rgb)")
    warped = not _same_grid(_grid_of(dataset), grid)
    if warped:
        _check_warp(found, grid)
    nodata = found.nodata if found.nodata is not None else band.nodata
    if nodata is not None and not _representable(nodata, np.dtype(found.dtype)):
        nodata = None  # no pixel can hold it
    return SceneBand(
        name=band.name, path=path, index=found.index, dtype="float32" if warped else found.dtype, nodata=nodata,
        scale=float(found.scale), offset=float(found.offset), masked=found.masked and not warped, warped=warped,
        categorical=band.categorical,
    )  # fmt: skip


def _check_warp(found: Found, grid: Grid) -> None:
    """Refuse a file on another grid that cannot be taken to the scene's."""
    path, crs = found.dataset.name, _grid_of(found.dataset).crs
    if crs is None or grid.crs is None:
        raise Refused(
            f"{path}: lies on another grid than the scene's first band and one of them has no CRS: assign it (gdal_edit.py -a_srs)"
        )
    if found.masked and found.nodata is not None:
        raise Refused(
            f"{path}: lies on another grid than the scene's first band and has a nodata value beside a mask or alpha band:"
            " keep one of them (gdal_translate -a_nodata none)"
        )
    if ColorInterp.alpha in found.dataset.colorinterp and not found.masked:
        raise Refused(
            f"{path}: lies on another grid than the scene's first band and a band that has a name is marked as alpha:"
            " unmark it (gdal_edit.py -colorinterp_<band> undefined)"
        )
    try:
        if crs != grid.crs:
            pyproj.Transformer.from_crs(crs, grid.crs, always_xy=True)
    except ProjError:
        raise Refused(f"{path}: nothing takes its CRS to that of the scene's first band: correct it (gdal_edit.py -a_srs)") from None


def _representable(value: float, dtype: np.dtype) -> bool:
    if dtype.kind == "f":
        return True
    limits = np.iinfo(dtype)
    return bool(np.isfinite(value)) and float(value).is_integer() and limits.min <= value <= limits.max


def _grid_of(dataset: DatasetReader) -> Grid:
    placed = dataset.crs if dataset.crs else None
    a, b, c, d, e, f = tuple(dataset.transform)[:6]
    return Grid(dataset.height, dataset.width, (a, b, c, d, e, f), placed.to_wkt() if placed else None)


def _same_grid(one: Grid, other: Grid) -> bool:
    """Whether two rasters share their pixels: the same size and CRS, corners within a thousandth of a pixel."""
    if (one.height, one.width) != (other.height, other.width) or one.rasterio_crs != other.rasterio_crs:
        return False
    corners = ((0, 0), (one.width, 0), (0, one.height))
    shifts = [np.subtract(~other.affine * (one.affine * corner), corner) for corner in corners]
    return bool(np.abs(shifts).max() < SAME_GRID_PX)


def _on_grid(dataset: DatasetReader, band: SceneBand, grid: Grid) -> WarpedVRT:
    """A view of a file on the scene's grid, warped window by window: nearest for classes, bilinear for measurements."""
    return WarpedVRT(
        dataset, crs=grid.rasterio_crs, transform=grid.affine, width=grid.width, height=grid.height,
        resampling=Resampling.nearest if band.categorical else Resampling.bilinear,
        src_nodata=band.nodata, nodata=float("nan"), dtype="float32", tolerance=WARP_TOLERANCE_PX,
        UNIFIED_SRC_NODATA="NO",  # rasterio's YES: a pixel is nodata where all bands of the file are, and mixed into others elsewhere
    )  # fmt: skip


def _resolution_m(grid: Grid) -> float | None:
    """The side of a square as large on the ground as the scene's middle pixel, or another where that one is beyond the globe's disc."""
    crs = grid.rasterio_crs
    if crs is None:
        return None
    try:
        for down, across in product((0.5, 0.25, 0.75, 0, 1), repeat=2):
            row, col = min(int(grid.height * down), grid.height - 1), min(int(grid.width * across), grid.width - 1)
            area_m2 = float(ground_areas(Window(row, col, 1, 1), grid.affine, crs).area_m2.sum())
            if area_m2 > 0:
                return math.sqrt(area_m2)
    except (CRSError, RasterioError):
        return None
    return None


def _tiff_datetime(tag: str | None) -> str | None:
    """TIFF's "YYYY:MM:DD HH:MM:SS" as ISO 8601, taken as UTC; None for anything else."""
    try:
        return f"{datetime.strptime(tag or '', '%Y:%m:%d %H:%M:%S').isoformat()}Z"
    except ValueError:
        return None
