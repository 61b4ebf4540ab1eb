"""World files and mask files: what GDAL reads when it may look beside a raster is the oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from pipeline.errors import Refused
from pipeline.imagery.bands import Band
from pipeline.imagery.beside import world_file
from pipeline.imagery.catalogue import Asset, BandEntry, Source
from pipeline.imagery.raster import Scene, open_scene
from pipeline.imagery.reader import SceneReader
from tests.toys import UTM, smooth_noise, write_scene

PLACED = Affine(2.5, 0.25, 301905.0, 0.5, -2.0, 4154085.0)


def opened(path: Path) -> Scene:
    return open_scene(Source(str(path), path.stem, None, (Asset(path),)), [Band("x")])


def world(transform: Affine) -> str:
    centre = transform * (0.5, 0.5)
    return "\n".join(map(repr, (transform.a, transform.d, transform.b, transform.e, *centre)))


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("a.png", "a.pgw"), ("a.png", "a.pngw"), ("a.png", "a.wld"), ("a.jpg", "a.jgw"), ("a.jpeg", "a.jgw"), ("a.tif", "a.tfw"),
        ("a.TIF", "a.TFW"),
    ],
)  # fmt: skip
def test_a_world_file_places_what_has_no_place_of_its_own(tmp_path: Path, name: str, beside: str):
    driver = {"p": "PNG", "j": "JPEG", "t": "GTiff"}[name[2].lower()]
    path = write_scene(tmp_path / name, smooth_noise(1, (1, 40, 50)), driver=driver, crs=None, transform=None)
    (tmp_path / beside).write_text(world(PLACED))
    with rasterio.open(path) as dataset:
        assert dataset.transform.almost_equals(PLACED, 1e-9), "GDAL reads it so"
    before = opened(path)
    assert before.grid.affine.almost_equals(PLACED, 1e-9)
    (tmp_path / beside).write_text(world(PLACED) + "\n")
    assert opened(path).version != before.version


def test_a_world_file_never_outvotes_the_raster(tmp_path: Path):
    path = write_scene(tmp_path / "a.tif", smooth_noise(1, (1, 40, 50)))
    (tmp_path / "a.tfw").write_text(world(PLACED))
    assert opened(path).grid.affine == UTM["transform"]


@pytest.mark.parametrize("text", ["", "1 2 3", "1 0 0 -1 0 nan", "0 0 0 0 0 0", "\xff" * 20, "1\n" * 4096])
def test_what_is_no_world_file_is_passed_over(tmp_path: Path, text: str):
    path = write_scene(tmp_path / "a.png", smooth_noise(1, (1, 40, 50)), driver="PNG", crs=None, transform=Affine.identity())
    (tmp_path / "a.pgw").write_text(text, encoding="latin1")
    assert world_file(path) is not None and opened(path).grid.affine.is_identity


def test_a_file_that_a_world_file_places_is_warped_from_there(tmp_path: Path):
    """Its CRS is inside, its place beside it."""
    values_CHW = np.repeat(np.repeat(smooth_noise(1, (1, 20, 25)), 2, 1), 2, 2)
    first = write_scene(tmp_path / "first.tif", values_CHW)
    placed, unplaced = UTM["transform"] * Affine.scale(2), {"transform": Affine.identity()}
    second = write_scene(tmp_path / "second.tif", values_CHW[:, ::2, ::2], **unplaced)
    (tmp_path / "second.tfw").write_text(world(placed))
    assets = tuple(Asset(path, (BandEntry((name,)),)) for name, path in (("a", first), ("b", second)))
    scene = open_scene(Source("s", "s", None, assets), [Band("a"), Band("b", categorical=True)])
    with SceneReader(scene) as reader:
        read = reader.read(scene.grid.window)
    assert scene.bands[1].warped and np.array_equal(read.values_CHW[0], read.values_CHW[1])


def masked(path: Path, mask_HW: np.ndarray, values_CHW: np.ndarray) -> Path:
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(write_scene(path, values_CHW), "r+") as dataset:
        dataset.write_mask(mask_HW)
    return path


def test_a_mask_file_says_what_is_valid(tmp_path: Path):
    mask_HW = smooth_noise(2, (1, 90, 70))[0] // 128 * 255
    path = masked(tmp_path / "a.tif", mask_HW, smooth_noise(1, (1, 90, 70)))
    assert path.with_name("a.tif.msk").exists()
    with rasterio.open(path) as dataset:
        expected_HW = dataset.read_masks(1) > 0
    scene = opened(path)
    with SceneReader(scene) as reader:
        whole, part = reader.read(scene.grid.window), reader.read(scene.grid.window._replace(row=11, col=3, height=40, width=60))
    assert np.array_equal(whole.valid_CHW[0], expected_HW) and np.array_equal(part.valid_CHW[0], expected_HW[11:51, 3:63])


def test_a_mask_file_that_is_none(tmp_path: Path):
    path = masked(tmp_path / "a.tif", np.full((90, 70), 255, np.uint8), smooth_noise(1, (1, 90, 70)))
    beside = path.with_name("a.tif.msk")
    secret = write_scene(tmp_path / "elsewhere" / "secret.tif", np.zeros((1, 90, 70), np.uint8))
    source = f"<SimpleSource><SourceFilename>{secret}</SourceFilename></SimpleSource>"
    band = f'<VRTRasterBand dataType="Byte" band="1">{source}</VRTRasterBand>'
    beside.write_text(f'<VRTDataset rasterXSize="70" rasterYSize="90">{band}</VRTDataset>')
    with pytest.raises(Refused, match=r"a\.tif\.msk: cannot be opened as a raster: it is a VRT"):
        opened(path)
    write_scene(beside, smooth_noise(1, (1, 30, 30)))
    with pytest.raises(Refused, match=r"a\.tif\.msk: is no mask of .*a\.tif: remove it"):
        opened(path)
    write_scene(beside, np.zeros((1, 90, 70), np.uint8))  # without the flag that GDAL's masks have
    with SceneReader(opened(path)) as reader:
        assert reader.read(opened(path).grid.window).valid_CHW is None
