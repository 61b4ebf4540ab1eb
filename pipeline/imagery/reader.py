"""Read padded windows of a scene: values and which of them are valid, whatever the file's way to say so."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow

from pipeline.errors import Refused, Unreadable
from pipeline.geometry.windows import Span, Window
from pipeline.imagery import storage
from pipeline.imagery.bands import Band
from pipeline.imagery.beside import transform_of
from pipeline.imagery.damage import nothing_unsaid, unwritten
from pipeline.imagery.formats import GDAL_ERRORS, careful, open_raster
from pipeline.imagery.raster import Grid, Scene, SceneBand, grid_of, same_grid
from pipeline.imagery.storage import Place

# GDAL's default approximates the transformer within 0.125 px along whole scanlines, so a window warps differently
# from the whole: 15 % of the pixels of the demo's elevation model. At 1e-9 px none differ.
WARP_TOLERANCE_PX = 1e-9
TWICE = 0.3  # of an offset: reflectance of -0.03 in the middle of a scene
PREVIEW_PIECE = 1024  # px


class Pixels(NamedTuple):
    """A window as the files hold it: `valid_CHW` is None where every value is valid; invalid values are 0."""

    values_CHW: np.ndarray
    valid_CHW: np.ndarray | None


class SceneReader:
    """The open files of a scene, for one thread at a time; stays open from shard to shard."""

    def __init__(self, scene: Scene):
        self.scene = scene
        self.read_bytes = 0  # decoded
        self._places = [storage.place_of(band.path) for band in scene.bands]
        self._over = storage.place_of(scene.clouds.path) if scene.clouds else None
        self._files = [*self._places, self._over] if self._over else self._places
        self._lock = threading.Lock()
        self._groups: dict[tuple[DatasetReader, str], list[int]] = {}
        self._open()

    def _open(self) -> None:
        self._stack = ExitStack()
        opened: dict[tuple[object, ...], DatasetReader] = {}
        groups: dict[tuple[DatasetReader, str], list[int]] = {}  # by dtype too: one read of rasterio's has one
        self._masks: dict[str, DatasetReader] = {}
        with careful(*self._files, trusted=self.scene.trusted):
            for number, (band, place) in enumerate(zip(self.scene.bands, self._places, strict=True)):
                key = (band.path, repr(band.nodata), band.categorical) if band.warped else (band.path,)
                if key not in opened:
                    opened[key] = self._keep(open_raster(place, self.scene.trusted))
                    if band.warped:
                        opened[key] = self._keep(_on_grid(opened[key], band, self.scene.grid))
                if band.mask and band.mask not in self._masks:
                    self._masks[band.mask] = self._keep(open_raster(storage.place_of(band.mask)))
                groups.setdefault((opened[key], band.dtype), []).append(number)
            if self._over:
                clouds = self._keep(open_raster(self._over, self.scene.trusted))
                self._clouds = (
                    clouds
                    if same_grid(grid_of(clouds), self.scene.grid)
                    else self._keep(_on_grid(clouds, _classes(clouds), self.scene.grid))
                )
        self._groups = groups

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
        self.read_bytes += values_CHW.nbytes
        if inside != window:
            shape = (len(self.scene.bands), window.height, window.width)
            padded, known = np.zeros(shape, values_CHW.dtype), np.zeros(shape, bool)
            padded[:, : inside.height, : inside.width] = values_CHW
            known[:, : inside.height, : inside.width] = True if valid_CHW is None else valid_CHW
            values_CHW, valid_CHW = padded, known
        return Pixels(values_CHW, valid_CHW)

    def _read_inside(self, window: Window, out_shape: tuple[int, int] | None = None) -> Pixels:
        return storage.retried(lambda: self._read_once(window, out_shape), self._files, Unreadable)

    def _read_once(self, window: Window, out_shape: tuple[int, int] | None) -> Pixels:
        area = RasterioWindow(window.col, window.row, window.width, window.height)
        height, width = out_shape or (window.height, window.width)
        shape = (len(self.scene.bands), height, width)
        values_CHW, valid_CHW = np.empty(shape, self.scene.dtype), None
        if not self._groups:
            self._open_for(window)
        for (dataset, _), numbers in self._groups.items():
            bands = [self.scene.bands[number] for number in numbers]
            as_stored = len(bands) == len(values_CHW) and bands[0].dtype == self.scene.dtype
            values = values_CHW if as_stored else np.empty((len(bands), height, width), bands[0].dtype)
            with self._named(self._places[numbers[0]], window):
                dataset.read([band.index for band in bands], window=area, out=values)
                shown = self._shown(dataset, area, (height, width), bands)
            for number, band, plane in zip(numbers, bands, values, strict=True):
                if not as_stored:
                    with np.errstate(over="ignore"):  # a float64 that float32 cannot hold is infinite, and invalid
                        values_CHW[number] = plane
                valid = _valid_values(band, plane, values_CHW[number], shown)
                if out_shape is None and not band.warped:
                    holes = unwritten(dataset, band.index, window, plane)
                    valid = valid if holes is None else ~holes if valid is None else valid & ~holes
                if valid is not None and not valid.all():
                    values_CHW[number][~valid] = 0
                    valid_CHW = np.ones(shape, bool) if valid_CHW is None else valid_CHW
                    valid_CHW[number] = valid
        if self._over:
            hidden_HW = self._hidden(self._over, area, (height, width), window)
            if hidden_HW.any():
                values_CHW[:, hidden_HW] = 0
                valid_CHW = np.ones(shape, bool) if valid_CHW is None else valid_CHW
                valid_CHW[:, hidden_HW] = False
        return Pixels(values_CHW, valid_CHW)

    def _hidden(self, place: Place, area: RasterioWindow, shape: tuple[int, int], window: Window) -> np.ndarray:
        """Which pixels show no ground, by the mask of clouds, or lie where it says nothing."""
        assert self.scene.clouds
        with self._named(place, window):
            classes_HW = self._clouds.read(1, window=area, out_shape=shape)
        told = np.isfinite(classes_HW)
        if self._clouds.nodata is not None:
            told &= classes_HW != self._clouds.nodata
        return ~told | np.isin(classes_HW, self.scene.clouds.hidden)

    @contextmanager
    def _named(self, place: Place, window: Window) -> Iterator[None]:
        """What goes wrong while a window of a file is read, as Unreadable that names both."""
        try:
            with careful(place, trusted=self.scene.trusted), nothing_unsaid():
                yield
        except (*GDAL_ERRORS, MemoryError) as error:
            self._forget()
            reason = storage.told(error.__cause__ or error) or type(error).__name__
            raise Unreadable(f"{place}: {_told(window)}: {reason[:200]}") from error

    def _shown(self, dataset: DatasetReader, area: RasterioWindow, shape: tuple[int, int], bands: list[SceneBand]) -> np.ndarray | None:
        """Which pixels the masks of a file show; None where it has none."""
        shown = _read_mask(dataset, area, shape, {band.index for band in bands}) if bands[0].masked else None
        if bands[0].mask:
            beside = self._masks[bands[0].mask].read(1, window=area, out_shape=shape) > 0
            shown = beside if shown is None else shown & beside
        return shown

    def _open_for(self, window: Window) -> None:
        try:
            self._open()
        except Refused as error:
            raise Unreadable(f"cannot be opened any more for {_told(window)}: {error}") from None

    def _forget(self) -> None:
        """After an error, decoders and GDAL's cache may hold what was half decoded, or an answer of a store that was cut short, and
        later windows would read it without one."""
        self.close()
        self._groups = {}


def _told(window: Window) -> str:
    return f"rows {window.row} to {window.rows.stop}, columns {window.col} to {window.cols.stop}"


def _valid_values(band: SceneBand, stored: np.ndarray, kept: np.ndarray, shown: np.ndarray | None) -> np.ndarray | None:
    """Which values of a band hold something, as the file stores them and as we keep them; None: all do."""
    valid = shown
    if band.nodata is not None and not np.isnan(band.nodata):
        told = stored != stored.dtype.type(band.nodata)
        valid = told if valid is None else valid & told
    if stored.dtype.kind == "f":
        finite = np.isfinite(kept)
        valid = finite if valid is None else valid & finite
    return valid


def preview(scene: Scene, window: Window, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Values and validity, C x h x w, of a window inside the scene, reduced to `shape`, from overviews where there are any.

    A piece at a time: GDAL reads band after band, and would decode a large window's blocks again for each. Every core reads
    pieces, with files of its own. Raises Refused and Unreadable.
    """
    count = len(scene.bands)
    values_CHW, valid_CHW = np.empty((count, *shape), scene.dtype), np.empty((count, *shape), bool)
    sides = [max(PREVIEW_PIECE, block) for block in scene.block]
    rows, cols = (list(_pieces(*axis)) for axis in zip(shape, (window.rows, window.cols), sides, strict=True))
    pieces = list(product(rows, cols))
    workers = min(len(pieces), len(os.sched_getaffinity(0)))

    def read(first: int) -> None:
        with SceneReader(scene) as reader:
            for (small_rows, down), (small_cols, across) in pieces[first::workers]:
                small = Window.of(small_rows, small_cols)
                values, valid = reader._read_inside(Window.of(down, across), (small.height, small.width))
                place = (slice(None), *small.slices())
                values_CHW[place], valid_CHW[place] = values, True if valid is None else valid

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(read, range(workers)))
    return values_CHW, valid_CHW


