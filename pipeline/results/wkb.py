"""Polygons as well-known binary, many at once: their bytes are laid out by numpy, since making and asking a GEOS object for each
took five times as long as all else together."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

LITTLE_ENDIAN, POLYGON = 1, 3
LONGEST = 2**31 - 1  # bytes of an Arrow array of binary values


def polygons_as_wkb(xy_N2: np.ndarray, ring_lengths: np.ndarray, ring_counts: np.ndarray) -> pa.Array:
    """Each polygon's WKB (OGC 06-103r4, 8.2): `ring_counts` rings for each, of `ring_lengths` points for each in `xy_N2`, closed.

    Raises OverflowError where they are longer than 2 GiB.
    """
    rings = len(ring_lengths)
    polygon_of = np.repeat(np.arange(len(ring_counts)), ring_counts)
    # in words of 4 bytes, the byte order's single byte left out: polygon (type, rings), each ring (points), each point (4 words)
    words_before = np.cumsum(4 * ring_lengths) - 4 * ring_lengths
    ring_at = words_before + np.arange(rings) + 2 * (polygon_of + 1)
    first_ring = np.cumsum(ring_counts) - ring_counts
    polygon_at = ring_at[first_ring] - 2
    words = np.empty(4 * len(xy_N2) + rings + 2 * len(ring_counts), "<u4")
    is_point = np.ones(len(words), bool)
    for at, value in ((polygon_at, POLYGON), (polygon_at + 1, ring_counts), (ring_at, ring_lengths)):
        words[at], is_point[at] = value, False
    words[is_point] = np.ascontiguousarray(xy_N2, "<f8").view("<u4").reshape(-1)
    starts = 4 * polygon_at + np.arange(len(ring_counts))
    data = np.full(4 * len(words) + len(ring_counts), LITTLE_ENDIAN, np.uint8)
    if len(data) > LONGEST:
        raise OverflowError(f"{len(xy_N2)} points are more than fit into one array")
    is_word = np.ones(len(data), bool)
    is_word[starts] = False
    data[is_word] = words.view(np.uint8)
    offsets = np.append(starts, len(data)).astype(np.int32)
    return pa.Array.from_buffers(pa.binary(), len(ring_counts), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def bounds_of(xy_N2: np.ndarray, point_counts: np.ndarray) -> np.ndarray:
    """The least x and y and the greatest x and y of each polygon, which has `point_counts` points in `xy_N2`: polygons x 4."""
    starts = np.cumsum(point_counts) - point_counts
    ends = [(np.minimum, 0), (np.minimum, 1), (np.maximum, 0), (np.maximum, 1)]
    return np.column_stack([reduce.reduceat(xy_N2[:, axis], starts) for reduce, axis in ends])
