"""What a training has to know of that which it learns, classes or a target: chosen once, by what labels mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from pipeline.imagery.bands import Band
from pipeline.models.bundle import ClassEntry, Target
from pipeline.models.receptive import Reach
from pipeline.training.classes import ClassTable
from pipeline.training.classification import Classification
from pipeline.training.datasets import LabelledScene
from pipeline.training.loop import Recipe
from pipeline.training.pictures import Paint, Panel
from pipeline.training.regression import Regression
from pipeline.training.sampling import Draws
from pipeline.training.statistics import Statistics
from pipeline.training.targets import Numbers


class Task(Protocol):
    """What `Classification` and `Regression` tell. Scores are of a kind of each one's own."""

    @property
    def described(self) -> Sequence[ClassEntry] | Target:
        """What a bundle is given."""

    @property
    def paint(self) -> Paint:
        """How labels and answers are drawn."""

    @property
    def columns(self) -> Sequence[tuple[str, str, str]]:
        """What is printed of an epoch: title, name of the score and its format."""

    def loss(self) -> nn.Module:
        """What is minimised."""

    def answer(self, logits_KHW: torch.Tensor) -> np.ndarray:
        """What logits mean, as labels do: H x W."""

    def differ(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Where two answers are not the same."""

    def score(self, network: nn.Module, scenes: Sequence[LabelledScene], bands: Sequence[Band], reach: Reach) -> Any:
        """The scores of a network in eval mode, computed by all processes together."""

    def baselines(self, plain: Draws, scenes: Sequence[LabelledScene], tested: Any, device: torch.device) -> dict[str, Any]:
        """What a network has to beat, scored on `scenes`; `plain` are training windows as they are, `tested` the network's scores."""

    def told(self, scores: Any) -> dict[str, Any]:
        """Scores as a bundle keeps them."""

    def table(self, scores: Mapping[str, Any]) -> str:
        """Scores of several models as text."""

    def panels(self, rows: Sequence[Mapping[str, float]]) -> list[Panel]:
        """The curves of scores, from rows of the table of epochs."""

    def describe(self) -> str:
        """What is learnt, in a line."""

    def provenance(self, train: Sequence[LabelledScene]) -> dict[str, Any]:
        """What a bundle remembers of the labels."""

    def settings(self) -> dict[str, Any]:
        """What a training that is taken up again must share."""


def task_of(table: ClassTable | Numbers, statistics: Statistics, recipe: Recipe) -> Task:
    """How to learn labels of this meaning."""
    if isinstance(table, Numbers):
        assert statistics.target is not None
        return Regression(table, statistics.target, int(statistics.counts.sum()))
    return Classification(table, statistics.counts, recipe)