def _pieces(small: int, inside: Span, side: int) -> Iterator[tuple[Span, Span]]:
    """Cut `small` px that show the span `inside` where each shows about `side` px of it, or one more."""
    count = max(1, min(small, inside.length // side))
    for first, stop in pairwise(number * small // count for number in range(count + 1)):
        start, end = (inside.start + step * inside.length // small for step in (first, stop))
        yield Span(first, stop), Span(start, max(end, start + 1))


def _classes(dataset: DatasetReader) -> SceneBand:
    """The lone band of a raster of classes, as one that is warped."""
    return SceneBand("classes", dataset.name, 1, "float32", dataset.nodata, 1.0, 0.0, masked=False, warped=True, categorical=True)


def _on_grid(dataset: DatasetReader, band: SceneBand, grid: Grid) -> WarpedVRT:
    """A view of a file on the scene's grid, warped window by window: nearest for classes, bilinear for measurements."""
    placed = transform_of(dataset)
    return WarpedVRT(
        dataset, crs=grid.rasterio_crs, transform=grid.affine, width=grid.width, height=grid.height,
        resampling=Resampling.nearest if band.categorical else Resampling.bilinear,
        src_transform=None if placed == dataset.transform else placed, src_nodata=band.nodata, nodata=float("nan"),
        dtype="float32", tolerance=WARP_TOLERANCE_PX,
        UNIFIED_SRC_NODATA="NO",  # rasterio's YES: a pixel is nodata where all bands of the file are, and mixed into others elsewhere
    )  # fmt: skip


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
    either without complaint. Refused is a median further outside the training range than ten times its width, and one below
    zero by a good part of a negative offset: some catalogues state one that their numbers no longer have.
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
        if not sum(map(len, values)):
            continue
        median = float(np.median(np.concatenate(values))) * band.scale + band.offset
        if median < TWICE * band.offset < 0:
            raise Refused(
                f"{scene.uri}: band {spec.name} is {median:.3g} in its middle after its offset of {band.offset:g}, which seems to have been"
                " taken off before: correct the offset that the file or the catalogue states"
            )
        if spec.range is None:
            continue
        low, high = spec.range
        if not low - 10 * (high - low) <= median <= high + 10 * (high - low):
            raise Refused(
                f"{scene.uri}: band {spec.name} holds values around {median:g}, the model was trained on {low:g} to {high:g}"
                f"{' ' + spec.unit if spec.unit else ''}: set the file's scale and offset tags, or use a model trained on this scaling"
            )


def _valid(pixels: Pixels, number: int) -> np.ndarray:
    shape = pixels.values_CHW.shape[1:]
    return np.ones(shape, bool) if pixels.valid_CHW is None else pixels.valid_CHW[number]
