"""Join the parts of a scene into one Cloud-Optimized GeoTIFF by copying their compressed blocks.

Only the overviews that no part could make by itself are computed here. Tags come from a small file that GDAL writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from pipeline.geometry.pyramid import NODATA, Block, Level, Pyramid, Reduce, average, level_sizes, mode
from pipeline.geometry.windows import BLOCK, Window
from pipeline.imagery import storage
from pipeline.imagery.raster import Grid
from pipeline.inference import tiff
from pipeline.inference.blocks import BlockFile, Index, compress, damaged, decompress, read_blocks, read_index
from pipeline.inference.part import read_part
from pipeline.inference.plan import Plan
from pipeline.models.bundle import Bundle

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


def write_mask(parts: Iterable[tuple[Window, Path]], target: Path, plan: Plan, bundle: Bundle, *, input_id: str) -> None:
    """Write the class ids of a scene as a COG with colour table, class table and `input_id`."""
    tags = {"CLASSES": json.dumps(bundle.class_table), "INPUT_ID": input_id, "MODEL_ID": bundle.model_id, "SCENE": plan.scene.uri}
    write_cog(parts, [0], target, region=plan.region.window, grid=plan.scene.grid, tags=tags, names=["class"], colours=bundle.colours)


def write_layer(layer: str, parts: Sequence[tuple[Window, Path]], target: Path, plan: Plan, bundle: Bundle, *, input_id: str) -> None:
    """Write one of a plan's layers as a COG: mask, confidence, or probabilities with a band a class."""
    if layer == "mask":
        write_mask(parts, target, plan, bundle, input_id=input_id)
        return
    number = sum(plan.classes if before == "probabilities" else 1 for before in plan.layers[: plan.layers.index(layer)])
    many = layer == "probabilities"
    write_cog(
        parts, list(range(number, number + (plan.classes if many else 1))), target, region=plan.region.window, grid=plan.scene.grid,
        tags={"INPUT_ID": input_id, "MODEL_ID": bundle.model_id, "SCENE": plan.scene.uri},
        names=[entry.name for entry in bundle.classes] if many else [layer],
    )  # fmt: skip


def write_cog(
    parts: Iterable[tuple[Window, Path]], layers: Sequence[int], target: Path, *, region: Window, grid: Grid,
    tags: Mapping[str, str], names: Sequence[str], colours: Mapping[int, tuple[int, int, int]] | None = None,
) -> None:  # fmt: skip
    """Write the layers `layers` of the parts as the bands of one COG over `region`, 255 where no part lies.

    `names` are the band descriptions; `colours` makes it a palette image. Overviews are the mode for layer 0, the mask,
    and averages for others. A part that does not hold what was written into it raises Unreadable, naming it; a full disk
    raises OSError. The same parts give the same bytes. In memory are a block row of one level and the parts' indices.
    """
    pieces = [_piece(path, shard, region, layers) for shard, path in parts]
    levels = level_sizes(region.height, region.width)
    with storage.discarded(target.with_name(target.name.removesuffix(".tmp") + ".coarse.tmp")) as coarse:
        pieces += _coarse_levels(pieces, levels, [average if layer else mode for layer in layers], coarse)
        placed, end = _place(pieces, levels, len(layers))
        head = _header(_template(region, grid, tags, names, colours), levels, placed, end)
        with target.open("wb") as file:
            file.write(head)
            for data in _data(pieces, placed):
                file.write(data)
    _check(target, len(head) + end, levels, len(layers))


def _piece(path: Path, shard: Window, region: Window, layers: Sequence[int]) -> Piece:
    content = read_part(path)
    if content.shard != shard:
        raise damaged(path, f"it holds {content.shard}, not {shard}")
    return Piece(path, shard.relative_to(region), [[level[layer] for layer in layers] for level in content.blocks])


def _coarse_levels(pieces: Sequence[Piece], levels: Sequence[Level], reduce: Sequence[Reduce], path: Path) -> list[Piece]:
    """The levels that the parts lack, made from the coarsest that all of them hold, as one more piece in the file `path`."""
    held = min((len(piece.blocks) for piece in pieces), default=len(levels))
    if held >= len(levels):
        return []
    base = held - 1
    with BlockFile(path, len(levels), len(reduce)) as file:
        for band, function in enumerate(reduce):
            pyramid = Pyramid(len(levels) - base, function)
            for row in range(levels[base].block_rows):
                file.write(band, _above(base, pyramid.add(_block_row(pieces, base, band, row, levels[base].block_cols))))
            file.write(band, _above(base, pyramid.finish()))
        file.finish({})
    return [Piece(path, Window(0, 0, *levels[0]), read_index(path).blocks)]


def _above(base: int, blocks: Iterable[Block]) -> Iterator[Block]:
    """The overviews among the blocks of a pyramid that stands on level `base`."""
    return (block._replace(level=base + block.level) for block in blocks if block.level > 0)


def _block_row(pieces: Sequence[Piece], level: int, band: int, row: int, block_cols: int) -> np.ndarray:
    """The pixels of a block row of a level, nodata where no piece lies."""
    rows_HW = np.full((BLOCK, block_cols * BLOCK), NODATA, np.uint8)
    for piece in pieces:
        rows, cols = piece.cells(level)
        if rows.start <= row < rows.stop:
            entries = piece.blocks[level][band].reshape(rows.stop - rows.start, cols.stop - cols.start, 3)[row - rows.start]
            for col, data in enumerate(read_blocks(piece.path, entries), cols.start):
                rows_HW[:, col * BLOCK : (col + 1) * BLOCK] = decompress(data)
    return rows_HW


def _place(pieces: Sequence[Piece], levels: Sequence[Level], bands: int) -> tuple[list[Placed], int]:
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
        offsets[empty], sizes[empty] = end, len(_nodata_block())
        end += len(_nodata_block()) * bool(empty.any())
        placed.append(Placed(offsets, sizes, bool(empty.any())))
    return placed[::-1], end


def _data(pieces: Sequence[Piece], placed: Sequence[Placed]) -> Iterator[bytes]:
    """The blocks in the order in which they were placed."""
    for level in reversed(range(len(placed))):
        for piece in pieces:
            if piece.holds(level):
                yield from read_blocks(piece.path, np.concatenate(piece.blocks[level]))
        if placed[level].holes:
            yield _nodata_block()


@cache
def _nodata_block() -> bytes:
    return compress(np.full((BLOCK, BLOCK), NODATA, np.uint8))


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


def _template(
    region: Window, grid: Grid, tags: Mapping[str, str], names: Sequence[str], colours: Mapping[int, tuple[int, int, int]] | None
) -> tiff.Directory:
    """The tags that GDAL gives to such a raster of one block: place, colours, nodata, metadata, how pixels are stored."""
    transform = grid.affine * Affine.translation(region.col, region.row)
    with rasterio.Env(GDAL_PAM_ENABLED="NO"), MemoryFile() as memory:
        with memory.open(
            driver="GTiff", dtype="uint8", nodata=NODATA, count=len(names), height=BLOCK, width=BLOCK, crs=grid.rasterio_crs,
            transform=None if transform.is_identity else transform, tiled=True, blockxsize=BLOCK, blockysize=BLOCK,
            compress="DEFLATE", interleave="band", photometric="PALETTE" if colours else "MINISBLACK", sparse_ok=True, bigtiff="NO",
            endianness="LITTLE",
        ) as dataset:  # fmt: skip
            dataset.update_tags(**tags)
            for number, name in enumerate(names, 1):
                dataset.set_band_description(number, name)
            if colours:
                dataset.write_colormap(1, colours)
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
