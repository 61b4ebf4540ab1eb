"""Put cores together into strips of whole block rows, in place, so that memory is one strip and not one shard."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pipeline.geometry.pyramid import nodata_of
from pipeline.geometry.windows import BLOCK, Window, ceil_to


class Strips:
    """The rows of a shard's output that are in memory: cores go in, finished strips come out.

    `paste_core` places one tile's core; `finished(stop)` yields what is complete once every core above row `stop` is
    placed, as (window in scene pixels, array of LHW layers), and keeps the rest. Strips are multiples of 512 rows,
    except the last. Pixels that no core was pasted on are nodata: 255 in bytes, NaN in floats.
    """

    def __init__(self, shard: Window, layers: int, dtype: npt.DTypeLike = np.uint8):
        self.shard = shard
        self.nodata = nodata_of(dtype)
        self.top = shard.row  # the scene row of the buffer's first row
        self.buffer_LHW = np.full((layers, 0, shard.width), self.nodata, dtype)

    def paste_core(self, layers_LHW: np.ndarray, core: Window) -> None:
        """Write the core's layers (layers x core.height x core.width) into the buffer."""
        rows, cols = core.relative_to(self.shard._replace(row=self.top)).slices()
        self._grow(rows.stop)
        self.buffer_LHW[:, rows, cols] = layers_LHW

    def finished(self, stop: int) -> Iterator[tuple[Window, np.ndarray]]:
        """Yield the strip of whole block rows above scene row `stop` (all that is left, when `stop` ends the shard)."""
        end = self.shard.rows.stop
        height = stop - self.top if stop == end else (stop - self.top) // BLOCK * BLOCK
        if height <= 0:
            return
        self._grow(height)
        done, self.buffer_LHW = self.buffer_LHW[:, :height], self.buffer_LHW[:, height:].copy()
        window = Window(self.top, self.shard.col, height, self.shard.width)
        self.top += height
        yield window, done

    def _grow(self, height: int) -> None:
        layers, present, width = self.buffer_LHW.shape
        if height > present:
            rows = min(ceil_to(height, BLOCK), self.shard.rows.stop - self.top)
            grown = np.full((layers, rows, width), self.nodata, self.buffer_LHW.dtype)
            grown[:, :present] = self.buffer_LHW
            self.buffer_LHW = grown
