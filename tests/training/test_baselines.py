"""The two baselines, against scikit-learn and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from pipeline.models.metrics import Scores, confusion_matrix
from pipeline.training.baselines import fit_logistic_regression, majority_scores, sample_pixels, score_table
from pipeline.training.statistics import class_weights
from tests.training.labelled import training, write_pair


def pixels(seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Three bands and three overlapping classes of unequal size."""
    random = np.random.default_rng(seed)
    labels_1N = random.choice(3, (1, 2000), p=(0.7, 0.2, 0.1)).astype(np.uint8)
    centres = np.array([[0, 0, 0], [1.5, -1, 0.5], [-1, 1, 1.5]])
    values_C1N = np.moveaxis(centres[labels_1N], -1, 0) + random.normal(size=(3, 1, 2000))
    return torch.from_numpy(values_C1N.astype(np.float32)), labels_1N


@pytest.mark.parametrize("how", ["none", "median-frequency"])
def test_logistic_regression_is_scikit_learns(how: str) -> None:
    values_C1N, labels_1N = pixels()
    weights_K = class_weights(np.bincount(labels_1N[0]), how)
    network = fit_logistic_regression(values_C1N, labels_1N, weights_K)
    features, truth = values_C1N.numpy()[:, 0].T, labels_1N[0]
    oracle = LogisticRegression(C=1.0, tol=1e-10, max_iter=5_000, class_weight=dict(enumerate(weights_K.tolist()))).fit(features, truth)
    with torch.inference_mode():
        shares = network(values_C1N[None])[0].softmax(0).numpy()[:, 0].T
    np.testing.assert_allclose(shares, oracle.predict_proba(features), atol=2e-4)


def test_sampled_pixels_are_labelled_training_pixels(tmp_path: Path) -> None:
    write_pair(tmp_path)
    draws = training(tmp_path).draws()
    values_C1N, labels_1N = sample_pixels(draws, most=500)
    assert values_C1N.shape[0] == 2 and 400 <= labels_1N.size <= 600 and labels_1N.max() <= 1
    assert values_C1N.shape[1:] == labels_1N.shape
    again_C1N, _ = sample_pixels(draws, most=500)
    assert torch.equal(values_C1N, again_C1N)


def test_the_majority_is_that_of_the_training_pixels() -> None:
    truth = confusion_matrix(np.array([0, 0, 0, 1]), np.array([0, 1, 0, 1]), 2)
    scores = majority_scores(np.array([1, 2]), truth)
    assert scores.accuracy == 0.25 and scores.confusion.tolist() == [[0, 3], [0, 1]]


def test_the_table_names_models_classes_and_measures() -> None:
    scores = Scores(confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2))
    lines = score_table({"network": scores, "majority_class": scores}, ["wet", "dry"]).splitlines()
    assert lines[0].split() == ["network", "majority_class"]
    assert lines[1].split() == ["overall", "accuracy", "0.667", "0.667"]
    assert [line.split()[:2] for line in lines[4:]] == [["IoU", "wet"], ["IoU", "dry"], ["F1", "wet"], ["F1", "dry"]]
