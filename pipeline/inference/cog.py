"""Join the parts of a scene into one Cloud-Optimized GeoTIFF by copying their compressed blocks.

Only the overviews that no part could make by itself are computed here. Tags come from a small file that GDAL writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from pipeline.geometry.pyramid import Block, Level, Pyramid, level_sizes, nodata_of
from pipeline.geometry.windows import BLOCK, Window
from pipeline.imagery import storage
from pipeline.imagery.raster import Grid
from pipeline.inference import tiff
from pipeline.inference.blocks import BlockFile, Index, compress, damaged, decompress, predictor_of, read_blocks, read_index
from pipeline.inference.part import read_part
from pipeline.inference.plan import Plan
from pipeline.models.bundle import Bundle
from pipeline.models.layers import LAYERS, Layer, bands_of

LARGEST_CLASSIC = 2**32 - 1  # bytes of a TIFF with offsets of 32 bits
SUBFILE, WIDTH, HEIGHT, OFFSETS, SIZES = 254, 256, 257, 324, 325  # tags of TIFF 6.0
OF_OVERVIEWS = {258, 259, 262, 277, 284, 317, 320, 322, 323, 338, 339, 42113}  # how to decode and show pixels; nodata


class Piece(NamedTuple):
    """A block file and the part of the raster that it covers, in full-resolution px from the raster's corner.

    `blocks` are its blocks by level of the raster and band; there are none of a level that it does not hold.
    """

    path: Path
    window: Window
    blocks: Index

    def holds(self, level: int) -> bool:
        return level < len(self.blocks) and len(self.blocks[level][0]) > 0

    def cells(self, level: int) -> tuple[slice, slice]:
        """The rows and the columns of blocks that it covers in a level that it holds."""
        cell = BLOCK << level
        rows, cols = (slice(span.start // cell, -(-span.stop // cell)) for span in (self.window.rows, self.window.cols))
        return rows, cols


class Placed(NamedTuple):
    """Where the blocks of a level lie in the file, from the end of its header: arrays of band x block row x block column."""

    offsets: np.ndarray
    sizes: np.ndarray
    holes: bool  # some blocks lie in no piece: they share one block of nodata, which comes last


class Description(NamedTuple):
    """What a raster says of itself: its tags, its bands' names and their unit; with `colours` it is a palette image."""

    tags: Mapping[str, str]
    names: Sequence[str]
    unit: str = ""
    colours: Mapping[int, tuple[int, int, int]] | None = None


def write_layer(layer: str, parts: Iterable[tuple[Window, Path]], target: Path, plan: Plan, bundle: Bundle, *, input_id: str) -> None:
    """Write one of a plan's layers as a COG, with `input_id` among its tags."""
    numbers = [number for number, one in enumerate(bands_of(plan.layers, plan.classes)) if one == layer]
    tags = {"INPUT_ID": input_id, "MODEL_ID": bundle.model_id, "SCENE": plan.scene.uri}
    about = _describe(layer, bundle, tags)
    write_cog(parts, numbers, target, kind=LAYERS[layer], region=plan.region.window, grid=plan.scene.grid, about=about)


def _describe(layer: str, bundle: Bundle, tags: Mapping[str, str]) -> Description:
    if layer == "mask":
        return Description({"CLASSES": json.dumps(bundle.class_table), **tags}, ["class"], colours=bundle.colours)
    if layer == "value" and bundle.target:
        return Description({"TARGET": json.dumps(asdict(bundle.target)), **tags}, [bundle.target.name], bundle.target.unit)
    return Description(tags, [entry.name for entry in bundle.classes] if LAYERS[layer].of_each_class else [layer])


def write_cog(
    parts: Iterable[tuple[Window, Path]], layers: Sequence[int], target: Path, *, kind: Layer, region: Window, grid: Grid,
    about: Description,
) -> None:  # fmt: skip
    """Write the layers `layers` of the parts, all of one kind, as the bands of one COG over `region`, nodata where no part lies.

    A part that does not hold what was written into it raises Unreadable, naming it; a full disk raises OSError. The same
    parts give the same bytes. In memory are a block row of one level and the parts' indices.
    """
    blank = compress(np.full((BLOCK, BLOCK), nodata_of(kind.dtype), kind.dtype))
    pieces = [_piece(path, shard, region, layers) for shard, path in parts]
    levels = level_sizes(region.height, region.width)
    with storage.discarded(target.with_name(target.name.removesuffix(".tmp") + ".coarse.tmp")) as coarse:
        pieces += _coarse_levels(pieces, levels, len(layers), kind, coarse)
        placed, end = _place(pieces, levels, len(layers), len(blank))
        head = _header(_template(region, grid, about, kind.dtype), levels, placed, end)
        with target.open("wb") as file:
            file.write(head)
            for data in _data(pieces, placed, blank):
                file.write(data)
    _check(target, len(head) + end, levels, len(layers))


def _piece(path: Path, shard: Window, region: Window, layers: Sequence[int]) -> Piece:
    content = read_part(path)
    if content.shard != shard:
        raise damaged(path, f"it holds {content.shard}, not {shard}")
    return Piece(path, shard.relative_to(region), [[level[layer] for layer in layers] for level in content.blocks])


def _coarse_levels(pieces: Sequence[Piece], levels: Sequence[Level], bands: int, kind: Layer, path: Path) -> list[Piece]:
    """The levels that the parts lack, made from the coarsest that all of them hold, as one more piece in the file `path`."""
    held = min((len(piece.blocks) for piece in pieces), default=len(levels))
    if held >= len(levels):
        return []
    base = held - 1
    with BlockFile(path, len(levels), bands) as file:
        for band in range(bands):
            pyramid = Pyramid(len(levels) - base, kind.reduce)
            for row in range(levels[base].block_rows):
                file.write(band, _above(base, pyramid.add(_block_row(pieces, base, band, row, levels[base].block_cols, kind.dtype))))
            file.write(band, _above(base, pyramid.finish()))
        file.finish({})
    return [Piece(path, Window(0, 0, *levels[0]), read_index(path).blocks)]


