"""The epoch loop: it learns, keeps the best epoch, follows from its seed, and goes on where it stopped."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import Refused
from pipeline.models.metrics import Scores
from pipeline.models.networks import build_network
from pipeline.training import loop
from pipeline.training.fit import Training
from pipeline.training.loop import Recipe, Trainer, best_epoch, rate
from pipeline.training.validation import score
from tests.training.labelled import RECIPE, training, write_pair

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Training:
    folder = tmp_path_factory.mktemp("pair")
    write_pair(folder)
    return training(folder, replace(RECIPE, epochs=4, learning_rate=1e-2))


def trainer_of(task: Training, recipe: Recipe | None = None, **arguments: Any) -> Trainer:
    torch.manual_seed(5)
    network = build_network("unet", 2, 2, **(task.arguments | {"dropout": 0.2} | arguments))
    task = replace(task, recipe=recipe or task.recipe)
    return Trainer(network, task.draws(), task.recipe, task.task.loss(), CPU)


def scoring(task: Training) -> Callable[[nn.Module], Scores]:
    return lambda network: score(network, task.split.validation, task.statistics.bands, task.reach)


def given(values: Iterator[float]) -> Callable[[nn.Module], Scores]:
    """Scores that were thought out: confusion matrices of such a mean IoU."""

    def confusion(value: float) -> np.ndarray:
        hits = round(10_000 * value)
        return np.array([[hits, 0], [0, 0]]) + np.array([[0, 10_000 - hits], [0, 0]])

    return lambda _: Scores(confusion(next(values)))


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([tensor.float().ravel() for tensor in trainer.network.state_dict().values()])


def finish(trainer: Trainer, scored: Callable[[nn.Module], Scores]) -> Trainer:
    while not trainer.finished:
        trainer.run_epoch(scored)
    return trainer


def test_it_learns(task: Training) -> None:
    trainer = finish(trainer_of(task, replace(task.recipe, epochs=12)), scoring(task))
    assert trainer.epochs[-1].loss < 0.7 * trainer.epochs[0].loss
    assert best_epoch(trainer.epochs).scores["accuracy"] > 0.8
    assert [epoch.number for epoch in trainer.epochs] == list(range(1, 13))


def test_the_best_epoch_is_kept_and_of_equals_the_first(task: Training) -> None:
    states, scored = [], given(iter([0.1, 0.7, 0.7, 0.2]))
    trainer = trainer_of(task)
    while not trainer.finished:
        trainer.run_epoch(scored)
        states.append({name: tensor.clone() for name, tensor in trainer.network.state_dict().items()})
    assert best_epoch(trainer.epochs).number == 2
    assert all(torch.equal(trainer.best[name], states[1][name]) for name in states[1])
    assert any(not torch.equal(trainer.best[name], states[2][name]) for name in states[1])


def test_patience_ends_it(task: Training) -> None:
    trainer = finish(trainer_of(task, replace(task.recipe, epochs=9, patience=2)), given(iter([0.1, 0.7, 0.6, 0.5, 0.9])))
    assert len(trainer.epochs) == 4 and best_epoch(trainer.epochs).number == 2


def test_two_runs_with_one_seed_give_the_same_weights(task: Training) -> None:
    runs = []
    for seed in (3, 3, 4):
        trainer = trainer_of(task, replace(task.recipe, seed=seed, epochs=2))
        torch.manual_seed(len(runs))  # what happened before does not matter
        runs.append(weights(finish(trainer, scoring(task))))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("recipe", [{"optimiser": "adamw"}, {"optimiser": "sgd", "schedule": "one-cycle"}, {"ema": 0.9, "warm_up": 1.5}])
def test_resumed_equals_uninterrupted_bit_for_bit(task: Training, recipe: dict[str, Any]) -> None:
    asked = replace(task.recipe, **recipe)
    whole = finish(trainer_of(task, asked), scoring(task))
    first = trainer_of(task, asked)
    for _ in range(2):
        first.run_epoch(scoring(task))
    kept = io.BytesIO()
    torch.save(first.state(), kept)
    kept.seek(0)
    second = trainer_of(task, asked)
    second.load(torch.load(kept, weights_only=True))
    finish(second, scoring(task))
    assert torch.equal(weights(second), weights(whole))
    assert all(torch.equal(second.best[name], tensor) for name, tensor in whole.best.items())
    assert [replace(epoch, seconds=0.0) for epoch in second.epochs] == [replace(epoch, seconds=0.0) for epoch in whole.epochs]


def test_a_batch_in_pieces_teaches_the_same(task: Training) -> None:
    """Without BatchNorm, whose statistics are those of a piece."""
    runs = []
    for pieces in (1, 2, 4):
        trainer = trainer_of(task, replace(task.recipe, batch=4, accumulate=pieces, epochs=1, optimiser="sgd", augment="none"), dropout=0.0)
        for module in trainer.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.forward = lambda batch_BCHW: batch_BCHW  # type: ignore[method-assign, assignment]
        runs.append(weights(finish(trainer, scoring(task))))
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(runs[0], runs[2], rtol=1e-4, atol=1e-6)


def test_the_average_of_the_weights_is_what_is_scored_and_kept(task: Training) -> None:
    trainer = trainer_of(task, replace(task.recipe, ema=0.9, epochs=1))
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    trainer.run_epoch(scoring(task))
    name = "head.weight"
    moved = [(state[name] - before[name]).norm().item() for state in (trainer.network.state_dict(), trainer.best)]
    assert 0 < moved[1] < moved[0]
    assert torch.equal(trainer.best[name], trainer.result.state_dict()[name])


def test_a_frozen_encoder_stays_as_it_was(task: Training) -> None:
    trainer = trainer_of(task, replace(task.recipe, encoder_rate=0.0, epochs=1))
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    trainer.run_epoch(scoring(task))
    encoder = set(trainer.network.encoder.state_dict())  # type: ignore[union-attr, operator]
    after = trainer.network.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed and encoder and not [name for name in changed if name.removeprefix("encoder.") in encoder and name in encoder]
    assert {name for name in changed if name.startswith("down.")} == set()


def test_the_precision_follows_the_device_of_the_worker(task: Training) -> None:
    auto = replace(task.recipe, precision="auto")
    assert {kind: auto.on(torch.device(kind)).precision for kind in ("cpu", "cuda")} == {"cpu": "fp32", "cuda": "bf16"}
    assert replace(auto, precision="bf16").on(torch.device("cpu")).precision == "bf16"
    assert trainer_of(task, auto).recipe.precision == "fp32"


def test_bf16_trains_about_as_well(task: Training) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        trainer = finish(trainer_of(task, replace(task.recipe, precision=precision)), scoring(task))
        losses.append(trainer.epochs[-1].loss)
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.1)


def test_a_batch_that_does_not_fit_in_memory_is_computed_in_pieces(task: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU that has room for two windows: a step of eight is four pieces, whose gradients add up."""
    sizes: list[int] = []
    usual = Trainer._loss

    def short_of_memory(self: Trainer, network: Any, batch_BCHW: torch.Tensor, *more: Any) -> torch.Tensor:
        sizes.append(len(batch_BCHW))
        if len(batch_BCHW) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return usual(self, network, batch_BCHW, *more)

    monkeypatch.setattr(loop, "_tells_when_memory_is_out", lambda _: True)
    monkeypatch.setattr(Trainer, "_loss", short_of_memory)
    trainer = trainer_of(task, replace(task.recipe, batch=8, epochs=1))
    before = trainer_of(task).network.state_dict()
    assert trainer.pieces == 4 and sizes[:3] == [8, 4, 2]
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.network.state_dict().items())  # trying taught it nothing
    trainer.run_epoch(scoring(task))
    assert set(sizes[-4:]) == {2}
    monkeypatch.setattr(Trainer, "_loss", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(Refused, match="one window does not fit in memory: choose a smaller --window"):
        trainer_of(task)


def test_a_network_that_pools_globally_needs_more_than_a_window(task: Training) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))

        def forward(self, batch_BCHW: torch.Tensor) -> torch.Tensor:
            return self.layers(batch_BCHW).expand(-1, -1, *batch_BCHW.shape[2:])

    recipe = replace(task.recipe, batch=1)
    trainer = Trainer(Pooled(), task.draws(), recipe, task.task.loss(), CPU)
    with pytest.raises(Refused, match="cannot learn from 1 window at a time: a larger --batch"):
        trainer.run_epoch(scoring(task))


