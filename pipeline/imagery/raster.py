"""Open, check and describe a scene: its grid, its bands, and what of it is refused."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import product

import numpy as np
import pyproj
from pyproj.exceptions import ProjError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import CRSError, RasterioError
from rasterio.io import DatasetReader
from rasterio.transform import Affine

from pipeline.errors import Refused, Unreadable
from pipeline.geometry.areas import ground_areas
from pipeline.geometry.windows import Window
from pipeline.imagery import storage
from pipeline.imagery.bands import Band, Found, find_bands
from pipeline.imagery.beside import mask_beside, masks_all_bands, settings_beside, transform_of, world_file
from pipeline.imagery.catalogue import Asset, CloudMask, Source
from pipeline.imagery.damage import has_holes
from pipeline.imagery.formats import GDAL_ERRORS, block_shapes, careful, open_raster
from pipeline.imagery.storage import Place

RAW_DTYPES = ("uint8", "uint16", "int16", "float32")  # read as they are; other dtypes become float32
SAME_GRID_PX = 1e-3
LARGEST_COORDINATE = 1e30  # NaN is not below it either


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
    mask: str | None = None  # the file beside it that says which pixels are valid


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
    files: tuple[str, ...] = ()  # that `version` tells of
    said: str = ""  # a hash of the STAC item that lists it
    trusted: bool = False  # its files may follow what they name: `--allow-vrt`
    clouds: CloudMask | None = None

    @property
    def on_ground(self) -> bool:
        """Whether areas can be told in square metres."""
        return self.resolution_m is not None

    @property
    def read_from(self) -> set[str]:
        """The rasters that its pixels come from."""
        return {band.path for band in self.bands} | ({self.clouds.path} if self.clouds else set())

    @property
    def input_id(self) -> str:
        return hashlib.sha256(f"{self.uri}\n{self.version}".encode()).hexdigest()[:16]

    @property
    def dtype(self) -> np.dtype:
        """The dtype in which windows are read: the files' own, where they share one that the engine takes."""
        common = np.result_type(*(band.dtype for band in self.bands))
        return common if common.name in RAW_DTYPES else np.dtype("float32")


def open_scene(source: Source, wanted: Sequence[Band]) -> Scene:
    """Open the headers of a scene, find the bands that are wanted, and check them.

    Raises Refused, in one line that says what to do, for what cannot be segmented.
    """
    with _in_one_line(source.uri), careful(*(asset.path for asset in source.assets), trusted=source.trusted), ExitStack() as stack:
        files = [(asset, stack.enter_context(open_raster(asset.path, source.trusted))) for asset in _needed(source, wanted)]
        for _, dataset in files:
            _check_file(dataset)
        chosen = find_bands(source, files, wanted)
        reference = chosen[0].dataset
        grid = grid_of(reference)
        bands = tuple(_scene_band(band, found, grid, source.trusted) for band, found in zip(wanted, chosen, strict=True))
        if source.clouds:
            _check_clouds(source.clouds, grid, source.trusted)
        used = {found.dataset.name: found.dataset for found in chosen}
        blocks = [shape for dataset in used.values() for shape in block_shapes(dataset)]
        resolution_m, notes = _resolution_m(grid), [] if source.trusted else _passed_over(used.values())
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
            version=_version(files_read := _files(source, used.values()), source.said),
            files=files_read,
            said=source.said,
            clouds=source.clouds,
            grid=grid,
            bands=bands,
            block=(max(height for height, _ in blocks), max(width for _, width in blocks)),
            resolution_m=resolution_m,
            notes=tuple(notes),
            trusted=source.trusted,
        )


def _needed(source: Source, wanted: Sequence[Band]) -> tuple[Asset, ...]:
    """The files that hold what is wanted, where the catalogue names the bands; else all of them."""
    asked = [{name.lower() for name in (band.name, band.common_name) if name} for band in wanted]
    held = {asset: {name.lower() for entry in asset.bands for name in entry.names} for asset in source.assets}
    if not all(any(names & has for has in held.values()) for names in asked):
        return source.assets
    return tuple(asset for asset, has in held.items() if any(names & has for names in asked))


