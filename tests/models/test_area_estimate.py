"""Error-adjusted areas against the worked example of Olofsson et al. 2014, and against maps whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.models.area_estimate import error_adjusted_areas, resampled_areas

# Olofsson et al. 2014, table 8: rows are mapped as deforestation, forest gain, stable forest, stable non-forest
SAMPLE = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
MAPPED_PX = np.array([200_000, 150_000, 3_200_000, 6_450_000])
HA = 0.09  # of a Landsat pixel


def test_the_papers_worked_example() -> None:
    estimate = error_adjusted_areas(SAMPLE.T, MAPPED_PX)
    assert (estimate.area * HA).round().tolist() == [21_158, 11_686, 285_770, 581_386]  # section 5.2: hectares
    assert (1.96 * estimate.area_se * HA).round().tolist() == [6_158, 3_756, 15_510, 16_282]
    assert estimate.area[0] == pytest.approx(235_086, abs=1) and estimate.area_se[0] / MAPPED_PX.sum() == pytest.approx(0.0035, abs=5e-5)
    assert estimate.users.round(2).tolist() == [0.88, 0.73, 0.93, 0.96]
    assert (1.96 * estimate.users_se).round(2).tolist() == [0.07, 0.10, 0.04, 0.02]
    assert estimate.producers.round(2).tolist() == [0.75, 0.85, 0.93, 0.96]
    assert 1.96 * estimate.producers_se[0] == pytest.approx(0.21, abs=0.005)
    assert estimate.overall == pytest.approx(0.95, abs=0.005) and 1.96 * estimate.overall_se == pytest.approx(0.02, abs=0.002)
    assert estimate.sample.tolist() == [75, 75, 165, 325]
    np.testing.assert_allclose([estimate.low[0] * HA, estimate.high[0] * HA], [15_000, 27_315], atol=1)


def test_areas_add_up_to_the_map() -> None:
    random = np.random.default_rng(0)
    for _ in range(5):
        confusion, mapped = random.integers(1, 50, (6, 6)), random.random(6) * 1e6
        assert error_adjusted_areas(confusion, mapped).area.sum() == pytest.approx(mapped.sum())


def test_counts_of_the_whole_map_give_the_true_areas() -> None:
    confusion = np.random.default_rng(1).integers(1, 5_000, (4, 4))
    estimate = error_adjusted_areas(confusion, confusion.sum(axis=0) * 900.0)
    np.testing.assert_allclose(estimate.area, confusion.sum(axis=1) * 900.0)
    np.testing.assert_allclose(estimate.producers, np.diag(confusion) / confusion.sum(axis=1))
    np.testing.assert_allclose(estimate.users, np.diag(confusion) / confusion.sum(axis=0))


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """A million pixels, of which 500 of each mapped class are looked up, 600 times over."""
    random = np.random.default_rng(2)
    joint = np.array([[0.10, 0.02, 0.01], [0.03, 0.30, 0.04], [0.02, 0.08, 0.40]])  # [truth, mapped]
    mapped = joint.sum(axis=0) * 1e6
    held = np.zeros(3)
    errors = []
    for _ in range(600):
        confusion = np.stack([random.multinomial(500, joint[:, k] / joint[:, k].sum()) for k in range(3)], axis=1)
        estimate = error_adjusted_areas(confusion, mapped)
        held += (estimate.low <= joint.sum(axis=1) * 1e6) & (joint.sum(axis=1) * 1e6 <= estimate.high)
        errors.append((estimate.producers - np.diag(joint) / joint.sum(axis=1)) / estimate.producers_se)
    assert (np.abs(held / 600 - 0.95) < 0.03).all()
    assert (np.abs(np.std(errors, axis=0) - 1) < 0.1).all()  # producer's standard errors are right, too


def test_a_class_that_the_map_has_and_the_sample_lacks_makes_all_unknown() -> None:
    confusion = np.array([[10, 0], [5, 0]])
    assert np.isnan(error_adjusted_areas(confusion, np.array([1.0, 1.0])).area).all()
    without = error_adjusted_areas(confusion, np.array([3.0, 0.0]))
    np.testing.assert_allclose(without.area, [2, 1])
    assert np.isnan(without.users[1]) and not np.isnan(without.area_se).any()


def test_resampled_areas_are_the_estimates() -> None:
    confusions = np.random.default_rng(3).integers(1, 90, (7, 4, 4))
    mapped = np.array([4.0, 3.0, 2.0, 1.0])
    expected = [error_adjusted_areas(confusion, mapped).area for confusion in confusions]
    np.testing.assert_allclose(resampled_areas(confusions, mapped), expected)
