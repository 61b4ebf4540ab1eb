"""Follow the outlines of regions from corner to corner through a strip, and from strip to strip: rings come out when they close.

Along a lattice row the corners at which an outline leaves eastward and those at which one comes eastward take turns, so the
k-th of the one belongs to the k-th of the other; likewise along columns. What leaves a strip through its lower edge is a chain:
it goes on where an outline stands on the same column in the next strip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

from pipeline.geometry.corners import COMING, EAST, LEAVING, NORTH, NOWHERE, SOUTH, WEST, Corners
from pipeline.geometry.regions import Regions
from pipeline.geometry.rings import Rings, cut_where_touching


class Chains(NamedTuple):
    """Outlines that leave a strip through its lower edge. Each goes down at column `tails`, and comes up again at `heads`,
    that is where its first vertex is reached from below. `bodies` are their vertices, N x 2 arrays in order."""

    tails: np.ndarray  # int32
    heads: np.ndarray  # int32
    regions: np.ndarray
    bodies: list[list[np.ndarray]]

    @classmethod
    def none(cls) -> Chains:
        empty = np.empty(0, np.int32)
        return cls(empty, empty, empty, [])


class Traced(NamedTuple):
    """What a strip gives: rings that lie in it whole, rings that chains closed in it, and the chains that leave it."""

    rings: Rings
    closed: Rings
    chains: Chains


class _Paths(NamedTuple):
    """Links followed to the end: `order` holds the links of path after path, from `starts`; `vertices` those that were kept,
    of which `kept_before` come before each place in `order`."""

    order: np.ndarray
    starts: np.ndarray
    kept_before: np.ndarray
    vertices_N2: np.ndarray

    def between(self, start: int, stop: int) -> np.ndarray:
        return self.vertices_N2[self.kept_before[start] : self.kept_before[stop]]


def trace(
    corners: Corners, kept: np.ndarray | None, last_row_W: np.ndarray, regions: Regions, chains: Chains, first_row: int, outside: int
) -> Traced:
    """Link the corners of a strip, and the chains that enter it. Vertices that are not `kept` are passed by.

    `last_row_W` is the strip's last row, `first_row` what to add to the corners' rows.
    """
    entering, count = len(chains.tails), len(corners.row)
    down, up = _leaving(last_row_W, outside)
    # links: tails and heads of the chains from above, corners, ends and starts at the lower edge
    col = np.concatenate([chains.tails, chains.heads, corners.col, down, up])
    coming, leaving = np.full((2, len(col)), NOWHERE, np.int8)
    leaving[:entering] = SOUTH
    coming[entering : 2 * entering] = NORTH
    own = slice(2 * entering, 2 * entering + count)
    coming[own], leaving[own] = COMING[corners.kind], LEAVING[corners.kind]
    coming[own.stop : own.stop + len(down)] = SOUTH
    leaving[own.stop + len(down) :] = NORTH
    following = _link(col, coming, leaving)
    following[entering : 2 * entering] = np.arange(entering)
    vertices_N2 = np.zeros((len(col), 2), np.int32)
    vertices_N2[own, 0], vertices_N2[own, 1] = corners.row + first_row, corners.col
    keep = np.zeros(len(col), bool)
    keep[own] = True if kept is None else kept
    paths = _follow(following, vertices_N2, keep)
    return _sort_out(paths, corners, regions, chains, own, down, up)


def _leaving(last_row_W: np.ndarray, outside: int) -> tuple[np.ndarray, np.ndarray]:
    """The columns at which outlines leave the strip downward, and those at which they come up into it."""
    padded = np.concatenate([[outside], last_row_W, [outside]]).astype(last_row_W.dtype)
    cols = np.flatnonzero(padded[1:] != padded[:-1]).astype(np.int32)
    return cols[padded[cols + 1] != outside], cols[padded[cols] != outside]


def _link(col: np.ndarray, coming: np.ndarray, leaving: np.ndarray) -> np.ndarray:
    """The link that follows each one, -1 for none. Links are in row-major order."""
    following = np.full(len(col), -1, np.int32)
    for heading in (EAST, WEST):
        following[leaving == heading] = np.flatnonzero(coming == heading)
    by_col = np.argsort(col.astype(np.uint16) if col.max(initial=0) < 2**16 else col, kind="stable")
    coming, leaving = coming[by_col], leaving[by_col]
    for heading in (NORTH, SOUTH):
        following[by_col[leaving == heading]] = by_col[coming == heading]
    return following


def _follow(following: np.ndarray, vertices_N2: np.ndarray, keep: np.ndarray) -> _Paths:
    """Walk along all links: open paths from their start, closed ones from their first link."""
    count = len(following)
    linked = following >= 0
    graph = csr_array((np.ones(int(linked.sum()), np.int8), following[linked], np.append(0, np.cumsum(linked))), shape=(count, count))
    paths, path_of = connected_components(graph, connection="weak")
    first, last = np.empty(paths, np.int32), np.empty(paths, np.int32)
    first[path_of[::-1]] = np.arange(count - 1, -1, -1, dtype=np.int32)
    before = np.full(count, -1, np.int32)
    before[following[linked]] = np.flatnonzero(linked)
    begins = np.flatnonzero(before < 0)
    first[path_of[begins]] = begins
    last[:] = before[first]
    ends = np.flatnonzero(~linked)
    last[path_of[ends]] = ends
    one_path = following.copy()
    one_path[last[:-1]] = first[1:]
    one_path[last[-1:]] = first[-1:] if paths else []  # an edge that leads nowhere new
    order = np.empty(0, np.int32)
    if count:
        walk = csr_array((np.ones(count, np.int8), one_path, np.arange(count + 1)), shape=(count, count))
        order = breadth_first_order(walk, int(first[0]), return_predecessors=False)
    starts = np.append(0, np.cumsum(np.bincount(path_of, minlength=paths)))
    kept = keep[order]
    return _Paths(order, starts, np.append(0, np.cumsum(kept)), vertices_N2[order[kept]])


def _sort_out(
    paths: _Paths, corners: Corners, regions: Regions, chains: Chains, own: slice, down: np.ndarray, up: np.ndarray
) -> Traced:  # fmt: skip
    """Tell rings from chains."""
    entering, first = len(chains.tails), paths.order[paths.starts[:-1]]
    whole = (first >= own.start) & (first < own.stop)
    lengths = np.diff(paths.kept_before[paths.starts])
    inside = np.repeat(whole, lengths)
    rings = Rings(corners.regions(first[whole] - own.start, regions), lengths[whole], paths.vertices_N2[inside])
    closed: list[tuple[int, np.ndarray]] = []
    tails, heads, of, bodies = [], [], [], list[list[np.ndarray]]()
    tail_places = np.flatnonzero(paths.order < entering)
    rest = np.flatnonzero(~whole)
    cuts = np.searchsorted(tail_places, [paths.starts[rest], paths.starts[rest + 1]]).T.tolist() if len(rest) else []
    bottom = regions.region_of_node[regions.node_HW[-1]]
    for path, (low, high) in zip(rest.tolist(), cuts, strict=True):
        start, stop = int(paths.starts[path]), int(paths.starts[path + 1])
        body, place = list[np.ndarray](), start
        for at in tail_places[low:high].tolist():
            body += [paths.between(place, at).copy(), *chains.bodies[paths.order[at]]]
            place = at
        body = [piece for piece in [*body, paths.between(place, stop).copy()] if len(piece)]
        if first[path] >= own.stop:
            heads.append(int(up[first[path] - own.stop - len(down)]))
            tails.append(int(down[paths.order[stop - 1] - own.stop]))
            of.append(int(bottom[heads[-1] - 1]))
            bodies.append(body)
        else:
            region = int(regions.carried[chains.regions[first[path]]])
            closed += [(region, ring) for ring in cut_where_touching(np.concatenate(body))]
    chained = Chains(np.array(tails, np.int32), np.array(heads, np.int32), np.array(of, np.int32), bodies)
    return Traced(rings, Rings.of(*_columns(closed)).turned(), chained)


def _columns(closed: Sequence[tuple[int, np.ndarray]]) -> tuple[list[int], list[np.ndarray]]:
    return [region for region, _ in closed], [ring for _, ring in closed]
