"""To learn classes: loss, scores, baselines, pictures, and what is said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.imagery.bands import Band
from pipeline.models.bundle import ClassEntry, differing_pixels
from pipeline.models.metrics import Scores
from pipeline.models.receptive import Reach
from pipeline.training.baselines import fit_logistic_regression, majority_scores, sample_pixels, score_table
from pipeline.training.classes import ClassTable
from pipeline.training.datasets import LabelledScene
from pipeline.training.loop import Recipe
from pipeline.training.losses import Loss, parse_loss
from pipeline.training.pictures import ClassPaint, Panel
from pipeline.training.sampling import Draws
from pipeline.training.statistics import class_weights
from pipeline.training.validation import score, to_classes

LOGISTIC, MAJORITY = "logistic_regression", "majority_class"


@dataclass(frozen=True, eq=False)
class Classification:
    """Classes to learn, and the training pixels of each, int64 K."""

    labels: ClassTable
    counts: np.ndarray
    recipe: Recipe

    columns = (("accuracy", "accuracy", "9.4f"), ("mean IoU", "mean_iou", "9.4f"), ("mean F1", "mean_f1", "8.4f"))

    @property
    def described(self) -> list[ClassEntry]:
        return [item.entry for item in self.labels.classes]

    @property
    def paint(self) -> ClassPaint:
        return ClassPaint(self.labels)

    @property
    def weights(self) -> np.ndarray:
        """Of each class in the loss, fp32 K."""
        return class_weights(self.counts, self.recipe.class_weights)

    def loss(self) -> Loss:
        return Loss(parse_loss(self.recipe.loss), torch.from_numpy(self.weights), self.recipe.label_smoothing)

    def answer(self, logits_KHW: torch.Tensor) -> np.ndarray:
        return to_classes(logits_KHW)

    def differ(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return differing_pixels(one, other, None)

    def score(self, network: nn.Module, scenes: Sequence[LabelledScene], bands: Sequence[Band], reach: Reach) -> Scores:
        return score(network, scenes, bands, reach)

    def baselines(self, plain: Draws, scenes: Sequence[LabelledScene], tested: Scores, device: torch.device) -> dict[str, Scores]:
        """Logistic regression on a pixel's own values, and the commonest class."""
        logistic = fit_logistic_regression(*sample_pixels(plain, self.recipe.seed), self.weights)
        return {
            LOGISTIC: score(logistic.to(device), scenes, plain.statistics.bands, Reach(1, 0, None)),
            MAJORITY: majority_scores(self.counts, tested.confusion),
        }

    def told(self, scores: Scores) -> dict[str, Any]:
        return scores.to_json(self.labels.names)

    def table(self, scores: Mapping[str, Scores]) -> str:
        return score_table(scores, self.labels.names)

    def panels(self, rows: Sequence[Mapping[str, float]]) -> list[Panel]:
        curves = {name.replace("_", " "): [row[name] for row in rows] for name in ("accuracy", "mean_iou", "mean_f1")}
        curves |= {f"IoU {name}": [row[f"iou_{name}"] for row in rows] for name in self.labels.names}
        return [Panel("on the validation set", curves, (0, 1))]

    def describe(self) -> str:
        shares = zip(self.labels.names, self.counts / self.counts.sum(), strict=True)
        return f"classes: {', '.join(f'{name} {share:.1%}' for name, share in shares)}"

    def provenance(self, train: Sequence[LabelledScene]) -> dict[str, Any]:
        shares = zip(self.labels.names, self.counts / self.counts.sum(), strict=True)
        return {
            "labels": {
                "values": {item.entry.name: list(item.values) for item in self.labels.classes},
                "ignored": list(self.labels.ignored),
                "coloured": self.labels.coloured,
            },
            "class_shares": {name: float(f"{share:.5g}") for name, share in shares},
        }

    def settings(self) -> dict[str, Any]:
        return {"classes": [asdict(item) for item in self.labels.classes]}
