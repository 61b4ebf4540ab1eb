"""Scores against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as oracle

from pipeline.models.metrics import CLASS_MEASURES, MEASURES, Scores, confusion_matrix, mean_precision_of, mean_recall_of

NAMES = ["water", "forest", "town", "field"]


def random_ids(seed: int, pixels: int = 5_000, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, pixels).astype(np.uint8)
    predicted = np.where(random.random(pixels) < 0.6, truth, random.integers(0, classes, pixels)).astype(np.uint8)
    return truth, predicted


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_scikit_learn(seed: int) -> None:
    truth, predicted = random_ids(seed)
    scores = Scores(confusion_matrix(truth, predicted, 4))
    assert (scores.confusion == oracle.confusion_matrix(truth, predicted, labels=range(4))).all()
    np.testing.assert_allclose(scores.iou, oracle.jaccard_score(truth, predicted, average=None))
    np.testing.assert_allclose(scores.f1, oracle.f1_score(truth, predicted, average=None))
    assert scores.accuracy == pytest.approx(oracle.accuracy_score(truth, predicted))
    assert scores.mean_iou == pytest.approx(oracle.jaccard_score(truth, predicted, average="macro"))
    assert scores.mean_f1 == pytest.approx(oracle.f1_score(truth, predicted, average="macro"))
    np.testing.assert_allclose(scores.precision, oracle.precision_score(truth, predicted, average=None))
    np.testing.assert_allclose(scores.recall, oracle.recall_score(truth, predicted, average=None))
    assert scores.kappa == pytest.approx(oracle.cohen_kappa_score(truth, predicted))
    assert scores.frequency_weighted_iou == pytest.approx(oracle.jaccard_score(truth, predicted, average="weighted"))
    assert mean_recall_of(scores.confusion) == pytest.approx(oracle.balanced_accuracy_score(truth, predicted))
    assert mean_precision_of(scores.confusion) == pytest.approx(oracle.precision_score(truth, predicted, average="macro"))


def test_many_matrices_at_once_are_each_by_itself() -> None:
    matrices = np.random.default_rng(6).integers(0, 50, (3, 2, 4, 4))
    matrices[0, 0] = 0
    for measure in (*MEASURES.values(), *CLASS_MEASURES.values()):
        together = measure(matrices)
        for place in np.ndindex(3, 2):
            np.testing.assert_array_equal(together[place], measure(matrices[place]))


def test_kappa_where_chance_agrees_on_everything_and_where_it_is_worse() -> None:
    assert np.isnan(Scores(np.array([[7, 0], [0, 0]])).kappa)
    assert Scores(np.array([[0, 5], [5, 0]])).kappa == pytest.approx(oracle.cohen_kappa_score([0] * 5 + [1] * 5, [1] * 5 + [0] * 5))


def test_precision_and_recall_of_a_class_that_one_side_lacks() -> None:
    scores = Scores(confusion_matrix(np.array([0, 0, 1]), np.array([0, 2, 0]), 3))
    assert np.isnan(scores.precision).tolist() == [False, True, False] and np.isnan(scores.recall).tolist() == [False, False, True]
    np.testing.assert_allclose(scores.f1, [0.5, 0, 0])
    np.testing.assert_allclose(scores.iou, oracle.jaccard_score([0, 0, 1], [0, 2, 0], average=None))


def test_255_in_either_is_not_counted() -> None:
    truth, predicted = random_ids(3)
    truth[::7], predicted[::5] = 255, 255
    known = (truth != 255) & (predicted != 255)
    assert (confusion_matrix(truth, predicted, 4) == oracle.confusion_matrix(truth[known], predicted[known], labels=range(4))).all()


def test_parts_add_up_to_the_whole() -> None:
    truth, predicted = (ids.reshape(50, 100) for ids in random_ids(4))
    parts = [confusion_matrix(truth[rows], predicted[rows], 4) for rows in (slice(0, 13), slice(13, 50))]
    assert (sum(parts) == confusion_matrix(truth, predicted, 4)).all()


def test_a_class_that_is_nowhere_has_no_score_and_no_part_in_the_mean() -> None:
    truth, predicted = random_ids(5, classes=2)
    scores = Scores(confusion_matrix(truth, predicted, 4))
    assert np.isnan(scores.iou[2:]).all() and np.isnan(scores.f1[2:]).all()
    assert scores.mean_iou == pytest.approx(oracle.jaccard_score(truth, predicted, average="macro"))
    told = scores.to_json(NAMES)
    assert told["iou"]["town"] is None and told["mean_iou"] == round(scores.mean_iou, 5)


def test_a_class_that_is_only_predicted_scores_zero() -> None:
    scores = Scores(confusion_matrix(np.array([0, 0, 1]), np.array([0, 2, 1]), 3))
    np.testing.assert_allclose(scores.iou, [0.5, 1, 0])
    assert scores.mean_iou == pytest.approx(0.5)


def test_nothing_to_count() -> None:
    scores = Scores(confusion_matrix(np.full(3, 255), np.zeros(3, int), 2))
    assert np.isnan(scores.accuracy) and np.isnan(scores.mean_iou)
    assert scores.to_json(["a", "b"])["accuracy"] is None


@pytest.mark.parametrize("bad", [np.array([0, 4]), np.array([-1, 0])])
def test_refuses_ids_that_are_no_class(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="4 classes"):
        confusion_matrix(bad, np.zeros(2, int), 4)
    with pytest.raises(ValueError, match="truth is"):
        confusion_matrix(np.zeros(3, int), np.zeros(2, int), 4)
