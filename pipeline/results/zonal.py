"""What the scenes of one date say of each parcel: class areas, confidence and indices, each place on the ground counted once.

A parcel is told by the scene with the largest valid area in it; of those within 1 % of the best by the first in their order of
priority. Where that scene's grid does not hold all of the parcel, the rest of the polygon is told by the next scenes, by the same
rule. So areas add up to the parcel, and never to more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import shapely

from pipeline.imagery.parcels import Parcels
from pipeline.imagery.pixel_space import from_pixels, only_polygons, to_pixels
from pipeline.imagery.raster import Grid
from pipeline.results.coverage import MOST_PIXELS, Coverage, Piece
from pipeline.results.seen import Look, Sample, SeenScene, opened
from pipeline.results.weighted import STATISTICS, streamed_statistics, weighted_statistics

OUTSIDE, UNKNOWN, KNOWN = range(3)
STATES = ("outside", "unknown", "known")
AS_GOOD = 0.99  # of the best scene's valid area
MINIMUM_VALID_SHARE = 0.5
GRIDS_KEPT = 16  # 30 MB on disk for 36 million pixels of parcels each


@dataclass(frozen=True)
class ParcelStatistics:
    """Of P parcels and K classes; all numbers of what no scene shows are 0, of indices NaN.

    `state_P` says which numbers to believe: an UNKNOWN parcel has too few valid pixels, an OUTSIDE one lies in no scene.
    """

    state_P: np.ndarray  # uint8: a place in STATES
    scene_P: np.ndarray  # int32: the scene that tells most of it; -1 outside
    valid_share_P: np.ndarray  # of the parcel's ground area, 0..1
    pixels_PK: np.ndarray  # a pixel on the border counts for the share of it that is inside
    area_m2_PK: np.ndarray
    confidence_PK: np.ndarray | None  # sums, 0..100 a pixel; None where no scene has any
    indices: dict[str, np.ndarray]  # P x 9: STATISTICS of the valid pixels, weighted by coverage

    def only(self, kept_P: np.ndarray) -> ParcelStatistics:
        """Of some of the parcels."""
        confidence_PK = self.confidence_PK[kept_P] if self.confidence_PK is not None else None
        return ParcelStatistics(
            self.state_P[kept_P], self.scene_P[kept_P], self.valid_share_P[kept_P], self.pixels_PK[kept_P], self.area_m2_PK[kept_P],
            confidence_PK, {name: index_P9[kept_P] for name, index_P9 in self.indices.items()},
        )  # fmt: skip


class Reach(NamedTuple):
    """The parcels on a grid: which touch it, which lie in it as a whole, and the pixels of all."""

    touching_P: np.ndarray
    held_P: np.ndarray
    coverage: Coverage


class Coverages:
    """The pixels of parcels on the grids that they were last asked for on, kept for the next date."""

    def __init__(self, parcels: Parcels):
        self.parcels = parcels
        self._known: dict[Grid, Reach] = {}

    def on(self, grid: Grid) -> Reach:
        if grid not in self._known:
            pixels = to_pixels(self.parcels.polygons, self.parcels.crs, grid)
            touching, held = _inside(pixels, grid)
            self._known[grid] = Reach(touching, held, Coverage(pixels, grid.height, grid.width))
        self._known[grid] = self._known.pop(grid)  # the last to be let go
        while len(self._known) > GRIDS_KEPT:
            del self._known[next(iter(self._known))]
        return self._known[grid]


def _inside(pixels: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Which polygons touch a grid, and which have no corner outside."""
    touching = ~shapely.is_empty(pixels)
    left, top, right, bottom = shapely.bounds(pixels).reshape(-1, 4).T
    return touching, touching & (left >= 0) & (top >= 0) & (right <= grid.width) & (bottom <= grid.height)


def parcel_statistics(
    coverages: Coverages, scenes: Sequence[SeenScene], classes: int, minimum_valid_share: float = MINIMUM_VALID_SHARE
) -> ParcelStatistics:  # fmt: skip
    """Statistics of all parcels from the scenes of one date, in their order of priority; `classes` is 0 where there are no masks.

    A parcel is known where `minimum_valid_share` of its ground area is valid, and some of it. Raises Refused for a scene without a
    place on the ground, and Unreadable where a window cannot be read.
    """
    if len({tuple(seen.indices) for seen in scenes}) > 1:
        raise ValueError("the scenes of one date have different indices")
    with ExitStack() as stack:
        places = [stack.enter_context(opened(seen)) for seen in scenes]
        views = [View(grid, look, coverages.on(grid)) for grid, look in places]
        names = list(scenes[0].indices) if scenes else []
        return _Telling(coverages.parcels, views, classes, names, any(seen.confidence for seen in scenes)).tell(minimum_valid_share)


class View(NamedTuple):
    """A scene that is open, and the parcels on it."""

    grid: Grid
    look: Look
    reach: Reach


