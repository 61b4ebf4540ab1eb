"""Scores of numbers equal scikit-learn's, and sums of parts are those of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as oracle

from pipeline.models.value_scores import MEASURES, ValueScores, error_sums


def made(seed: int = 0, mean: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.normal(mean, 2, (40, 50)).astype(np.float32)
    return truth, (truth + random.normal(0.5, 1, truth.shape)).astype(np.float32)


@pytest.mark.parametrize("mean", [0.0, 3.0, 50_000.0])
@pytest.mark.parametrize("origin", [0.0, 3.0])
def test_scores_are_scikit_learns(mean: float, origin: float) -> None:
    truth, predicted = made(mean=mean)
    found = ValueScores(error_sums(truth, predicted, origin + mean)).summary
    true, called = truth.ravel().astype(float), predicted.ravel().astype(float)
    assert found["rmse"] == pytest.approx(oracle.root_mean_squared_error(true, called))
    assert found["mae"] == pytest.approx(oracle.mean_absolute_error(true, called))
    assert found["bias"] == pytest.approx((called - true).mean())
    assert found["r2"] == pytest.approx(oracle.r2_score(true, called))


def test_what_is_unknown_in_either_is_not_counted() -> None:
    truth, predicted = made()
    sums = error_sums(truth[:, 5:], predicted[:, 5:])
    truth[:, :5], predicted[:, 3:5] = np.nan, np.inf
    np.testing.assert_array_equal(error_sums(truth, predicted), sums)
    truth[:, :5], predicted[:, :5] = 7, np.nan
    np.testing.assert_array_equal(error_sums(truth, predicted), sums)
    with pytest.raises(ValueError, match="truth is"):
        error_sums(truth[:3], predicted)


def test_parts_add_up_and_measures_take_stacks() -> None:
    truth, predicted = made()
    parts = np.stack([error_sums(truth[rows], predicted[rows], 3.0) for rows in (slice(0, 7), slice(7, 30), slice(30, 40))])
    np.testing.assert_allclose(parts.sum(axis=0), error_sums(truth, predicted, 3.0), rtol=1e-12)
    for measure in MEASURES.values():
        assert measure(parts).shape == (3,) and measure(parts[0]) == pytest.approx(measure(parts)[0])


def test_nothing_and_one_value_have_no_score() -> None:
    nothing = ValueScores(error_sums(np.full(3, np.nan), np.zeros(3)))
    assert nothing.pixels == 0 and nothing.to_json() == {"rmse": None, "mae": None, "bias": None, "r2": None, "pixels": 0}
    flat = ValueScores(error_sums(np.full(30, 1e5 + 0.1), np.full(30, 1e5 + 0.6))).to_json()
    assert flat["r2"] is None and flat["rmse"] == pytest.approx(0.5)


def test_predicting_the_mean_of_the_truth_explains_nothing() -> None:
    truth, _ = made()
    assert ValueScores(error_sums(truth, np.full_like(truth, truth.mean(dtype=float)))).summary["r2"] == pytest.approx(0, abs=1e-6)
