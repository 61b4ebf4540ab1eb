"""Law: what is joined from parts is what GDAL's COG driver makes of the whole raster, and nothing wrong in a part gets through."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.transform import Affine
from rio_cogeo import cog_validate

from pipeline.errors import Unreadable
from pipeline.geometry.pyramid import NODATA, average, level_sizes, mean, mode, nodata_of
from pipeline.geometry.windows import Window
from pipeline.imagery.raster import Grid
from pipeline.inference import cog
from pipeline.inference.cog import Description, write_cog
from pipeline.inference.part import read_part
from pipeline.models.layers import LAYERS
from tests.inference.test_part import layers_of, plan_of_parts, reduced, values_of, write_part
from tests.toys import UTM, write_scene

COLOURS = {0: (0, 100, 0), 3: (200, 200, 10), 4: (255, 0, 0)}
WKT = rasterio.crs.CRS.from_epsg(32612).to_wkt()
TAGS = {"CLASSES": json.dumps([{"id": 0, "name": "<forest & friends> ü"}]), "INPUT_ID": "abc", "SCENE": "/a b.tif"}
SAVED = ("mask", "confidence", "probabilities")  # 1 + 1 + 5 bands

Parts = list[tuple[Window, Path]]


def grid_of(region: Window) -> Grid:
    return Grid(region.rows.stop, region.cols.stop, tuple(UTM["transform"])[:6], WKT)


def write_parts(folder: Path, layers_LHW: np.ndarray, region: Window, shard: int, strip: int = 512, **cut: int) -> Parts:
    """The layers over `region` as parts of `shard` px, or as `plan_of_parts` cuts them."""
    alone = ("value",) if layers_LHW.dtype == np.float32 else ("mask",)
    plan = plan_of_parts(region, shard, SAVED if len(layers_LHW) > 1 else alone, **cut)
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for window in plan.shards():
        rows, cols = window.relative_to(region).slices()
        parts.append((window, folder / f"{plan.shard_name(window)}.part"))
        write_part(parts[-1][1], window, plan, layers_LHW[:, rows, cols], strip)
    return parts


def join(parts: Parts, target: Path, region: Window, layers: Sequence[int] = (0,), grid: Grid | None = None, colours: bool = False) -> Path:
    mask = list(layers) == [0]
    about = Description(TAGS, ["class"] if mask else [f"layer {layer}" for layer in layers], colours=COLOURS if colours else None)
    kind = LAYERS["mask" if mask else "probabilities"]
    write_cog(parts, layers, target, kind=kind, region=region, grid=grid or grid_of(region), about=about)
    return target


def gdal_cog(
    bands_LHW: np.ndarray,
    target: Path,
    names: Sequence[str],
    resampling: str,
    colours: dict | None = None,
    unit: str = "",
    **place: object,
) -> Path:
    """The reference: the whole raster through GDAL's COG driver."""
    source = target.with_suffix(".source.tif")
    colour_type = "PALETTE" if colours else "MINISBLACK"
    write_scene(source, bands_LHW, nodata=nodata_of(bands_LHW.dtype), descriptions=names, photometric=colour_type, **place)
    with rasterio.open(source, "r+") as dataset:
        dataset.update_tags(**TAGS)
        if colours:
            dataset.write_colormap(1, colours)
        if unit:
            dataset.set_band_unit(1, unit)
    rasterio.shutil.copy(
        source,
        target,
        driver="COG",
        blocksize=512,
        compress="DEFLATE",
        overview_resampling=resampling,
        overviews="IGNORE_EXISTING",
        predictor="YES" if unit else "NO",
    )
    return target


def levels_of(path: Path) -> list[np.ndarray]:
    """Full resolution and every overview, as an independent reader gives them (bands x height x width)."""
    with rasterio.open(path) as dataset:
        levels, count = [dataset.read()], len(dataset.overviews(1))
    for level in range(count):
        with rasterio.open(path, overview_level=level) as dataset:
            levels.append(dataset.read())
    return levels


