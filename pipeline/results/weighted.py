"""Mean, spread and percentiles of weighted values, for many groups at once, or for one that does not fit into memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

STATISTICS = ("mean", "std", "minimum", "p10", "p25", "median", "p75", "p90", "maximum")
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
BINS = 2**16  # between the lowest and the highest value of a group that is streamed: its percentiles are as fine


def weighted_statistics(group_N: np.ndarray, values_N: np.ndarray, weights_N: np.ndarray, groups: int) -> np.ndarray:
    """STATISTICS of each of `groups` groups, G x 9 float64; NaN where a group has no finite value.

    `std` is that of the population. The percentile q lies at q of the way along S_k = (k - 1) w_k + (n - 1) (w_1 + ... + w_(k-1)),
    between the sorted values: with equal weights numpy's own, and as exactextract has it.
    """
    found = np.full((groups, len(STATISTICS)), np.nan)
    known = np.isfinite(values_N)
    group_N, values_N, weights_N = group_N[known], values_N[known], weights_N[known].astype(np.float64)
    counts = np.bincount(group_N, minlength=groups)
    there = np.flatnonzero(counts)
    if not len(there):
        return found
    total = np.bincount(group_N, weights_N, groups)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(group_N, weights_N * values_N, groups) / total
        squares = np.bincount(group_N, weights_N * np.square(values_N - mean[group_N]), groups) / total
    order = np.argsort(_keys(group_N, values_N))
    group_N, values_N, weights_N = group_N[order], values_N[order], weights_N[order]
    first = np.cumsum(counts) - counts
    found[:, 0], found[:, 1] = mean, np.sqrt(squares)
    found[there, 2], found[there, 8] = values_N[first[there]], values_N[first[there] + counts[there] - 1]
    place = np.arange(len(group_N)) - first[group_N]
    before = np.cumsum(weights_N) - weights_N
    before -= before[np.minimum(first, len(before) - 1)][group_N]
    along = place * weights_N + (counts[group_N] - 1) * before
    for number, quantile in enumerate(QUANTILES, 3):
        found[there, number] = _at(quantile, along, values_N, first[there], counts[there])
    return found


def _keys(group_N: np.ndarray, values_N: np.ndarray) -> np.ndarray:
    """Whole numbers in the order of group and then value: sorting them takes a tenth of `lexsort`. Values count as float32."""
    bits = (values_N + 0.0).astype(np.float32).view(np.int32)
    rising = np.where(bits < 0, ~(bits & 0x7FFFFFFF), bits)
    return (group_N.astype(np.int64) << 32) + rising


def _at(quantile: float, along: np.ndarray, values: np.ndarray, first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The value at a share of the way of each group."""
    last = first + counts - 1
    owner = np.repeat(np.arange(len(first)), counts)
    share = np.divide(along, along[last][owner], out=np.zeros_like(along), where=along[last][owner] > 0)
    # shares rise from 0 to 1 in each group: two further on in the next, one search finds the places of all
    right = np.clip(np.searchsorted(share + 2 * owner, quantile + 2 * np.arange(len(first))), first, last)
    left = np.maximum(right - 1, first)
    width = share[right] - share[left]
    part = np.divide(quantile - share[left], width, out=np.zeros_like(width), where=width > 0)
    return values[left] + np.clip(part, 0, 1) * (values[right] - values[left])


def streamed_statistics(chunks: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]) -> np.ndarray:
    """STATISTICS of one group whose values and weights come in chunks, asked for twice: percentiles within (maximum - minimum) / BINS."""
    weight, mean, squares, low, high = 0.0, 0.0, 0.0, math.inf, -math.inf
    for values, weights in _finite(chunks()):
        more, part = float(weights.sum()), float(np.average(values, weights=weights))
        together = weight + more
        squares += float((weights * np.square(values - part)).sum()) + (part - mean) ** 2 * weight * more / together
        mean, weight = mean + (part - mean) * more / together, together
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    if not weight:
        return np.full(len(STATISTICS), np.nan)
    if low == high:
        return np.array([mean, 0.0, *[low] * (len(QUANTILES) + 2)])
    bins = np.zeros(BINS)
    for values, weights in _finite(chunks()):
        place = np.minimum((values - low) * (BINS / (high - low)), BINS - 1).astype(np.int64)
        bins += np.bincount(place, weights, BINS)
    along = np.concatenate([[0.0], np.cumsum(bins)])
    edges = np.linspace(low, high, BINS + 1)
    percentiles = np.interp(np.array(QUANTILES) * along[-1], along, edges)
    return np.array([mean, math.sqrt(squares / weight), low, *percentiles, high])


def _finite(chunks: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    for values, weights in chunks:
        known = np.isfinite(values)
        if known.any():
            yield values[known], weights[known].astype(np.float64)
