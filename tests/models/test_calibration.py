"""Calibration, against sums done by hand and a loop over pixels."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.models.calibration import binned, calibration_counts, expected_calibration_error, mean_confidence


def sample(seed: int, pixels: int = 4_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, pixels).astype(np.uint8)
    percent = random.integers(33, 101, pixels).astype(np.uint8)
    right = random.random(pixels) < percent / 120
    return truth, np.where(right, truth, (truth + 1) % 3).astype(np.uint8), percent


def test_a_sum_done_by_hand() -> None:
    truth, predicted, percent = np.array([0, 1, 1, 1], np.uint8), np.array([0, 1, 0, 0], np.uint8), np.array([100, 55, 60, 10], np.uint8)
    counts = calibration_counts(truth, predicted, percent)
    # bins of 10 points: (90, 100]: 1 sure, 1 right; (50, 60]: 0.575 sure, 0.5 right, twice; (0, 10]: 0.1 sure, 0 right
    assert expected_calibration_error(counts, 10) == pytest.approx((0 + 2 * 0.075 + 0.1) / 4)
    np.testing.assert_allclose(binned(counts, 10)[[0, 5, 9]], [[1, 0, 0.1], [2, 1, 1.15], [1, 1, 1]])
    assert binned(counts, 10).sum() == pytest.approx(4 + 2 + 2.25)
    assert mean_confidence(counts) == pytest.approx(2.25 / 4)


@pytest.mark.parametrize("bins", [5, 15, 20])
def test_agrees_with_a_loop(bins: int) -> None:
    truth, predicted, percent = sample(1)
    expected = 0.0
    for number in range(bins):
        low, high = 100 * number / bins, 100 * (number + 1) / bins
        inside = (percent > low) & (percent <= high)
        if inside.any():
            expected += inside.sum() * abs((truth == predicted)[inside].mean() - percent[inside].mean() / 100)
    assert expected_calibration_error(calibration_counts(truth, predicted, percent), bins) == pytest.approx(expected / len(truth))


def test_255_in_any_is_not_counted_and_parts_add_up() -> None:
    truth, predicted, percent = sample(2)
    truth[::7], predicted[::5], percent[::3] = 255, 255, 255
    known = (truth != 255) & (predicted != 255) & (percent != 255)
    whole = calibration_counts(truth, predicted, percent)
    assert whole[:, 0].sum() == known.sum() and whole[:, 1].sum() == (known & (truth == predicted)).sum()
    assert (
        whole == sum(calibration_counts(*(each[part] for each in (truth, predicted, percent))) for part in (slice(99), slice(99, None)))
    ).all()


def test_nothing_to_count_and_many_at_once() -> None:
    counts = calibration_counts(*sample(3))
    both = expected_calibration_error(np.stack([counts, np.zeros_like(counts)]))
    assert both[0] == expected_calibration_error(counts) and np.isnan(both[1]) and np.isnan(mean_confidence(np.zeros_like(counts)))


def test_one_who_is_always_as_right_as_sure_has_no_error() -> None:
    counts = np.zeros((101, 2), int)
    counts[[40, 80], 0], counts[[40, 80], 1] = (50, 100), (20, 80)
    assert expected_calibration_error(counts) == pytest.approx(0)