def about(path: Path) -> dict[str, object]:
    """What a reader is told of a raster, beside its pixels."""
    with rasterio.open(path) as dataset:
        tags = {name: value for name, value in dataset.tags().items() if name != "OVR_RESAMPLING_ALG"}
        colours = dataset.colormap(1) if dataset.colorinterp[0].name == "palette" else None
        return {
            "size": dataset.shape, "dtypes": dataset.dtypes, "nodata": str(dataset.nodatavals), "crs": dataset.crs, "tags": tags,
            "units": dataset.units,
            "transform": dataset.transform, "names": dataset.descriptions, "blocks": dataset.block_shapes, "colours": colours,
            "levels": len(dataset.overviews(1)), "meaning": dataset.colorinterp, "compression": dataset.compression,
        }  # fmt: skip


def strict_errors(path: Path, widths: Sequence[int]) -> list[str]:
    """What rio-cogeo finds. A level that is just one block wide it takes for strips, in files of GDAL's driver too."""
    _, errors, warnings = cog_validate(path, strict=True, quiet=True)
    taken = ["The file is greater than 512xH or 512xW, but is not tiled"] + [
        f"Overview of index {level} is not tiled" for level in range(9)
    ]
    wrong = {message for message, width in zip(taken, widths, strict=False) if width == 512}
    return [message for message in errors + warnings if message not in wrong]


def assert_same(joined: Path, reference: Path, reduce: Callable[[np.ndarray], np.ndarray]) -> None:
    """Everything is equal; below an odd size, where GDAL stretches its cells, overviews are those of plain numpy."""
    assert about(joined) == about(reference)
    found, expected = levels_of(joined), levels_of(reference)
    assert [level.shape[1:] for level in found] == level_sizes(*found[0].shape[1:])
    assert strict_errors(joined, [level.shape[2] for level in found]) == []
    np.testing.assert_array_equal(found[0], expected[0])
    for level in range(1, len(found)):
        np.testing.assert_array_equal(found[level], np.stack([reduced(band_HW, reduce) for band_HW in found[level - 1]]))
        if all(side % 2**level == 0 for side in found[0].shape[1:]):
            np.testing.assert_array_equal(found[level], expected[level])


CASES = [  # height, width, shard, row, col, shards that are missing
    (1, 1, 512, 0, 0, []),
    (512, 512, 512, 0, 0, []),
    (1, 1025, 512, 0, 0, [1]),
    (513, 511, 1024, 512, 512, []),
    (700, 1100, 512, 0, 0, [0]),
    (2048, 2048, 2048, 2048, 0, []),  # one part makes every level
    (2048, 1024, 512, 0, 0, [0, 2]),  # parts make one level
    (2560, 3072, 1024, 512, 1024, [3]),  # shards lie off the region's own blocks of 1024 px
    (1536, 2048, 1024, 1536, 512, []),
    (4096, 3072, 1024, 1024, 2048, [0]),
    (3001, 1030, 2048, 0, 2048, []),
    (1024, 1536, 512, 0, 0, [0, 1, 2, 3, 4, 5]),  # nothing at all
]


@pytest.mark.parametrize(("height", "width", "shard", "row", "col", "missing"), CASES)
def test_joined_equals_gdals_cog_driver(tmp_path: Path, height: int, width: int, shard: int, row: int, col: int, missing: list[int]):
    region = Window(row, col, height, width)
    layers_LHW = layers_of(region, 7)
    parts = write_parts(tmp_path, layers_LHW, region, shard)
    for index in missing:
        layers_LHW[:, *parts[index][0].relative_to(region).slices()] = NODATA
    parts = [part for index, part in enumerate(parts) if index not in missing]
    place = {"transform": UTM["transform"] * Affine.translation(col, row)}

    joined = join(parts, tmp_path / "mask.tif", region, colours=True)
    reference = gdal_cog(layers_LHW[:1], tmp_path / "reference.tif", ["class"], "MODE", COLOURS, **place)
    assert_same(joined, reference, mode)
    for layers in ([1], [2, 3, 4, 5, 6]):
        names = [f"layer {layer}" for layer in layers]
        joined = join(parts, tmp_path / f"{layers[0]}.tif", region, layers)
        reference = gdal_cog(layers_LHW[layers], tmp_path / f"{layers[0]}.reference.tif", names, "AVERAGE", **place)
        assert_same(joined, reference, average)
    left = {path.name for path in tmp_path.iterdir() if path.suffix != ".part" and "reference" not in path.name}
    assert left == {"mask.tif", "1.tif", "2.tif"}, "no temporary file is left"


