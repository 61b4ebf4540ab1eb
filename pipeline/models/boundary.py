"""Boundary F1: whether a mask's edges lie where the truth has them (Csurka et al. 2013, What is a good evaluation measure
for semantic segmentation?, BMVC).

Scores of whole areas hardly notice a field edge that is five pixels off; this one sees nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from pipeline.geometry.windows import Window
from pipeline.models.bundle import NODATA
from pipeline.models.metrics import mean_over_classes

DIAGONAL_SHARE = 0.0075  # of an image, that an edge may be off: Csurka et al.'s choice
LARGEST_IMAGE = 512  # px: what an image is where a scene has no end; 5 px may an edge be off there
PREDICTED, PREDICTED_HITS, TRUE, TRUE_HITS = range(4)


def default_tolerance(height: int, width: int) -> int:
    """How many px an edge may be off: 0.75 % of the diagonal of the image, or of 512 x 512 px of a larger one, at least 1.

    >>> default_tolerance(256, 256), default_tolerance(10980, 10980)
    (3, 5)
    """
    return max(1, round(DIAGONAL_SHARE * math.hypot(min(height, LARGEST_IMAGE), min(width, LARGEST_IMAGE))))


def boundary_counts(truth_HW: np.ndarray, predicted_HW: np.ndarray, classes: int, tolerance: int, inner: Window) -> np.ndarray:
    """Count each class's boundary pixels in the window `inner` of two masks, int64 `classes` x 4.

    The columns are: predicted boundary pixels, those within `tolerance` px (Euclidean) of a true one of the class, true
    boundary pixels, and those within `tolerance` px of a predicted one. A pixel is on its class's boundary where one of
    its four neighbours is of another class. Pixels that are 255 in either mask are in neither: they have no boundary, make
    none, and match none; nor does the edge of the array make one.

    Law: where `inner` has `tolerance` + 1 px of context, or ends where the scene ends, counts of windows add up to the
    counts of the whole.
    """
    unknown_HW = (truth_HW == NODATA) | (predicted_HW == NODATA)
    edges = []
    for ids_HW in (truth_HW, predicted_HW):
        known_HW = np.where(unknown_HW, NODATA, ids_HW)
        edges.append(np.where(_on_boundary(known_HW), known_HW, NODATA))
    true_HW, called_HW = edges
    counts = np.zeros((classes, 4), np.int64)
    rows, cols = inner.slices()
    for one_HW, other_HW, total, hits in ((called_HW, true_HW, PREDICTED, PREDICTED_HITS), (true_HW, called_HW, TRUE, TRUE_HITS)):
        counts[:, total] = np.bincount(one_HW[rows, cols].ravel(), minlength=256)[:classes]
        for number in np.flatnonzero(counts[:, total]):
            counts[number, hits] = _near(one_HW == number, other_HW == number, tolerance, inner)
    return counts


def boundary_precision(counts: np.ndarray) -> np.ndarray:
    """Of counts [..., K, 4] the share of predicted boundary pixels that are near a true one, [..., K]."""
    return _ratio(counts[..., PREDICTED_HITS], counts[..., PREDICTED])


def boundary_recall(counts: np.ndarray) -> np.ndarray:
    """Of counts [..., K, 4] the share of true boundary pixels that are near a predicted one, [..., K]."""
    return _ratio(counts[..., TRUE_HITS], counts[..., TRUE])


def boundary_f1(counts: np.ndarray) -> np.ndarray:
    """The harmonic mean of both, [..., K]: 0 where only one mask has the boundary or none is near, NaN where neither has it.

    It is the ratio of the totals, so that scenes and windows add up, where Csurka et al. average the ratios of images.
    """
    precision, recall = (np.nan_to_num(share) for share in (boundary_precision(counts), boundary_recall(counts)))
    both = precision + recall
    value = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
    return np.where(counts[..., PREDICTED] + counts[..., TRUE] == 0, np.nan, value)


def mean_boundary_f1(counts: np.ndarray) -> np.ndarray:
    """The mean over the classes that have a boundary in either mask, [...]."""
    return mean_over_classes(boundary_f1(counts))


def _on_boundary(ids_HW: np.ndarray) -> np.ndarray:
    """Which pixels have a neighbour, above, below, left or right, of another class; 255 is no class."""
    found_HW = np.zeros(ids_HW.shape, bool)
    for one, other in (
        ((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
        ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
    ):
        differ = (ids_HW[one] != ids_HW[other]) & (ids_HW[one] != NODATA) & (ids_HW[other] != NODATA)
        found_HW[one] |= differ
        found_HW[other] |= differ
    return found_HW


def _near(one_HW: np.ndarray, other_HW: np.ndarray, tolerance: int, inner: Window) -> int:
    """How many pixels of one mask in `inner` have a pixel of the other within `tolerance` px.

    Row by row of the disc: running sums along rows say at once whether a stretch holds any; only the few pixels of a
    boundary are looked up.
    """
    if not other_HW.any():
        return 0
    height, width = other_HW.shape
    sums_HW = np.zeros((height, width + 1), np.int32)
    np.cumsum(other_HW, axis=1, out=sums_HW[:, 1:])
    rows, cols = np.nonzero(one_HW[inner.slices()])
    rows, cols = rows + inner.row, cols + inner.col
    found = np.zeros(len(rows), bool)
    for down, reach in _disc(tolerance):
        row = rows + down
        inside = (row >= 0) & (row < height)
        row = np.where(inside, row, 0)
        stop, start = np.minimum(cols + reach + 1, width), np.maximum(cols - reach, 0)
        found |= inside & (sums_HW[row, stop] > sums_HW[row, start])
    return int(found.sum())


def _disc(radius: int) -> Iterator[tuple[int, int]]:
    """The rows of a disc: how far down each is, and how far it reaches to both sides."""
    return ((down, math.isqrt(radius**2 - down**2)) for down in range(-radius, radius + 1))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=np.asarray(whole) > 0)
