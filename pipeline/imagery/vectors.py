"""Read vector files of strangers: what would read another file or ask a server is refused before GDAL opens it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pipeline.errors import Refused
from pipeline.imagery import storage
from pipeline.imagery.storage import Place, Remote

if TYPE_CHECKING:
    import geopandas  # a second to import, which only those who have polygons should wait

LOOKED_AT = 2**20  # bytes: GDAL knows a format by its first few thousand
FOLLOWING = (b"<OGRVRT", b"gdal_streamed_alg", b"<OGRWFS", b"<VRTDataset", b"<GDAL_WMS", b"<WMT_MS_Capabilities")
MOST_MEMBERS = 1000  # of a zip


def read_vectors(path: Place) -> geopandas.GeoDataFrame:
    """The features of a vector file that GDAL reads, or of a GeoParquet. Raises Refused in one line."""
    if isinstance(path, Remote) and path.suffix.lower() == ".shp":
        raise Refused(f"{path}: a shapefile is several files: make it a GeoPackage or GeoParquet, or copy it to a local path")
    try:
        import geopandas
        import pyogrio

        pyogrio.set_gdal_config_options({"GML_DOWNLOAD_SCHEMA": "NO"})
        read = geopandas.read_parquet if path.suffix.lower() in (".parquet", ".geoparquet") else geopandas.read_file
        with storage.here(path) as file:
            if file.is_file() and _follows(file):
                raise Refused(f"{path}: names other files or servers, which are not followed: convert it (ogr2ogr a.gpkg)")
            return read(file)
    except Refused:
        raise
    except Exception as error:  # of pyogrio, pyarrow and GDAL, which share no base
        raise Refused(f"{path}: cannot be read as a vector file ({storage.told(error)[:160]})") from None


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
