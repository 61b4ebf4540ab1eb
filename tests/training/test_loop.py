"""The epoch loop: it learns, keeps the best epoch, follows from its seed, and sees nothing but its block."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import Refused
from pipeline.models.networks import build_network
from pipeline.training.loop import Epoch, Recipe, best_epoch, class_weights, train

SMALL = Recipe(epochs=4, batch=2, window=16, learning_rate=3e-2, seed=3)


def task(seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """An image of 48 px square whose class is the sign of its first band, seen through noise; a tenth is unlabelled."""
    random = np.random.default_rng(seed)
    image_CHW = random.normal(size=(2, 48, 48)).astype(np.float32)
    labels_HW = (image_CHW[0] > 0).astype(np.uint8)
    labels_HW[random.random((48, 48)) < 0.1] = 255
    return torch.from_numpy(image_CHW), labels_HW


def fresh(seed: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return build_network("unet", 2, 2, width=4, depth=1, dropout=0.2)


def accuracy(network: nn.Module) -> float:
    assert not network.training
    image_CHW, labels_HW = task()
    with torch.inference_mode():
        ids_HW = network(image_CHW[None])[0].argmax(0).numpy()
    return float((ids_HW == labels_HW)[labels_HW != 255].mean())


def test_it_learns() -> None:
    network = fresh()
    before = accuracy(network)
    epochs = train(network, *task(), replace(SMALL, epochs=16), classes=2, score=accuracy)
    assert accuracy(network) > max(0.85, before + 0.2)
    assert [epoch.number for epoch in epochs] == list(range(1, 17))
    assert epochs[-1].loss < epochs[0].loss


def test_the_best_epoch_is_kept_and_of_equals_the_first() -> None:
    scores, states = iter([0.1, 0.7, 0.7, 0.2]), []

    def score(network: nn.Module) -> float:
        states.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return next(scores)

    network = fresh()
    epochs = train(network, *task(), SMALL, classes=2, score=score)
    assert best_epoch(epochs).number == 2
    kept = network.state_dict()
    assert all(torch.equal(kept[name], states[1][name]) for name in kept)
    assert any(not torch.equal(kept[name], states[2][name]) for name in kept)


def test_two_runs_with_one_seed_give_the_same_weights() -> None:
    runs = []
    for seed in (3, 3, 4):
        network = fresh()
        torch.manual_seed(len(runs))  # what happened before does not matter
        train(network, *task(), Recipe(epochs=2, batch=2, window=16, seed=seed), classes=2, score=accuracy)
        runs.append(torch.cat([tensor.float().ravel() for tensor in network.state_dict().values()]))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_unlabelled_pixels_teach_nothing() -> None:
    """Where every pixel of one class is unlabelled, the other is what everything becomes."""
    image_CHW, labels_HW = task()
    labels_HW[labels_HW == 1] = 255
    network = fresh()
    train(network, image_CHW, labels_HW, SMALL, classes=2, score=lambda _: 0.0)
    with torch.inference_mode():
        assert network(image_CHW[None]).argmax(1).float().mean() < 0.001


def test_progress_is_reported() -> None:
    seen: list[Epoch] = []
    assert train(fresh(), *task(), Recipe(epochs=2, batch=2, window=16), classes=2, score=accuracy, report=seen.append) == seen


def test_a_loss_that_diverges_is_refused() -> None:
    with pytest.raises(Refused, match="choose a smaller --learning-rate"):
        image_CHW, labels_HW = task()
        train(fresh(), image_CHW * float("inf"), labels_HW, SMALL, classes=2, score=lambda _: 0.0)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_class_weights_are_rarity_to_a_power_and_one_on_average(balance: float) -> None:
    labels_HW = np.repeat(np.array([0, 1, 3, 255], np.uint8), [700, 200, 100, 50]).reshape(30, 35)
    weights = class_weights(labels_HW, 4, balance).numpy()
    assert weights[2] == 0
    assert (weights * [700, 200, 0, 100]).sum() == pytest.approx(1000, rel=1e-5)
    assert weights[3] / weights[0] == pytest.approx(7**balance, rel=1e-5)


def test_a_network_without_weights_is_refused() -> None:
    with pytest.raises(Refused, match="no weights to train"):
        train(build_network("identity", 2, 2), *task(), SMALL, classes=2, score=lambda _: 0.0)


def test_weights_of_no_labels_are_refused() -> None:
    with pytest.raises(Refused, match="no pixel of the training block has a class"):
        class_weights(np.full((3, 3), 255, np.uint8), 2, 0.5)


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"batch": 0}, {"learning_rate": float("nan")}, {"balance": 2.0}, {"label_smoothing": 1.0}])
def test_a_recipe_that_cannot_be_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(Refused, match=f"--{next(iter(bad)).replace('_', '-')} .*: out of range"):
        Recipe(**bad)  # type: ignore[arg-type]