def _above(base: int, blocks: Iterable[Block]) -> Iterator[Block]:
    """The overviews among the blocks of a pyramid that stands on level `base`."""
    return (block._replace(level=base + block.level) for block in blocks if block.level > 0)


def _block_row(pieces: Sequence[Piece], level: int, band: int, row: int, block_cols: int, dtype: npt.DTypeLike) -> np.ndarray:
    """The pixels of a block row of a level, nodata where no piece lies."""
    rows_HW = np.full((BLOCK, block_cols * BLOCK), nodata_of(dtype), dtype)
    for piece in pieces:
        rows, cols = piece.cells(level)
        if rows.start <= row < rows.stop:
            entries = piece.blocks[level][band].reshape(rows.stop - rows.start, cols.stop - cols.start, 3)[row - rows.start]
            for col, data in enumerate(read_blocks(piece.path, entries), cols.start):
                rows_HW[:, col * BLOCK : (col + 1) * BLOCK] = decompress(data, dtype)
    return rows_HW


def _place(pieces: Sequence[Piece], levels: Sequence[Level], bands: int, blank_bytes: int) -> tuple[list[Placed], int]:
    """Where each level's blocks go, and how long all are: the coarsest level first, and in a level piece by piece, band by band."""
    placed, end = [], 0
    for number, level in reversed(list(enumerate(levels))):
        offsets, sizes = np.zeros((2, bands, level.block_rows, level.block_cols), np.int64)
        for piece in pieces:
            if piece.holds(number):
                cells = (slice(None), *piece.cells(number))
                lengths = np.concatenate(piece.blocks[number])[:, 1]
                sizes[cells] = lengths.reshape(sizes[cells].shape)
                offsets[cells] = (end + np.cumsum(lengths) - lengths).reshape(sizes[cells].shape)
                end += int(lengths.sum())
        empty = sizes == 0
        offsets[empty], sizes[empty] = end, blank_bytes
        end += blank_bytes * bool(empty.any())
        placed.append(Placed(offsets, sizes, bool(empty.any())))
    return placed[::-1], end


def _data(pieces: Sequence[Piece], placed: Sequence[Placed], blank: bytes) -> Iterator[bytes]:
    """The blocks in the order in which they were placed."""
    for level in reversed(range(len(placed))):
        for piece in pieces:
            if piece.holds(level):
                yield from read_blocks(piece.path, np.concatenate(piece.blocks[level]))
        if placed[level].holes:
            yield blank


def _header(template: tiff.Directory, levels: Sequence[Level], placed: Sequence[Placed], data_bytes: int) -> bytes:
    """The header of the whole file: a classic TIFF's unless that cannot reach all data."""
    overview = {tag: entry for tag, entry in template.items() if tag in OF_OVERVIEWS} | {SUBFILE: tiff.longs([1])}

    def make(start: int, big: bool) -> bytes:
        return tiff.header([
            {
                **(overview if number else template), WIDTH: tiff.longs([level.width]), HEIGHT: tiff.longs([level.height]),
                OFFSETS: tiff.longs(start + where.offsets, big), SIZES: tiff.longs(where.sizes),
            }
            for number, (level, where) in enumerate(zip(levels, placed, strict=True))
        ], big=big)  # fmt: skip

    big = len(make(0, False)) + data_bytes > LARGEST_CLASSIC
    return make(len(make(0, big)), big)


def _template(region: Window, grid: Grid, about: Description, dtype: npt.DTypeLike) -> tiff.Directory:
    """The tags that GDAL gives to such a raster of one block: place, colours, nodata, metadata, how pixels are stored."""
    transform = grid.affine * Affine.translation(region.col, region.row)
    predictor = predictor_of(dtype)
    with rasterio.Env(GDAL_PAM_ENABLED="NO"), MemoryFile() as memory:
        with memory.open(
            driver="GTiff", dtype=np.dtype(dtype).name, nodata=nodata_of(dtype), count=len(about.names), height=BLOCK, width=BLOCK,
            crs=grid.rasterio_crs, transform=None if transform.is_identity else transform, tiled=True, blockxsize=BLOCK, blockysize=BLOCK,
            compress="DEFLATE", interleave="band", photometric="PALETTE" if about.colours else "MINISBLACK", sparse_ok=True, bigtiff="NO",
            endianness="LITTLE", **({"predictor": predictor} if predictor else {}),
        ) as dataset:  # fmt: skip
            dataset.update_tags(**about.tags)
            for number, name in enumerate(about.names, 1):
                dataset.set_band_description(number, name)
                if about.unit:
                    dataset.set_band_unit(number, about.unit)
            if about.colours:
                dataset.write_colormap(1, about.colours)
        return tiff.first_directory(bytes(memory.getbuffer()))


def _check(target: Path, size: int, levels: Sequence[Level], bands: int) -> None:
    """Open the finished file of `size` bytes and read its last block. Raises OSError where it is not what was meant."""
    try:
        with rasterio.open(target) as dataset:
            found = (target.stat().st_size, dataset.height, dataset.width, dataset.count, len(dataset.overviews(bands)))
            *_, (_, last) = dataset.block_windows(bands)
            dataset.read(bands, window=last)
    except RasterioError as error:
        raise OSError(f"{target}: cannot be read back ({error}): is the disk full?") from None
    if found != (size, *levels[0], bands, len(levels) - 1):
        raise OSError(f"{target}: reads back as {found}, not as what was written: is the disk full?")