def check_unchanged(scene: Scene) -> None:
    """Raise Unreadable where the files of a scene are no longer those that were opened."""
    try:
        found = _version(scene.files, scene.said)
    except storage.OUT_OF_REACH as error:
        raise Unreadable(f"{scene.uri}: cannot be looked at any more: {storage.told(error)[:160]}") from None
    if scene.files and found != scene.version:
        raise Unreadable(f"{scene.uri}: changed while it was read, or is gone: start again to do it anew")


@contextmanager
def opened_dataset(path: Place, trusted: bool = False) -> Iterator[DatasetReader]:
    """A file, open in this thread while the block lasts. Raises Refused, in one line, where that must not or cannot be done."""
    with careful(path, trusted=trusted), open_raster(path, trusted) as dataset:
        yield dataset


@contextmanager
def _in_one_line(uri: str) -> Iterator[None]:
    """What GDAL says while headers are looked through, as Refused."""
    try:
        yield
    except GDAL_ERRORS as error:
        raise Refused(f"{uri}: cannot be opened as a raster ({storage.told(error)[:160]})") from None


def _passed_over(used: Iterable[DatasetReader]) -> list[str]:
    beside = [file.name for dataset in used if (file := settings_beside(storage.of_gdal(dataset.name)))]
    return [f"{', '.join(beside[:3])} beside it is not read, whatever it says of CRS or nodata: --allow-vrt does"] if beside else []


def _files(source: Source, used: Iterable[DatasetReader]) -> tuple[str, ...]:
    """All that a scene is read from: its rasters, what is read beside them, and its mask of clouds."""
    found: set[Place | None] = {storage.place_of(source.clouds.path)} if source.clouds else set()
    for dataset in used:
        place = storage.of_gdal(dataset.name)
        found |= {storage.of_gdal(file) for file in dataset.files}
        if not source.trusted:
            found |= {mask_beside(place), world_file(place)}
    return tuple(sorted(str(place) for place in found if place and not str(place).startswith("/vsi")))


def _version(files: Sequence[str], said: str) -> str:
    versions = [(place.name, storage.version(place)) for place in map(storage.place_of, files)]
    return ";".join(f"{name}:{version}" for name, version in [*versions, ("item", said)] if version)


def _check_file(dataset: DatasetReader) -> None:
    """Refuse by name the files that hold no plain bands on an affine grid."""
    path = storage.of_gdal(dataset.name)
    if dataset.count == 0:
        raise Refused(f"{path}: holds no bands itself, only subdatasets: extract one with gdal_translate")
    if any(dtype.startswith("complex") for dtype in dataset.dtypes):
        raise Refused(f"{path}: holds complex numbers: convert them to intensity first (gdal_calc.py --calc 'abs(A)**2')")
    if dataset.gcps[0] and dataset.transform.is_identity:
        raise Refused(f"{path}: is placed by ground control points only: warp it to a grid first (gdalwarp -t_srs EPSG:4326)")
    if not all(abs(number) < LARGEST_COORDINATE for number in dataset.transform):
        raise Refused(f"{path}: its geotransform holds numbers beyond all coordinates: correct it first (gdal_edit.py -a_ullr)")
    if dataset.transform.is_degenerate:
        raise Refused(f"{path}: its geotransform has no area: correct it first (gdal_edit.py -a_ullr)")


