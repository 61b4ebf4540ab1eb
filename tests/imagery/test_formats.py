"""Files of strangers: nothing but the named file is opened, and nothing that is too large to read."""

from __future__ import annotations

import os
import select
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.shutil import copy

from pipeline.errors import Refused, Unreadable
from pipeline.imagery.bands import Band
from pipeline.imagery.catalogue import Asset, Source, find_sources
from pipeline.imagery.formats import check_references, open_raster
from pipeline.imagery.raster import open_scene
from pipeline.imagery.reader import SceneReader
from tests.toys import smooth_noise, write_scene

VRT = """<VRTDataset rasterXSize="60" rasterYSize="50"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>
<SourceFilename>{}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"""


SUFFIX = {"PNM": "ppm"}


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    return write_scene(tmp_path / "elsewhere" / "secret.tif", smooth_noise(1, (1, 50, 60)))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A port that takes connections and never answers: whether somebody came is all it tells."""
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def was_asked(server: socket.socket) -> bool:
    return bool(select.select([server], [], [], 0)[0])


def url(server: socket.socket) -> str:
    return f"/vsicurl/http://127.0.0.1:{server.getsockname()[1]}/secret.tif"


def source(path: Path, trusted: bool = False) -> Source:
    return Source(str(path), path.stem, None, (Asset(path),), trusted=trusted)


def test_a_virtual_raster_under_any_name_is_followed_only_when_allowed(tmp_path: Path, secret: Path, server: socket.socket):
    for name, place in (("local.tif", str(secret)), ("remote.tif", url(server)), ("plain.vrt", str(secret))):
        path = tmp_path / name
        path.write_text(VRT.format(place))
        with pytest.raises(Refused, match="which names other files: if you trust it, give --allow-vrt"):
            open_scene(source(path), [Band("x")])
    assert not was_asked(server)
    scene = open_scene(source(tmp_path / "local.tif", trusted=True), [Band("x")])
    with SceneReader(scene) as reader, rasterio.open(secret) as dataset:
        assert np.array_equal(reader.read(scene.grid.window).values_CHW, dataset.read())
    with SceneReader(open_scene(source(tmp_path / "remote.tif", trusted=True), [Band("x")])) as reader, pytest.raises(Unreadable):
        reader.read(scene.grid.window)
    assert was_asked(server), "or this test would not notice a request"


@pytest.mark.parametrize("kind", ["GTiff", "JP2OpenJPEG"])
def test_overviews_that_are_said_to_be_elsewhere_are_not_opened(tmp_path: Path, server: socket.socket, kind: str):
    path = made = tmp_path / "scene.tif"
    with rasterio.open(made, "w", driver="GTiff", dtype="uint8", count=1, height=400, width=400) as dataset:
        dataset.write(smooth_noise(1, (1, 400, 400)))
        dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=url(server))
    if kind == "JP2OpenJPEG":
        path = tmp_path / "scene.jp2"
        copy(made, path, driver=kind, WRITE_METADATA="YES")
    with pytest.raises(Refused, match="says that its overviews are in /vsicurl"):
        open_raster(path)
    assert not was_asked(server)
    if kind == "GTiff":
        with open_raster(path, trusted=True) as dataset:
            dataset.overviews(1)
        assert was_asked(server), "or this test would not notice a request"


def test_a_scene_of_parts_elsewhere(tmp_path: Path, secret: Path):
    class Parted:
        """What GDAL says of an .img whose pixels are in another file."""

        name, files, crs = str(tmp_path / "a.img"), [str(tmp_path / "a.img"), str(secret)], None

        def tags(self, ns: str) -> dict[str, str]:
            return {}

    with pytest.raises(Refused, match=r"reads .*secret\.tif: make one file of it"):
        check_references(Parted())


def test_a_crs_that_names_a_file(tmp_path: Path):
    """PROJ opens the grid of a datum shift wherever it is said to be."""
    for grids, refused in (("/etc/passwd", True), ("http://127.0.0.1/x.gsb", True), ("@null", False), ("us_noaa_conus.tif", False)):
        crs = CRS.from_proj4(f"+proj=longlat +ellps=clrk66 +nadgrids={grids} +no_defs")
        path = write_scene(tmp_path / "a.tif", smooth_noise(1, (1, 20, 20)), crs=crs)
        with rasterio.open(path) as dataset:
            carried = "grids" in dataset.crs.to_wkt() or "PARAMETERFILE" in dataset.crs.to_wkt()
        if refused and carried:
            with pytest.raises(Refused, match="its CRS names a file"):
                open_raster(path)
        else:
            open_raster(path).close()
    assert carried, "or nothing was tested"


def test_gdals_own_paths_are_not_read(tmp_path: Path, server: socket.socket):
    (tmp_path / "item.json").write_text(
        f'{{"type": "Feature", "id": "a", "assets": {{"x": {{"href": "{url(server)}", "roles": ["data"]}}}}}}'
    )
    with pytest.raises(Refused, match=r"virtual file systems are not taken|is not supported"):
        (item,) = find_sources([str(tmp_path / "item.json")])
        open_scene(item, [Band("x")])
    assert not was_asked(server)


def test_settings_beside_a_file_do_not_change_it(tmp_path: Path):
    path = write_scene(tmp_path / "a.tif", smooth_noise(1, (1, 50, 60)))
    before = open_scene(source(path), [Band("x")])
    path.with_name("a.tif.aux.xml").write_text(
        "<PAMDataset><SRS>EPSG:3857</SRS><GeoTransform>0,1,0,0,0,-1</GeoTransform>"
        '<PAMRasterBand band="1"><NoDataValue>7</NoDataValue></PAMRasterBand></PAMDataset>'
    )
    after = open_scene(source(path), [Band("x")])
    assert (after.grid, after.bands, after.version) == (before.grid, before.bands, before.version)
    assert any("a.tif.aux.xml beside it is not read" in note for note in after.notes)
    trusted = open_scene(source(path, trusted=True), [Band("x")])
    assert trusted.grid != before.grid and trusted.bands[0].nodata == 7


def test_raw_data_is_read_under_its_header_but_not_with_what_gdal_would_open_beside_it(tmp_path: Path):
    values_CHW = smooth_noise(1, (3, 50, 60))
    path = write_scene(tmp_path / "cube.dat", values_CHW, driver="ENVI")
    path.with_name("cube.dat.aux.xml").unlink(missing_ok=True)
    with open_raster(path) as dataset:
        assert np.array_equal(dataset.read(), values_CHW)
    for beside in ("cube.dat.ovr", "cube.dat.msk", "cube.aux"):
        (tmp_path / beside).write_text(VRT.format("/etc/passwd"))
        with pytest.raises(Refused, match="cannot be opened as a raster"):
            open_raster(path)
        (tmp_path / beside).unlink()


@pytest.mark.parametrize(
    ("side", "block", "count", "message"),
    [
        (2_000_000, 65536, 1, r"2,000,000 x 2,000,000 px, at most 1,000,000,000,000 are read"),
        (200_000, 65536, 1, r"blocks of 65,536 x 65,536 px take 4.0 GiB of memory each, .*make it a COG first \(rio cogeo create\)"),
        (20_000, 16384, 5, r"blocks of 16,384 x 16,384 px take 1.2 GiB of memory each"),
        (16, 16, 5000, r"has 5,000 bands, at most 4,096 are read"),
    ],
)
def test_what_is_too_large_is_refused_before_it_is_read(tmp_path: Path, side: int, block: int, count: int, message: str):
    path = tmp_path / "bomb.tif"
    profile = {"tiled": True, "blockxsize": block, "blockysize": block, "sparse_ok": True, "bigtiff": "YES", "interleave": "pixel"}
    rasterio.open(path, "w", driver="GTiff", dtype="uint8", height=side, width=side, count=count, **profile).close()
    assert path.stat().st_size < 2**20
    with pytest.raises(Refused, match=message):
        open_raster(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "PNM", "HFA", "JP2OpenJPEG", "NITF", "WEBP", "GIF"])
def test_the_usual_formats_are_read_and_a_file_that_is_cut_short_never_gives_pixels_that_are_not_there(tmp_path: Path, kind: str):
    count = 1 if kind == "GIF" else 3
    made, path = write_scene(tmp_path / "made.tif", smooth_noise(1, (count, 500, 400))), tmp_path / f"scene.{SUFFIX.get(kind, 'x')}"
    copy(made, path, driver=kind)
    path.with_name(f"{path.name}.aux.xml").unlink(missing_ok=True)
    with open_raster(path) as dataset:
        whole_CHW = dataset.read()
    os.truncate(path, path.stat().st_size * 6 // 10)
    try:
        scene = open_scene(source(path), [Band(f"x{number}") for number in range(count)])
        reader = SceneReader(scene)
    except Refused as refused:
        assert "\n" not in str(refused)
        return
    failed = 0
    with reader:
        for row in (*range(0, 500, 50), *range(450, -50, -50)):
            try:
                values_CHW = reader.read(scene.grid.window._replace(row=row, height=50)).values_CHW
                assert np.array_equal(values_CHW, whole_CHW[:, row : row + 50]), f"rows from {row}"
            except Exception as error:
                if type(error).__name__ != "Unreadable":
                    raise
                failed += 1
    assert failed >= 4


def test_a_good_file_stays_as_it_is(tmp_path: Path):
    """Nothing is written beside what is read."""
    path = write_scene(tmp_path / "in" / "a.tif", smooth_noise(1, (1, 50, 60)))
    shutil.copy(path, tmp_path / "in" / "b.tif")
    with open_raster(path) as dataset:
        dataset.read()
        dataset.tags()
    assert sorted(file.name for file in (tmp_path / "in").iterdir()) == ["a.tif", "b.tif"]