@pytest.mark.parametrize(("height", "width", "shard", "row", "col", "missing"), [*CASES[:5], CASES[6], CASES[8], CASES[11]])
def test_joined_values_equal_gdals_cog_driver(tmp_path: Path, height, width, shard, row, col, missing):
    region = Window(row, col, height, width)
    values_LHW = values_of(region)
    parts = write_parts(tmp_path, values_LHW, region, shard)
    for index in missing:
        values_LHW[:, *parts[index][0].relative_to(region).slices()] = np.nan
    parts = [part for index, part in enumerate(parts) if index not in missing]
    joined = tmp_path / "value.tif"
    about = Description(TAGS, ["height <&>"], "m")
    write_cog(parts, [0], joined, kind=LAYERS["value"], region=region, grid=grid_of(region), about=about)
    place = {"transform": UTM["transform"] * Affine.translation(col, row)}
    assert_same(joined, gdal_cog(values_LHW, tmp_path / "reference.tif", ["height <&>"], "AVERAGE", unit="m", **place), mean)
    with rasterio.open(joined) as dataset:
        assert dataset.read().tobytes() == values_LHW.tobytes()
        assert dataset.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == "3"


def test_values_become_a_bigtiff_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    region = Window(0, 0, 1100, 1600)
    parts, files = write_parts(tmp_path, values_of(region), region, 512), [tmp_path / "classic.tif", tmp_path / "big.tif"]
    for file, largest in zip(files, (cog.LARGEST_CLASSIC, 1), strict=True):
        monkeypatch.setattr(cog, "LARGEST_CLASSIC", largest)
        write_cog(parts, [0], file, kind=LAYERS["value"], region=region, grid=grid_of(region), about=Description(TAGS, ["v"]))
    assert files[1].read_bytes()[:4] == b"II+\0"
    assert_same(files[1], files[0], mean)


@pytest.mark.parametrize(("fine", "finer"), [(1024, 1), (512, 2), (512, 4)])
def test_parts_of_two_sizes_are_joined(tmp_path: Path, fine: int, finer: int):
    region = Window(0, 0, 3072, 3584)
    layers_LHW = layers_of(region, 1)
    parts = write_parts(tmp_path, layers_LHW, region, 2048, fine=fine, finer=finer)
    assert len({window.height for window, _ in parts}) > 1 or finer == 4
    joined = join(parts, tmp_path / "mask.tif", region, colours=True)
    assert_same(joined, gdal_cog(layers_LHW, tmp_path / "reference.tif", ["class"], "MODE", COLOURS), mode)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1100, 1600)])
def test_above_4_gib_it_is_a_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, height: int, width: int):
    region = Window(0, 0, height, width)
    layers_LHW = layers_of(region, 7)
    parts = write_parts(tmp_path, layers_LHW, region, 512)
    classic = join(parts, tmp_path / "classic.tif", region, colours=True)
    assert classic.read_bytes()[:4] == b"II*\0"
    monkeypatch.setattr(cog, "LARGEST_CLASSIC", classic.stat().st_size)
    assert join(parts, tmp_path / "same.tif", region, colours=True).read_bytes() == classic.read_bytes(), "it just fits"
    monkeypatch.setattr(cog, "LARGEST_CLASSIC", classic.stat().st_size - 1)
    big = join(parts, tmp_path / "big.tif", region, colours=True)
    assert big.read_bytes()[:4] == b"II+\0"
    assert_same(big, classic, mode)
    assert_same(
        join(parts, tmp_path / "bands.tif", region, [2, 3, 4, 5, 6]), join(parts, tmp_path / "again.tif", region, [2, 3, 4, 5, 6]), average
    )


