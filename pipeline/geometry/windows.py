"""Cut a scene into shards, tiles, cores and halos: integers only, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

BLOCK = 512  # px: shards, strips and regions are aligned to it, so that every COG block has one writer
EVEN, LONGER = 128, 32  # px, and one part in so many: for `even`


class Span(NamedTuple):
    """Pixels [start, stop) along one axis."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


class Window(NamedTuple):
    """A rectangle of pixels: rows [row, row + height), columns [col, col + width)."""

    row: int
    col: int
    height: int
    width: int

    @classmethod
    def of(cls, rows: Span, cols: Span) -> Window:
        return cls(rows.start, cols.start, rows.length, cols.length)

    @property
    def rows(self) -> Span:
        return Span(self.row, self.row + self.height)

    @property
    def cols(self) -> Span:
        return Span(self.col, self.col + self.width)

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def relative_to(self, origin: Window) -> Window:
        """The same pixels, counted from the upper left corner of `origin`."""
        return self._replace(row=self.row - origin.row, col=self.col - origin.col)

    def intersection(self, other: Window) -> Window | None:
        """The pixels in both windows, or None where they share none."""
        rows = Span(max(self.row, other.row), min(self.rows.stop, other.rows.stop))
        cols = Span(max(self.col, other.col), min(self.cols.stop, other.cols.stop))
        return Window.of(rows, cols) if rows.length > 0 and cols.length > 0 else None

    def slices(self) -> tuple[slice, slice]:
        """Row and column slices of an array whose first pixel is (0, 0); a negative start would wrap, so it raises."""
        if self.row < 0 or self.col < 0:
            raise ValueError(f"{self} starts outside its array")
        return slice(*self.rows), slice(*self.cols)


class Tile(NamedTuple):
    """What the network sees (`read`) and the part of it that the tile owns (`core`), in scene pixels."""

    read: Window
    core: Window


def ceil_to(length: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `length`.

    >>> ceil_to(513, 32), ceil_to(512, 32), ceil_to(0, 32)
    (544, 512, 0)
    """
    return -(-length // multiple) * multiple


def even(length: int, stride: int) -> int:
    """The next width at which convolutions are fast: a multiple of the stride that is at most 1/32 above the next one.

    It is one of 128 px, or of the largest power of two times the stride that so little allows. Over 267 or 523 columns, which are
    prime, networks took 1.3 to 1.7 times as long a pixel as over 272 or 528 (oneDNN on a CPU with AMX, in bf16 and int8).

    >>> [even(columns * 8, stride=8) // 8 for columns in (523, 267, 131, 33)]
    [528, 272, 132, 33]
    """
    step = stride
    while step < EVEN and 2 * LONGER * step <= length:
        step *= 2
    return ceil_to(length, step)


def spans(inside: Span, length: int, tile: int, halo: int, trim: int | None = None, wide: bool = False) -> Iterator[tuple[Span, Span]]:
    """Cut the span `inside` of an axis of `length` px into cores, each read with `halo` px of context.

    Yields (read, core) pairs. Cores cover `inside` exactly once, in order. Every read lies in [0, length); it holds its
    core and `halo` px on either side of it, or ends where the axis ends. It is min(tile, length) px long, or with `trim`,
    the network's stride, no longer than that takes, or where tiles are to be `wide` a little longer, as `even` says.
    When `length`, `inside.start`, `tile` and `halo` are multiples of the network's stride, so is every read's start.

    >>> list(spans(Span(0, 9), 9, tile=6, halo=1))       # the last tile slides back: it never leaves the axis
    [(Span(start=0, stop=6), Span(start=0, stop=5)), (Span(start=3, stop=9), Span(start=5, stop=9))]
    >>> list(spans(Span(0, 9), 9, tile=6, halo=1, trim=1))
    [(Span(start=0, stop=6), Span(start=0, stop=5)), (Span(start=4, stop=9), Span(start=5, stop=9))]
    """
    if not 0 <= 2 * halo < tile:
        raise ValueError(f"need 0 <= 2 * halo < tile, got halo={halo} px, tile={tile} px")
    size = min(tile, length)
    start = inside.start
    while start < inside.stop:
        read_start = max(0, min(start - halo, length - size))
        read = Span(read_start, read_start + size)
        stop = length if read.stop == length else read.stop - halo
        core = Span(start, min(stop, inside.stop))
        if trim:
            first, last = max(read.start, core.start - halo), min(read.stop, ceil_to(core.stop, trim) + halo)
            needed = min(even(last - first, trim), size) if wide else last - first
            first = min(first, length - needed)
            read = Span(first, first + needed)
        yield read, core
        start = core.stop


def tile_rows(
    shard: Window, padded_height: int, padded_width: int, tile: tuple[int, int], halo: int, trim: int | None = None
) -> Iterator[list[Tile]]:
    """The tiles of a shard, a list for each row of tiles, from top to bottom; `tile` is their height and width.

    `padded_height` and `padded_width` are the scene's size padded to the stride: reads may reach into the padding,
    cores never leave `shard`. All reads of a scene have one shape, or with `trim`, the stride, the smallest that will do well.
    """
    columns = list(spans(shard.cols, padded_width, tile[1], halo, trim, wide=True))
    for read_rows, core_rows in spans(shard.rows, padded_height, tile[0], halo, trim):
        yield [Tile(Window.of(read_rows, read), Window.of(core_rows, core)) for read, core in columns]


def shards(region: Window, shard: int) -> list[Window]:
    """The shards of a scene that meet `region`, clipped to it, in row-major order.

    Shards lie on the scene's own grid of `shard` px, whatever the region, so that a region's tiles are the scene's.
    """
    return [Window.of(rows, cols) for rows in cells(region.rows, shard) for cols in cells(region.cols, shard)]


def cells(inside: Span, shard: int) -> list[Span]:
    """The shards along one axis that meet the span `inside`, clipped to it, in order."""
    starts = range(inside.start // shard * shard, inside.stop, shard)
    return [Span(max(start, inside.start), min(start + shard, inside.stop)) for start in starts]


def largest_first(windows: Iterable[Window]) -> list[Window]:
    """In the order in which they are done, so that workers end nearly together."""
    return sorted(windows, key=lambda window: -window.pixels)


def snap_outward(window: Window, height: int, width: int, multiple: int = BLOCK) -> Window:
    """The smallest window on the grid of `multiple` px that holds `window`, clipped to a `height` x `width` scene."""
    rows = Span(window.row // multiple * multiple, min(ceil_to(window.rows.stop, multiple), height))
    cols = Span(window.col // multiple * multiple, min(ceil_to(window.cols.stop, multiple), width))
    return Window.of(rows, cols)
