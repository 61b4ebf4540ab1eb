"""Intervals and tests over units: how often they hold the truth, and what they say where nothing varies."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.models.bootstrap import clustered_mcnemar, mcnemar, paired_difference, resampled_totals, score_interval
from pipeline.models.metrics import accuracy, mean_f1_of, mean_iou_of


def units(seed: int, count: int = 30, spread: float = 0.1, share: float = 0.8) -> np.ndarray:
    """Confusion matrices of two classes, whose accuracy varies from unit to unit about `share`."""
    random = np.random.default_rng(seed)
    right = np.clip(random.normal(share, spread, (count, 2)), 0, 1)
    hits = random.binomial(500, right)
    return np.stack([np.stack([hits[:, 0], 500 - hits[:, 0]], -1), np.stack([500 - hits[:, 1], hits[:, 1]], -1)], axis=1)


def test_units_that_are_alike_have_no_interval_to_speak_of() -> None:
    same_UKK = np.repeat(np.array([[[90, 10], [20, 80]]]), 12, axis=0)
    for statistic in (accuracy, mean_iou_of):
        low, high = score_interval(same_UKK, statistic)
        assert low == high == statistic(same_UKK[0])


def test_draws_are_of_as_many_units_as_there_are_and_the_same_each_time() -> None:
    counts_U = np.ones((25, 3), int)
    drawn = resampled_totals(counts_U, resamples=250)
    assert drawn.shape == (250, 3) and (drawn == 25).all()
    counts_U = np.arange(25)
    assert (resampled_totals(counts_U, seed=4) == resampled_totals(counts_U, seed=4)).all()
    assert resampled_totals(counts_U).std() == pytest.approx(np.sqrt(25) * counts_U.std(), rel=0.05)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        low, high = score_interval(units(seed), accuracy, resamples=400)
        held += low <= 0.8 <= high
    assert 0.88 <= held / 200 <= 0.99


def test_it_is_far_wider_than_independent_pixels_would_say() -> None:
    low, high = score_interval(units(1), accuracy)
    assert high - low > 3 * 2 * 1.96 * np.sqrt(0.8 * 0.2 / 30_000)


def test_one_unit_has_no_interval() -> None:
    assert np.isnan(score_interval(units(1, count=1), accuracy)).all()
    found = paired_difference(units(1, count=1), units(2, count=1), accuracy)
    assert np.isnan([found.low, found.high, found.p]).all() and np.isfinite(found.value)


def test_a_model_does_not_differ_from_itself() -> None:
    found = paired_difference(units(3), units(3), mean_f1_of)
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_pairing_sees_a_small_difference_that_single_intervals_hide() -> None:
    base = units(4)
    better = base.copy()
    better[:, 0] += np.array([5, -5])  # 5 more pixels right in every unit
    lows, highs = zip(score_interval(base, accuracy), score_interval(better, accuracy), strict=True)
    assert max(lows) < min(highs)
    found = paired_difference(better, base, accuracy)
    assert found.value == pytest.approx(0.005) and found.low == pytest.approx(0.005) and found.p < 0.01


def test_where_there_is_no_difference_one_in_twenty_is_called_significant() -> None:
    called = [paired_difference(units(seed), units(seed + 5_000), accuracy, resamples=400).p < 0.05 for seed in range(200)]
    assert np.mean(called) < 0.12


def test_mcnemar_against_numbers_of_the_literature() -> None:
    assert mcnemar(121, 59) == pytest.approx(5.45e-6, rel=0.02)  # chi2 = 20.672 with the correction, 1 degree of freedom
    assert mcnemar(7, 7) == 1 and np.isnan(mcnemar(0, 0))


def test_clustered_mcnemar_does_not_take_pixels_for_independent() -> None:
    random = np.random.default_rng(5)
    pixels, clusters = [], []
    for _ in range(200):
        gaps = random.normal(0, 100, 40).round()  # neighbours err together: no difference on the whole
        first, second = np.maximum(gaps, 0) + 50, np.maximum(-gaps, 0) + 50
        pixels.append(mcnemar(int(first.sum()), int(second.sum())) < 0.05)
        clusters.append(clustered_mcnemar(first, second) < 0.05)
    assert np.mean(pixels) > 0.5 and np.mean(clusters) < 0.1
    assert clustered_mcnemar(np.full(20, 60), np.full(20, 50)) < 0.001
    assert np.isnan(clustered_mcnemar(np.ones(5), np.ones(5))) and np.isnan(clustered_mcnemar(np.ones(1), np.zeros(1)))