class Counts:
    """Sums over the pixels of some parcels: `pixels`, `area_m2`, `confidence` by class, and `seen_m2`, valid or not."""

    def __init__(self, parcels: int, classes: int):
        self._columns = max(classes, 1)  # without classes what is valid is counted as one
        self.pixels, self.area_m2, self.confidence = (np.zeros((parcels, self._columns)) for _ in range(3))
        self.seen_m2 = np.zeros(parcels)

    def add(self, owner_G: np.ndarray, piece: Piece, sample: Sample) -> None:
        """Count a piece; its parcel g is row `owner_G[g]`, or in none where that is below 0. A row is named once."""
        kept_G, columns = owner_G >= 0, self._columns
        rows, groups = owner_G[kept_G], len(owner_G)
        valid_N = sample.class_N < columns
        key_N = (piece.parcel_N * np.int64(columns) + sample.class_N)[valid_N]
        weights = {"pixels": piece.coverage_N[valid_N], "area_m2": sample.area_m2_N[valid_N]}
        if sample.confidence_N is not None:
            weights["confidence"] = weights["pixels"] * sample.confidence_N[valid_N]
        for name, weight in weights.items():
            getattr(self, name)[rows] += np.bincount(key_N, weight, groups * columns).reshape(groups, columns)[kept_G]
        self.seen_m2[rows] += np.bincount(piece.parcel_N, sample.area_m2_N, groups)[kept_G]

    def take(self, rows: np.ndarray, other: Counts, others: np.ndarray) -> None:
        """Put some rows of another's in place of some of these."""
        for name in ("pixels", "area_m2", "confidence", "seen_m2"):
            getattr(self, name)[rows] = getattr(other, name)[others]

    @property
    def valid_m2(self) -> np.ndarray:
        return self.area_m2.sum(axis=1)