def test_steps_are_reported(task: Training) -> None:
    seen: list[tuple[int, int, int, float]] = []
    trainer = trainer_of(task, replace(task.recipe, epochs=1))
    epoch = trainer.run_epoch(scoring(task), lambda *step: seen.append(step))
    assert [step[:3] for step in seen] == [(1, number, trainer.steps) for number in range(1, trainer.steps + 1)]
    assert np.mean([loss for *_, loss in seen]) == pytest.approx(epoch.loss)


def test_a_loss_that_is_no_number_is_refused_with_the_windows_that_did_it(task: Training) -> None:
    trainer = trainer_of(task)
    with torch.no_grad():
        trainer.network.get_parameter("head.bias").fill_(float("inf"))
    with pytest.raises(Refused, match=r"the loss is nan in epoch 1, step 1, on scene \(row \d+, column \d+\), .*--learning-rate"):
        trainer.run_epoch(scoring(task))


@pytest.mark.parametrize("schedule", ["cosine", "poly", "one-cycle", "constant"])
def test_learning_rates_stay_within_reason(schedule: str) -> None:
    recipe = Recipe(epochs=10, schedule=schedule, warm_up=2.0)
    factors = np.array([rate(step, 7, recipe) for step in range(71)])
    assert (factors >= 0).all() and factors.max() <= 1
    peak = factors.argmax()
    assert (np.diff(factors[: peak + 1]) > 0).all() and (np.diff(factors[peak:]) <= 1e-12).all()
    assert factors[-1] == pytest.approx(1.0 if schedule == "constant" else 0.0, abs=1e-9)


def test_one_cycle_is_torchs() -> None:
    recipe = Recipe(epochs=5, schedule="one-cycle")
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1.0, total_steps=100, cycle_momentum=False)
    for step in range(99):
        assert rate(step, 20, recipe) == pytest.approx(theirs.get_last_lr()[0], abs=0.03)
        optimiser.step()
        theirs.step()


def test_a_network_without_weights_is_refused(task: Training) -> None:
    with pytest.raises(Refused, match="no weights to train"):
        Trainer(build_network("identity", 2, 2), task.draws(), task.recipe, task.task.loss(), CPU)


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 0}, {"batch": 0}, {"learning_rate": float("nan")}, {"label_smoothing": 1.0}, {"ema": 1.0}, {"warm_up": 60.0},
        {"optimiser": "lion"}, {"schedule": "step"}, {"metric": "loss"}, {"precision": "fp16"}, {"encoder_rate": 2.0}, {"window": (0, 8)},
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_be_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=f"--{next(iter(bad)).replace('_', '-')} .*: out of range"):
        Recipe(**bad)