def _scene_band(band: Band, found: Found, grid: Grid, trusted: bool) -> SceneBand:
    dataset, path = found.dataset, str(storage.of_gdal(found.dataset.name))
    if found.palette and not band.categorical:
        raise Refused(f"{path}: is a palette image: expand it to colours first (gdal_translate -expand rgb)")
    warped = not same_grid(grid_of(dataset), grid)
    mask = None if trusted else _mask_of(dataset)
    if warped:
        _check_warp(found, grid, mask)
    nodata = found.nodata if found.nodata is not None else band.nodata
    if nodata is not None and not _representable(nodata, np.dtype(found.dtype)):
        nodata = None  # no pixel can hold it
    return SceneBand(
        name=band.name, path=path, index=found.index, dtype="float32" if warped else found.dtype, nodata=nodata,
        scale=float(found.scale), offset=float(found.offset), masked=found.masked and not warped, warped=warped,
        categorical=band.categorical, mask=str(mask) if mask else None,
    )  # fmt: skip


def _mask_of(dataset: DatasetReader) -> Place | None:
    """The mask file beside a raster, checked; None where there is none."""
    mask = mask_beside(storage.of_gdal(dataset.name))
    if mask is None or dataset.mask_flag_enums[0] == [MaskFlags.per_dataset]:  # one inside comes first
        return None
    with open_raster(mask) as content:
        if content.shape != dataset.shape or content.dtypes[0] != "uint8":
            raise Refused(f"{mask}: is no mask of {dataset.name}: remove it, or make one of its size")
        return mask if masks_all_bands(content) else None


def _check_clouds(clouds: CloudMask, grid: Grid, trusted: bool) -> None:
    """Refuse a mask of clouds that cannot be laid over the scene."""
    with open_raster(storage.place_of(clouds.path), trusted) as dataset:
        if dataset.count != 1 or dataset.dtypes[0].startswith("complex"):
            raise Refused(f"{clouds.path}: is no mask of clouds: it must have one band of classes")
        its = grid_of(dataset)
        if not same_grid(its, grid) and (its.crs is None or grid.crs is None):
            raise Refused(f"{clouds.path}: lies on another grid than the scene and one of them has no CRS: assign it (gdal_edit.py -a_srs)")


def _check_warp(found: Found, grid: Grid, mask: Place | None) -> None:
    """Refuse a file on another grid that cannot be taken to the scene's."""
    path, crs = storage.of_gdal(found.dataset.name), grid_of(found.dataset).crs
    if mask is not None:
        raise Refused(f"{path}: lies on another grid than the scene's first band, with {mask.name} beside it: put it inside (rio warp)")
    if found.nodata is None and has_holes(found.dataset, found.index):
        raise Refused(
            f"{path}: lies on another grid than the scene's first band and has blocks that were never written:"
            " say what they hold (gdal_edit.py -a_nodata 0)"
        )
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


def grid_of(dataset: DatasetReader) -> Grid:
    """Size, place and CRS of an open file."""
    placed = dataset.crs if dataset.crs else None
    a, b, c, d, e, f = tuple(transform_of(dataset))[:6]
    return Grid(dataset.height, dataset.width, (a, b, c, d, e, f), placed.to_wkt() if placed else None)


def same_grid(one: Grid, other: Grid) -> bool:
    """Whether two rasters share their pixels: the same size and CRS, corners within a thousandth of a pixel."""
    if (one.height, one.width) != (other.height, other.width) or one.rasterio_crs != other.rasterio_crs:
        return False
    corners = ((0, 0), (one.width, 0), (0, one.height))
    shifts = [np.subtract(~other.affine * (one.affine * corner), corner) for corner in corners]
    return bool(np.abs(shifts).max() < SAME_GRID_PX)


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
    except (CRSError, RasterioError, ArithmeticError, ValueError):  # of units and places that are no numbers
        return None
    return None


def _tiff_datetime(tag: str | None) -> str | None:
    """TIFF's "YYYY:MM:DD HH:MM:SS" as ISO 8601, taken as UTC; None for anything else."""
    try:
        return f"{datetime.strptime(tag or '', '%Y:%m:%d %H:%M:%S').isoformat()}Z"
    except ValueError:
        return None