def test_offsets_beyond_4_gib_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With a header for data of 5 GiB, as far as the numbers go: the file itself would be too large for a test."""
    region = Window(0, 0, 1024, 1024)
    pieces = [cog._piece(path, shard, region, [0]) for shard, path in write_parts(tmp_path, layers_of(region, 1), region, 512)]
    placed, end = cog._place(pieces, level_sizes(1024, 1024)[:1], 1, 100)
    far = [where._replace(offsets=where.offsets + 5 * 2**30) for where in placed]
    template = cog._template(region, grid_of(region), Description({}, ["class"]), np.uint8)
    (tmp_path / "far.tif").write_bytes(cog._header(template, level_sizes(1024, 1024)[:1], far, end + 5 * 2**30))
    with rasterio.open(tmp_path / "far.tif") as dataset:
        offset = int(dataset.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
    assert offset == (tmp_path / "far.tif").stat().st_size + int(far[0].offsets[0, 1, 1]) > 5 * 2**30


def test_the_same_pixels_are_the_same_bytes_however_they_came(tmp_path: Path):
    """Strips may differ between runs, as the tile does; what is joined may not."""
    region = Window(512, 0, 1700, 1024)
    layers_LHW = layers_of(region, 1)
    files = [
        join(write_parts(tmp_path / str(strip), layers_LHW, region, 1024, strip), tmp_path / f"{strip}.tif", region).read_bytes()
        for strip in (512, 1024, 1024)
    ]
    assert files[0] == files[1] == files[2]


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_part_that_changed_is_named_and_nothing_is_finished(tmp_path: Path, level: int):
    region = Window(0, 0, 2048, 2048)
    parts = write_parts(tmp_path, layers_of(region, 1), region, 1024 if level < 2 else 2048)
    part = parts[-1][1]
    offset, size, _ = read_part(part).blocks[level][0][-1].tolist()
    whole = part.read_bytes()
    part.write_bytes(whole[: offset + size // 2] + bytes([whole[offset + size // 2] ^ 4]) + whole[offset + size // 2 + 1 :])
    with pytest.raises(Unreadable, match=rf"{part.name}: is damaged .*the block at byte {offset} changed.*start again"):
        join(parts, tmp_path / ".mask.tif.1.tmp", region)
    part.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Unreadable, match=rf"{part.name}: is damaged"):
        join(parts, tmp_path / ".mask.tif.1.tmp", region)
    part.write_bytes(parts[0][1].read_bytes())
    if len(parts) > 1:
        with pytest.raises(Unreadable, match=rf"{part.name}: is damaged \(it holds Window\(row=0, col=0"):
            join(parts, tmp_path / ".mask.tif.1.tmp", region)
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".part"} <= {".mask.tif.1.tmp"}, "no coarse levels are left"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_os_error(tmp_path: Path):
    region = Window(0, 0, 300, 300)
    parts = write_parts(tmp_path, layers_of(region, 1), region, 512)
    (tmp_path / "full.tif").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        join(parts, tmp_path / "full.tif", region)


@pytest.mark.parametrize("kept", [0, -1])
def test_a_finished_file_is_opened_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int):
    """As on a disk that loses what it was given, the last block or all of them."""
    region = Window(0, 0, 700, 1100)
    parts = write_parts(tmp_path, layers_of(region, 1), region, 512)
    honest = cog._data
    monkeypatch.setattr(cog, "_data", lambda *arguments: list(honest(*arguments))[:kept])
    with pytest.raises(OSError, match=r"mask\.tif: .*back.* is the disk full"):
        join(parts, tmp_path / "mask.tif", region)


def test_memory_is_a_few_block_rows_however_many_there_are(tmp_path: Path):
    """Off the shards' grid, where every overview is made while joining."""
    peaks = []
    for height in (2048, 16384):
        region = Window(512, 0, height, 2048)
        parts = write_parts(tmp_path / str(height), np.zeros((1, height, 2048), np.uint8), region, 1024, 2048)
        tracemalloc.start()
        join(parts, tmp_path / "mask.tif", region)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 6 * 512 * 2048 and peaks[1] < peaks[0] + 512 * 2048, "less than a block row more"


def test_rotated_and_unplaced_grids_stay_as_they_are(tmp_path: Path):
    region = Window(0, 0, 600, 520)
    layers_LHW = layers_of(region, 1)
    parts = write_parts(tmp_path, layers_LHW, region, 512)
    rotated = Affine(20.0, 10.0, 301905.0, 10.0, -20.0, 4154085.0)
    for name, transform, crs in (("rotated", rotated, WKT), ("unplaced", Affine.identity(), None), ("placed", rotated, None)):
        joined = join(parts, tmp_path / f"{name}.tif", region, grid=Grid(600, 520, tuple(transform)[:6], crs))
        with rasterio.open(joined) as dataset:
            assert dataset.transform.almost_equals(transform) and bool(dataset.crs) == bool(crs)
            np.testing.assert_array_equal(dataset.read(), layers_LHW)
