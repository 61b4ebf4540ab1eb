"""The 4-connected regions of one class in a raster that is read strip by strip: labels are joined over the seams."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components


class Seam(NamedTuple):
    """The last row of the strip above: its values, and which of the `size` regions that reach it each pixel belongs to."""

    values_W: np.ndarray
    region_W: np.ndarray  # int32
    size: int

    @classmethod
    def above_all(cls, width: int, outside: int, dtype: npt.DTypeLike = np.uint8) -> Seam:
        """The row above a raster: one region, of the value `outside`."""
        return cls(np.full(width, outside, dtype), np.zeros(width, np.int32), 1)


class Regions(NamedTuple):
    """The regions of a strip, and which of them those are that came from above.

    A node is a region that came from above or a run: pixels of one value side by side in a row. `node_HW` has the row above at
    its top. Runs are in row-major order.
    """

    size: int
    node_HW: np.ndarray  # int32, a row higher than the strip
    region_of_node: np.ndarray  # int32
    values: np.ndarray  # of each region
    above: int  # how many nodes are regions from above
    run_first: np.ndarray  # int64: where in the strip, row by row, each run starts; and at the end, the strip's pixels

    @property
    def carried(self) -> np.ndarray:
        """The region that each one from above belongs to."""
        return self.region_of_node[: self.above]

    @property
    def of_run(self) -> np.ndarray:
        """The region that each run belongs to."""
        return self.region_of_node[self.above :]

    def seam(self) -> tuple[Seam, np.ndarray]:
        """The seam below the strip, and the region that each one that reaches it is."""
        last = self.region_of_node[self.node_HW[-1]]
        reaching, region_W = np.unique(last, return_inverse=True)
        return Seam(self.values[last], region_W.astype(np.int32), len(reaching)), reaching


def find_regions(values_HW: np.ndarray, above: Seam) -> Regions:
    """The regions of a strip below the seam `above`, those from above first, then in the order of their first pixels."""
    height, width = values_HW.shape
    starts_HW = np.ones((height, width), bool)
    np.not_equal(values_HW[:, 1:], values_HW[:, :-1], out=starts_HW[:, 1:])
    node_HW = np.empty((height + 1, width), np.int32)
    node_HW[0] = above.region_W
    np.cumsum(starts_HW, dtype=np.int32, out=node_HW[1:].reshape(-1))
    node_HW[1:] += above.size - 1
    touching = np.flatnonzero((starts_HW[:-1] | starts_HW[1:]) & (values_HW[:-1] == values_HW[1:])) + width
    over_seam = np.flatnonzero(above.values_W == values_HW[0])
    upper = np.concatenate([over_seam, touching])
    run_first = np.append(np.flatnonzero(starts_HW), height * width)
    nodes = node_HW.reshape(-1)
    region_of_node = _components(nodes[upper], nodes[upper + width], above.size + len(run_first) - 1)
    count = int(region_of_node.max()) + 1
    values = np.empty(count, values_HW.dtype)
    values[region_of_node[above.region_W]] = above.values_W
    values[region_of_node[above.size :]] = values_HW.reshape(-1)[run_first[:-1]]
    return Regions(count, node_HW, region_of_node, values, above.size, run_first)


def _components(one: np.ndarray, other: np.ndarray, nodes: int) -> np.ndarray:
    """The connected component of each node of a graph with edges from `one`, which ascends but for its start, to `other`."""
    graph = csr_array((np.ones(len(one), np.int8), (one, other)), shape=(nodes, nodes))
    return connected_components(graph, directed=False)[1]
