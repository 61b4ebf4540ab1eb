"""Which files are opened as rasters: formats that hold their own pixels and follow nothing, of a size that can be read.

GDAL opens by content, not by name: a .tif may be a VRT that reads any other file, or asks any server. So a file that is
not trusted is opened by the drivers of `PLAIN` alone, sees nothing of what lies beside it, and is refused where it names
another file. What people keep beside their rasters on purpose is read in `pipeline/imagery/beside`.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import CRSError, RasterioError
from rasterio.io import DatasetReader
from rasterio.session import DummySession

from pipeline.errors import Refused
from pipeline.imagery import storage
from pipeline.imagery.damage import nothing_unsaid
from pipeline.imagery.storage import Place, Remote

# Left out: what names other files or servers (VRT, WMS, STACIT, GTI, MRF, DIMAP, SAFE, ERS, PCIDSK, ISIS3, PDS, ...), HDF5 and netCDF
# (external storage), databases, and AAIGrid: 3 MB of it, cut short, took minutes.
ALLOW_VRT = "trust these files: open VRT and every other format, follow what they name, read .aux.xml beside them"  # of --allow-vrt
PLAIN = ["GTiff", "JP2OpenJPEG", "JP2KAK", "PNG", "JPEG", "WEBP", "GIF", "BMP", "PNM", "HFA", "NITF", "DTED", "SRTMHGT", "USGSDEM"]
RAW = ["ENVI", "EHdr"]  # numbers under a header of the same name
OPENED_BESIDE = (".ovr", ".msk", ".aux", ".rrd")  # by GDAL, with any of its drivers, where it may look beside a file
DECODED_WHOLE = ("GIF", "WEBP")  # whatever block size GDAL reports
LARGEST_BLOCK = 2**30  # bytes, decoded: beyond it a look at the scene takes many seconds, and no tile fits beside it
MOST_BANDS = 4096
START_BYTES = 4096
MOST_PIXELS = 10**12
GDAL_ERRORS = (RasterioError, CRSError, CPLE_BaseError, UnicodeDecodeError)  # the third where rasterio forgot to turn it into the first
KNOWN = "GeoTIFF, JPEG 2000, PNG, JPEG, Erdas .img, NITF, ENVI and a few more"
NOT_KNOWN = "not recognized as being in a supported file format"
GRID_FILE = re.compile(r"(?:grids=|PARAMETERFILE\[[^]]*?\",\s*\")(?!@null)[^\s\"]*[/\\:]", re.IGNORECASE)


def careful(*places: Place, trusted: bool = False) -> rasterio.Env:
    """How files are opened and used: without a look at what lies beside them, unless they are `trusted`.

    A store is asked also for what GDAL has put off reading, so nothing is done with an object outside this.
    GDAL 3.10 fills what a truncated PNG lacks with whatever is in memory, and says nothing.
    """
    return rasterio.Env(
        DummySession(), **storage.gdal_options(*places), GDAL_PNG_WHOLE_IMAGE_OPTIM="NO", GDAL_PAM_ENABLED="YES" if trusted else "NO",
        GDAL_DISABLE_READDIR_ON_OPEN="FALSE" if trusted else "EMPTY_DIR",
    )  # fmt: skip


def open_raster(path: Place, trusted: bool = False) -> DatasetReader:
    """Open a file of a person's: every one comes through here, and is used within `careful`.

    Raises Refused, in one line, where it cannot be opened, is too large to read, or follows a path inside it.
    A `trusted` file is opened as GDAL would: with all its drivers, what lies beside it, and what it names.
    """
    if str(path).startswith("/vsi"):
        raise Refused(f"{path}: GDAL's own paths are not read: give a local path or a URI")
    try:
        if isinstance(path, Remote) and not storage.is_file(path):
            raise Refused(f"{path}: no such object")
        dataset = storage.retried(partial(_open, path, trusted), [path], *GDAL_ERRORS)
    except GDAL_ERRORS as error:
        raise _why_not(path, error) from None
    except OSError as error:
        raise Refused(str(error)) from None
    try:
        check_size(dataset)
        if not trusted:
            with careful(path):
                check_references(dataset)
    except BaseException:
        dataset.close()
        raise
    return dataset


def _open(path: Place, trusted: bool) -> DatasetReader:
    if trusted:
        return _open_by(path, None, careful(path, trusted=True))
    try:
        return _open_by(path, PLAIN, careful(path))
    except RasterioError as error:
        if isinstance(path, Remote) or NOT_KNOWN not in str(error) or any(file.is_file() for file in _opened_beside(path)):
            raise
        try:
            return _open_by(path, RAW, rasterio.Env(GDAL_PAM_ENABLED="NO", GDAL_DISABLE_READDIR_ON_OPEN="TRUE"))
        except RasterioError:
            raise error from None


def _open_by(path: Place, drivers: list[str] | None, env: rasterio.Env) -> DatasetReader:
    with env:
        if not isinstance(path, Remote):
            return DatasetReader(str(path), driver=drivers)  # rasterio.open takes one driver only
        with ExitStack() as opened, nothing_unsaid():
            dataset = DatasetReader(storage.gdal_name(path), driver=drivers)
            opened.callback(dataset.close)
            dataset.mask_flag_enums  # noqa: B018 - GDAL looks through a TIFF's directories, and keeps what it finds or fails to find
            opened.pop_all()
        return dataset


def _opened_beside(path: Path) -> list[Path]:
    names = {path.name, path.stem}
    return [path.with_name(name + case) for name in names for suffix in OPENED_BESIDE for case in (suffix, suffix.upper())]


def _why_not(path: Place, error: Exception) -> Refused:
    if isinstance(path, Path) and not path.exists():
        return Refused(f"{path}: no such file")
    if NOT_KNOWN in str(error):
        if _is_vrt(path):
            return Refused(f"{path}: cannot be opened as a raster: it is a VRT, which names other files: if you trust it, give --allow-vrt")
        return Refused(f"{path}: cannot be opened as a raster: it is damaged, or none of {KNOWN}: convert it (gdal_translate)")
    return Refused(f"{path}: cannot be opened as a raster ({storage.told(error)[:160]})")


def _is_vrt(path: Place) -> bool:
    try:
        return storage.is_file(path) and b"<VRTDataset" in storage.start_of(path, START_BYTES)
    except OSError:
        return False


def check_references(dataset: DatasetReader) -> None:
    """Raise Refused where a raster names another file or server."""
    path = Path(dataset.name)  # as GDAL calls it, like those of its files
    named = dataset.tags(ns="OVERVIEWS").get("OVERVIEW_FILE")  # of GeoTIFF and JPEG 2000: GDAL opens whatever it says, a URL too
    if named:
        raise Refused(f"{path}: says that its overviews are in {named[:100]}: take that out (gdal_translate), or give --allow-vrt")
    for file in map(Path, dataset.files):
        if file.parent != path.parent or not file.name.startswith(path.stem):
            raise Refused(f"{path}: reads {file}: make one file of it (gdal_translate), or give --allow-vrt")
    crs = _crs_text(dataset)
    if GRID_FILE.search(crs):
        raise Refused(f"{path}: its CRS names a file: assign it another (gdal_edit.py -a_srs)")


def _crs_text(dataset: DatasetReader) -> str:
    try:
        return dataset.crs.to_wkt() if dataset.crs else ""
    except CRSError as error:
        raise Refused(f"{dataset.name}: its CRS cannot be read ({storage.told(error)[:160]})") from None


def check_size(dataset: DatasetReader) -> None:
    """Raise Refused where a raster has more bands or pixels, or larger blocks, than can be read."""
    path, pixels = dataset.name, dataset.height * dataset.width
    if dataset.count > MOST_BANDS:
        raise Refused(f"{path}: has {dataset.count:,} bands, at most {MOST_BANDS:,} are read: take out those you need (gdal_translate -b)")
    if pixels > MOST_PIXELS:
        raise Refused(f"{path}: is {dataset.height:,} x {dataset.width:,} px, at most {MOST_PIXELS:,} are read: cut it (gdal_translate)")
    together = dataset.count if dataset.interleaving and dataset.interleaving.name == "pixel" else 1
    for (height, width), dtype in zip(block_shapes(dataset), dataset.dtypes, strict=True):
        size = height * width * together * np.dtype("int16" if dtype == "complex_int16" else dtype).itemsize
        if size > LARGEST_BLOCK:
            raise Refused(
                f"{path}: its blocks of {height:,} x {width:,} px take {size / 2**30:,.1f} GiB of memory each,"
                f" at most {LARGEST_BLOCK / 2**30:.0f} are read: make it a COG first (rio cogeo create)"
            )


def block_shapes(dataset: DatasetReader) -> list[tuple[int, int]]:
    """What is decoded at once for each band, height and width in px."""
    whole = dataset.driver in DECODED_WHOLE
    return [dataset.shape if whole else shape for shape in dataset.block_shapes]
