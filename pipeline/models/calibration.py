"""Whether a mask's confidence can be believed: of the pixels called with 80 % confidence, are 80 % right?"""

from __future__ import annotations

import numpy as np

from pipeline.models.bundle import NODATA

PERCENTS = 101  # confidence is saved as a whole percent, 0..100
BINS = 20
COUNT, RIGHT = 0, 1


def calibration_counts(truth_ids: np.ndarray, predicted_ids: np.ndarray, percent: np.ndarray) -> np.ndarray:
    """Count pixels, and those that are right, by confidence: int64 101 x 2, a row for each whole percent.

    `percent` is the highest class probability, uint8 0..100, as `confidence.tif` has it. A pixel that is 255 in any of
    the three is not counted. Counts of parts add up to the counts of the whole.
    """
    known = (truth_ids != NODATA) & (predicted_ids != NODATA) & (percent != NODATA)
    right = known & (truth_ids == predicted_ids)
    return np.stack([np.bincount(percent[which], minlength=PERCENTS)[:PERCENTS] for which in (known, right)], axis=-1)


def binned(counts: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Pixels, right pixels and the sum of confidences (0..1) of each bin, float64 [..., bins, 3], from [..., 101, 2].

    Bins are equally wide; each holds its upper end but not its lower (Guo et al. 2017), the first also 0.
    """
    percents = np.arange(PERCENTS)
    place = np.maximum(0, -(-percents * bins // 100) - 1)
    member = (place[:, None] == np.arange(bins)).astype(float)
    weighted = np.concatenate([counts, counts[..., :1] * percents[:, None] / 100], axis=-1)
    return np.swapaxes(np.swapaxes(weighted, -1, -2) @ member, -1, -2)


def expected_calibration_error(counts: np.ndarray, bins: int = BINS) -> np.ndarray:
    """ECE of counts [..., 101, 2]: the mean of |accuracy - confidence| over bins, weighted by their pixels (Guo et al.
    2017, On calibration of modern neural networks, ICML). NaN where nothing was counted.

    Confidence is rounded to a whole percent, so the value is exact to half a percentage point.
    """
    parts = binned(counts, bins)
    total = parts[..., 0].sum(axis=-1)
    gaps = np.abs(parts[..., 1] - parts[..., 2]).sum(axis=-1)
    return np.divide(gaps, total, out=np.full(np.shape(total), np.nan), where=total > 0)


def mean_confidence(counts: np.ndarray) -> np.ndarray:
    """The mean confidence of all pixels, 0..1; NaN where nothing was counted."""
    total = counts[..., COUNT].sum(axis=-1)
    summed = (counts[..., COUNT] * np.arange(PERCENTS)).sum(axis=-1) / 100
    return np.divide(summed, total, out=np.full(np.shape(total), np.nan), where=total > 0)
