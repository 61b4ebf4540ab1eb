"""Scores on held-out blocks and the two baselines, against a whole-image pass and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score

from pipeline.models.metrics import Scores, confusion_matrix
from pipeline.models.networks import build_network
from pipeline.models.receptive import Reach, find_reach
from pipeline.training import evaluation
from pipeline.training.evaluation import classify, context_px, evaluate, fit_logistic_regression, majority_scores, score_table
from tests.toys import wide_logits


def pixels(seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Three bands and three overlapping classes of unequal size; a tenth is unlabelled."""
    random = np.random.default_rng(seed)
    labels_HW = random.choice(3, (40, 50), p=(0.7, 0.2, 0.1)).astype(np.uint8)
    centres = np.array([[0, 0, 0], [1.5, -1, 0.5], [-1, 1, 1.5]])
    image_CHW = np.moveaxis(centres[labels_HW], -1, 0) + random.normal(size=(3, 40, 50))
    labels_HW[random.random((40, 50)) < 0.1] = 255
    return torch.from_numpy(image_CHW.astype(np.float32)), labels_HW


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_logistic_regression_is_scikit_learns(balance: float) -> None:
    image_CHW, labels_HW = pixels()
    network = fit_logistic_regression(image_CHW, labels_HW, classes=3, balance=balance)
    known = labels_HW != 255
    features, truth = image_CHW.numpy()[:, known].T, labels_HW[known]
    oracle = LogisticRegression(C=1.0, tol=1e-10, max_iter=5_000, class_weight="balanced" if balance else None).fit(features, truth)
    with torch.inference_mode():
        logits_KHW = network(image_CHW[None])[0]
    shares = logits_KHW.softmax(0).numpy()[:, known].T
    np.testing.assert_allclose(shares, oracle.predict_proba(features), atol=2e-4)
    scores = evaluate(network, image_CHW, labels_HW, Reach(1, 0, None), 3)
    assert scores.accuracy == pytest.approx(accuracy_score(truth, oracle.predict(features)), abs=2e-3)


def test_logistic_regression_takes_a_sample() -> None:
    image_CHW, labels_HW = pixels()
    fits = [fit_logistic_regression(image_CHW, labels_HW, classes=3, seed=seed, sample=200) for seed in (1, 1, 2)]
    weights = [torch.cat([parameter.ravel() for parameter in network.parameters()]) for network in fits]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_the_majority_is_the_training_blocks() -> None:
    truth = np.array([[0, 0, 0, 1, 255]], np.uint8)
    scores = majority_scores(np.array([[1, 1, 0, 255, 255, 255]], np.uint8), truth, 2)
    assert scores.accuracy == 0.25 and scores.confusion.tolist() == [[0, 3], [0, 1]]


def test_classifying_in_tiles_is_classifying_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    network = wide_logits(build_network("unet", 3, 4, width=4, depth=2), 3, seed=2)
    reach = find_reach(network, 3)
    image_CHW = torch.randn(3, 148, 212)
    with torch.inference_mode():
        whole_HW = network(image_CHW[None])[0].argmax(0).numpy()
    assert len(np.unique(whole_HW)) > 1
    for core in (32, 64, 512):
        monkeypatch.setattr(evaluation, "CORE", core)
        assert (classify(network, image_CHW, reach) == whole_HW).all()


def test_only_labelled_pixels_are_scored() -> None:
    image_CHW, labels_HW = pixels()
    network = build_network("identity", 3, 3)
    scores = evaluate(network, image_CHW, labels_HW, Reach(1, 0, None), 3)
    predicted = image_CHW[0].numpy().round().clip(0, 2)
    known = labels_HW != 255
    assert scores.accuracy == pytest.approx((predicted == labels_HW)[known].mean())
    assert scores.confusion.sum() == known.sum()


def test_context_is_the_exact_halo_or_what_stands_for_it() -> None:
    assert context_px(Reach(8, 48, None)) == 48
    assert context_px(Reach(48, None, "global pooling")) == 144


def test_the_table_names_models_classes_and_measures() -> None:
    scores = Scores(confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2))
    lines = score_table({"network": scores, "majority_class": scores}, ["wet", "dry"]).splitlines()
    assert lines[0].split() == ["network", "majority_class"]
    assert lines[1].split() == ["overall", "accuracy", "0.667", "0.667"]
    assert [line.split()[:2] for line in lines[4:]] == [["IoU", "wet"], ["IoU", "dry"], ["F1", "wet"], ["F1", "dry"]]
