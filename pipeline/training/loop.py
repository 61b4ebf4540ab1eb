"""The epoch loop: train a network in one process and keep the weights that did best on the validation block."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pipeline.errors import Refused
from pipeline.training.augmentation import random_batches
from pipeline.training.classes import IGNORE


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. `balance` is the power of a class's rarity that weighs its pixels: 0 none, 1 in full."""

    epochs: int = 60
    batch: int = 8
    window: int = 128  # px
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    label_smoothing: float = 0.0
    balance: float = 0.0
    turn: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("epochs", self.epochs >= 1),
            ("batch", self.batch >= 1),
            ("window", self.window >= 1),
            ("learning_rate", 0 < self.learning_rate < math.inf),
            ("weight_decay", 0 <= self.weight_decay < math.inf),
            ("label_smoothing", 0 <= self.label_smoothing < 1),
            ("balance", 0 <= self.balance <= 1),
            ("seed", self.seed >= 0),
        ):
            if not allowed:
                raise Refused(f"--{name.replace('_', '-')} {getattr(self, name)}: out of range")


@dataclass(frozen=True)
class Epoch:
    """What came of an epoch: the mean training loss and the score on the validation block."""

    number: int  # from 1
    loss: float
    score: float
    seconds: float


def train(
    network: nn.Module, image_CHW: torch.Tensor, labels_HW: np.ndarray, recipe: Recipe, *,
    classes: int, score: Callable[[nn.Module], float], report: Callable[[Epoch], None] = lambda epoch: None,
) -> list[Epoch]:  # fmt: skip
    """Train `network` in place on a normalised image and its class ids, and return the epochs.

    An epoch draws as many pixels as the image has. `score` is asked after each epoch, with the network in eval mode;
    the weights of the epoch with the highest score, the first of equals, are what the network ends with. The result
    follows from the network's first weights, the recipe and the number of threads. Raises Refused where there is
    nothing to train or the loss is not finite.
    """
    parameters = list(network.parameters())
    if not parameters:
        raise Refused("this architecture has no weights to train; --epochs 0 writes it as it is")
    device = parameters[0].device
    batches = random_batches(image_CHW, labels_HW, window=recipe.window, batch=recipe.batch, seed=recipe.seed, turn=recipe.turn)
    steps = math.ceil(labels_HW.size / (recipe.batch * recipe.window**2))
    loss_of = nn.CrossEntropyLoss(
        class_weights(labels_HW, classes, recipe.balance).to(device),
        ignore_index=IGNORE, label_smoothing=recipe.label_smoothing,
    )  # fmt: skip
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=recipe.epochs * steps)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.manual_seed(recipe.seed)  # dropout
    epochs: list[Epoch] = []
    best: dict[str, torch.Tensor] = {}
    for number in range(1, recipe.epochs + 1):
        began, total = time.monotonic(), 0.0
        network.train()
        for _ in range(steps):
            batch_BCHW, labels_BHW = next(batches)
            logits_BKHW = network(batch_BCHW.to(device, memory_format=torch.channels_last))
            loss = loss_of(logits_BKHW, labels_BHW.to(device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        if not math.isfinite(total):
            raise Refused(f"the loss is {total} in epoch {number}: choose a smaller --learning-rate")
        network.eval()
        epoch = Epoch(number, total / steps, score(network), time.monotonic() - began)
        if not best or epoch.score > max(earlier.score for earlier in epochs):
            best = copy.deepcopy(network.state_dict())
        epochs.append(epoch)
        report(epoch)
    network.load_state_dict(best)
    return epochs


def best_epoch(epochs: list[Epoch]) -> Epoch:
    """The epoch whose weights are kept: the first with the highest score."""
    return max(epochs, key=lambda epoch: epoch.score)


def class_weights(labels_HW: np.ndarray, classes: int, balance: float) -> torch.Tensor:
    """The weight of a pixel of each class, fp32 K: its rarity to the power `balance`; pixels weigh 1 on average.

    A class that is not in `labels_HW` weighs 0. Raises Refused where there are none of any class.
    """
    counts = np.bincount(labels_HW.ravel(), minlength=256)[:classes].astype(np.float64)
    if not counts.sum():
        raise Refused("no pixel of the training block has a class: check --labels, --classes and --train-columns")
    weights = np.where(counts > 0, np.maximum(counts, 1) ** -balance, 0.0)
    return torch.from_numpy(weights * counts.sum() / (weights * counts).sum()).float()