class _Telling:
    """One date's statistics in the making."""

    def __init__(self, parcels: Parcels, views: list[View], classes: int, names: list[str], confidence: bool):
        self.parcels, self.views, self.classes, self.confidence = parcels, views, classes, confidence
        self.total = Counts(len(parcels), classes)
        self.scene_P = np.full(len(parcels), -1, np.int32)
        self.index_P9 = {name: np.full((len(parcels), len(STATISTICS)), np.nan) for name in names}

    def tell(self, minimum_valid_share: float) -> ParcelStatistics:
        counts = [self._count(view) for view in self.views]
        split_P = self._choose(counts)
        shared_P = split_P | self._index_whole(split_P)
        numbers = np.flatnonzero(shared_P)
        self._tell_shares(numbers, [worth_m2(view, count)[numbers] for view, count in zip(self.views, counts, strict=True)])
        total, valid_m2 = self.total, self.total.valid_m2
        share_P = np.minimum(valid_m2 / self.parcels.area_m2, 1)
        known_P = (share_P >= minimum_valid_share) & (valid_m2 > 0)
        state_P = np.where(self.scene_P < 0, OUTSIDE, np.where(known_P, KNOWN, UNKNOWN)).astype(np.uint8)
        by_class = np.s_[:, : self.classes]
        return ParcelStatistics(
            state_P, self.scene_P, share_P, total.pixels[by_class], total.area_m2[by_class],
            total.confidence[by_class] if self.confidence else None, self.index_P9,
        )  # fmt: skip

    def _count(self, view: View) -> Counts:
        """What a scene shows of all parcels that touch it, a row for each of them."""
        row_P = np.where(view.reach.touching_P, np.cumsum(view.reach.touching_P) - 1, -1)
        counts = Counts(int(view.reach.touching_P.sum()), self.classes)
        for piece in view.reach.coverage:
            counts.add(row_P[piece.parcels_G], piece, view.look(piece, indices=False))
        return counts

    def _choose(self, counts: list[Counts]) -> np.ndarray:
        """Choose the scene of each parcel, and take over what it shows; returns which parcels others have to tell the rest of."""
        worth_SP = [worth_m2(view, count) for view, count in zip(self.views, counts, strict=True)]
        best_P = np.max([np.zeros(len(self.parcels)), *worth_SP], axis=0)
        touched_P, held_P = np.zeros(len(self.parcels), int), np.zeros(len(self.parcels), bool)
        for number, (view, count, worth_P) in enumerate(zip(self.views, counts, worth_SP, strict=True)):
            mine_P = (self.scene_P < 0) & (worth_P > 0) & (worth_P >= AS_GOOD * best_P)
            self.scene_P[mine_P] = number
            held_P |= mine_P & view.reach.held_P
            touched_P += worth_P > 0
            self.total.take(mine_P, count, mine_P[view.reach.touching_P])
        return ~held_P & (touched_P > 1)

    def _index_whole(self, split_P: np.ndarray) -> np.ndarray:
        """The indices of the parcels that one scene tells and one piece holds; returns which have more pieces."""
        large_P = np.zeros(len(self.parcels), bool)
        for number, view in enumerate(self.views if self.index_P9 else ()):
            for piece in view.reach.coverage:
                mine_G = (self.scene_P[piece.parcels_G] == number) & ~split_P[piece.parcels_G]
                if not piece.whole:
                    large_P[piece.parcels_G[mine_G]] = True
                elif mine_G.any():
                    sample = view.look(piece, indices=True)
                    for name, index_N in sample.index_N.items():
                        found = weighted_statistics(piece.parcel_N, index_N, piece.coverage_N, len(mine_G))
                        self.index_P9[name][piece.parcels_G[mine_G]] = found[mine_G]
        return large_P

    def _tell_shares(self, numbers: np.ndarray, worth_SD: list[np.ndarray]) -> None:
        """What several scenes, or several pieces, show of the parcels `numbers`: as many at once as memory should hold."""
        shares = list(self._shares(numbers, worth_SD))
        pixels_D = np.sum([np.zeros(len(numbers)), *(shapely.area(share.pixels_D) for share in shares)], axis=0)
        for batch in _batches(pixels_D):
            parts = [(share.view, Coverage(share.pixels_D[batch], share.view.grid.height, share.view.grid.width)) for share in shares]
            self._tell_batch(numbers[batch], parts, streamed=pixels_D[batch].sum() > MOST_PIXELS)

    def _shares(self, numbers: np.ndarray, worth_SD: list[np.ndarray]) -> Iterator[Share]:
        """Which part of each polygon each scene tells: the best one what its grid holds, the next best of the rest, and so on."""
        rest_D, left_SD = self.parcels.polygons[numbers], np.array(worth_SD).reshape(len(self.views), len(numbers))
        for _ in self.views:
            best_D = left_SD.max(axis=0)
            choice_D = np.where(best_D > 0, (left_SD >= AS_GOOD * best_D).argmax(axis=0), -1)
            for number, view in enumerate(self.views):
                mine = np.flatnonzero((choice_D == number) & ~shapely.is_empty(rest_D))
                pixels, whole = to_pixels(rest_D[mine], self.parcels.crs, view.grid), shapely.box(0, 0, view.grid.width, view.grid.height)
                mine, pixels = mine[~shapely.is_empty(pixels)], pixels[~shapely.is_empty(pixels)]
                if len(mine):
                    share_D = np.full(len(numbers), shapely.Polygon(), object)
                    share_D[mine] = only_polygons(shapely.intersection(pixels, whole))
                    rest_D[mine] = from_pixels(only_polygons(shapely.difference(pixels, whole)), self.parcels.crs, view.grid)
                    yield Share(view, share_D)
            left_SD[choice_D, np.arange(len(numbers))] = 0

    def _tell_batch(self, numbers: np.ndarray, parts: list[tuple[View, Coverage]], *, streamed: bool) -> None:
        def shown() -> Iterator[tuple[Piece, Sample]]:
            return ((piece, view.look(piece, indices=True)) for view, coverage in parts for piece in coverage)

        counts, pooled = Counts(len(numbers), self.classes), []
        for piece, sample in shown():
            counts.add(piece.parcels_G, piece, sample)
            if not streamed:
                pooled.append((piece.parcels_G[piece.parcel_N], sample.index_N, piece.coverage_N))
        self.total.take(numbers, counts, np.arange(len(numbers)))
        for name, index_P9 in self.index_P9.items():
            if streamed:  # one parcel, larger than memory should hold

                def chunks(name: str = name) -> Iterator[tuple[np.ndarray, np.ndarray]]:
                    return ((sample.index_N[name], piece.coverage_N) for piece, sample in shown())

                index_P9[numbers] = streamed_statistics(chunks)
            elif pooled:
                owner, values, weights = (np.concatenate(each) for each in zip(*((o, v[name], w) for o, v, w in pooled), strict=True))
                index_P9[numbers] = weighted_statistics(owner, values, weights, len(numbers))


def _batches(sizes: np.ndarray) -> Iterator[np.ndarray]:
    """Cut into runs that are at most MOST_PIXELS together; a larger one is alone."""
    start, together = 0, 0.0
    for number, size in enumerate(sizes):
        together += size
        if together > MOST_PIXELS and number > start:
            yield np.arange(start, number)
            start, together = number, size
    if start < len(sizes):
        yield np.arange(start, len(sizes))


class Share(NamedTuple):
    """What one scene tells of some polygons: `pixels_D` in its (col, row), empty where it tells nothing."""

    view: View
    pixels_D: np.ndarray


def worth_m2(view: View, counts: Counts) -> np.ndarray:
    """How much of each of all parcels a scene shows: the valid area, and where no scene has any the area it reaches."""
    worth_P = np.zeros(len(view.reach.touching_P))
    worth_P[view.reach.touching_P] = counts.valid_m2 + 1e-6 * counts.seen_m2
    return worth_P
