"""Read vector files of strangers: what would read another file or ask a server is refused before GDAL opens it."""

from __future__ import annotations

import json
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq

from pipeline.errors import Refused
from pipeline.imagery import storage
from pipeline.imagery.storage import Place, Remote

if TYPE_CHECKING:
    import geopandas  # a second to import, which only those who have polygons should wait

LOOKED_AT = 2**20  # bytes: GDAL knows a format by its first few thousand
FOLLOWING = (b"<OGRVRT", b"gdal_streamed_alg", b"<OGRWFS", b"<VRTDataset", b"<GDAL_WMS", b"<WMT_MS_Capabilities")
MOST_MEMBERS = 1000  # of a zip
LARGEST_UNPACKED = 16 * 2**30  # bytes
PARQUET = (".parquet", ".geoparquet")
DATASETS = (".gpkg", ".shp", ".gdb", ".gml", ".geojson", ".json", ".fgb", *PARQUET)  # what is looked for in a zip
SURFACES = ("Polygon", "Surface", "Unknown", "Collection")  # in the geometry type of a layer that may hold polygons


def read_vectors(path: Place) -> geopandas.GeoDataFrame:
    """The features of a vector file that GDAL reads, or of a GeoParquet. Raises Refused in one line."""
    with _safe(path) as file:
        import geopandas

        read = geopandas.read_parquet if path.suffix.lower() in PARQUET else geopandas.read_file
        return read(file)


def read_polygon_layer(
    path: Place, choose: Callable[[Sequence[str], str], str], column: str | None = None
) -> tuple[np.ndarray, geopandas.GeoSeries]:  # fmt: skip
    """One column, and the geometries, of the only layer with polygons (and with `column`, where there are several).

    `choose` is given the names of the columns and of the layer's own feature ids (FID), and names one. FIDs are GDAL's, or the
    number of the row, from 0, in a GeoParquet. In a zip the data may lie in a folder. Raises Refused, naming the layers, where
    several could be meant or none.
    """
    with _safe(path) as file, tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        held = _unpacked(path, file, Path(folder)) if zipfile.is_zipfile(file) else file
        if held.suffix.lower() in PARQUET:
            return _read_parquet(held, choose)
        return _read_layer(path, str(held), choose, column)


def _read_parquet(file: Path, choose: Callable[[Sequence[str], str], str]) -> tuple[np.ndarray, geopandas.GeoSeries]:
    import geopandas

    with pq.ParquetFile(file, pre_buffer=False) as table:
        geometry = json.loads((table.schema_arrow.metadata or {}).get(b"geo", b"{}")).get("primary_column", "geometry")
        names = [name for name in table.schema_arrow.names if name != geometry]
    chosen = choose(names, "")
    features = geopandas.read_parquet(file, columns=[*({chosen} & {*names}), geometry])
    return (features[chosen] if chosen in names else np.arange(len(features))), features.geometry


def _read_layer(
    path: Place, name: str, choose: Callable[[Sequence[str], str], str], column: str | None
) -> tuple[np.ndarray, geopandas.GeoSeries]:  # fmt: skip
    import pyogrio

    layer = _polygon_layer(path, name, column)
    about = pyogrio.read_info(name, layer=layer)
    chosen = choose(list(about["fields"]), about["fid_column"])
    features = pyogrio.read_dataframe(name, layer=layer, columns=[chosen], fid_as_index=True)
    return (features[chosen] if chosen in features.columns else features.index.to_numpy()), features.geometry


@contextmanager
def _safe(path: Place) -> Iterator[Path]:
    """A local copy of a vector file that names no others; what is raised while it is read becomes Refused."""
    if isinstance(path, Remote) and path.suffix.lower() == ".shp":
        raise Refused(f"{path}: a shapefile is several files: make it a GeoPackage or GeoParquet, or copy it to a local path")
    try:
        import pyogrio

        pyogrio.set_gdal_config_options({"GML_DOWNLOAD_SCHEMA": "NO"})
        with storage.here(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of columns that have one name, and are not asked for
            if file.is_file() and _follows(file):
                raise Refused(f"{path}: names other files or servers, which are not followed: convert it (ogr2ogr a.gpkg)")
            yield file
    except Refused:
        raise
    except Exception as error:  # of pyogrio, pyarrow and GDAL, which share no base
        raise Refused(f"{path}: cannot be read as a vector file ({storage.told(error)[:160]})") from None


def _unpacked(path: Place, file: Path, folder: Path) -> Path:
    """The one data set in a zip, with the files of its name, unpacked: GDAL seeks in them, for which a zip has no index."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        folders = {str(parent) for name in names for parent in PurePosixPath(name).parents if parent.suffix.lower() == ".gdb"}
        inside = {name for name in names if any(name.startswith(f"{folder}/") for folder in folders)}
        found = sorted(folders | {name for name in names if name.lower().endswith(DATASETS) and not name.startswith("__MACOSX")} - inside)
        if len(found) != 1:
            held = f"{len(found)} files with features ({', '.join(found[:5])})" if found else "no file with features"
            raise Refused(f"{path}: holds {held}: give a zip with one, or the file itself")
        start = f"{found[0]}/" if found[0] in folders else f"{PurePosixPath(found[0]).with_suffix('')}."
        members = [member for member in archive.infolist() if member.filename.startswith(start)]
        if sum(member.file_size for member in members) > LARGEST_UNPACKED:
            raise Refused(f"{path}: {found[0]} in it is larger than {LARGEST_UNPACKED / 2**30:.0f} GiB: unpack it yourself")
        archive.extractall(folder, members)
    return folder / found[0]


def _polygon_layer(path: Place, name: str, column: str | None) -> str:
    import pyogrio

    held = [str(layer) for layer, kind in pyogrio.list_layers(name) if kind is not None and any(word in kind for word in SURFACES)]
    about = {layer: pyogrio.read_info(name, layer=layer, force_feature_count=True) for layer in held}
    found = [layer for layer in held if about[layer]["features"]]
    if not found:
        raise Refused(f"{path}: holds no polygons")
    if column is not None and len(found) > 1:
        found = [layer for layer in found if column in (*about[layer]["fields"], about[layer]["fid_column"])] or found
    if len(found) > 1:
        raise Refused(f"{path}: holds several layers with polygons ({', '.join(found)[:200]}): take one out (ogr2ogr one.gpkg FILE LAYER)")
    return found[0]


def _follows(path: Path) -> bool:
    """Whether the file, or one in it if it is a zip, is of a format that is made of references."""
    with path.open("rb") as file:
        if _names_others(file):
            return True
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > MOST_MEMBERS:
            raise Refused(f"{path}: holds {len(members)} files: give the one with the polygons")
        for member in members:
            with archive.open(member) as inside:
                if _names_others(inside):
                    return True
    return False


def _names_others(file: IO[bytes]) -> bool:
    start = file.read(LOOKED_AT)
    return any(mark in start for mark in FOLLOWING)
