"""To learn a number a pixel: loss, scores, baselines, pictures, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.imagery.bands import Band
from pipeline.models.bundle import Target, differing_pixels
from pipeline.models.networks.logistic import logistic_regression
from pipeline.models.receptive import Reach
from pipeline.models.value_scores import HAVE_UNIT, MEASURES, ValueScores
from pipeline.training.baselines import sample_pixels
from pipeline.training.datasets import LabelledScene
from pipeline.training.losses import SquaredError
from pipeline.training.pictures import Panel, RampPaint
from pipeline.training.sampling import Draws
from pipeline.training.statistics import own_pixels
from pipeline.training.targets import Numbers
from pipeline.training.validation import score_values

LINEAR, MEAN = "linear_regression", "training_mean"
CALLED = {"rmse": "RMSE", "mae": "MAE", "bias": "bias", "r2": "R2"}


@dataclass(frozen=True)
class Regression:
    """A target to learn, and the training pixels that have a number."""

    labels: Numbers
    target: Target
    pixels: int

    columns = tuple((CALLED[name], name, "9.4g") for name in MEASURES)

    @property
    def described(self) -> Target:
        return self.target

    @property
    def paint(self) -> RampPaint:
        return RampPaint(self.target)

    def loss(self) -> SquaredError:
        return SquaredError(self.target.mean, self.target.std)

    def answer(self, logits_KHW: torch.Tensor) -> np.ndarray:
        return self.target.values(logits_KHW[0]).cpu().numpy()

    def differ(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return differing_pixels(one, other, self.target)

    def score(self, network: nn.Module, scenes: Sequence[LabelledScene], bands: Sequence[Band], reach: Reach) -> ValueScores:
        return score_values(network, scenes, bands, reach, self.answer, self.target.mean)

    def baselines(self, plain: Draws, scenes: Sequence[LabelledScene], tested: ValueScores, device: torch.device) -> dict[str, ValueScores]:
        """Least squares on a pixel's own values, and the mean of the training pixels."""
        linear = fit_linear_regression(*sample_pixels(plain), self.target)
        mean = logistic_regression(len(plain.statistics.bands), 1)
        for parameter in mean.parameters():
            nn.init.zeros_(parameter)
        return {
            name: self.score(network.to(device), scenes, plain.statistics.bands, Reach(1, 0, None))
            for name, network in ((LINEAR, linear), (MEAN, mean))
        }

    def told(self, scores: ValueScores) -> dict[str, Any]:
        return scores.to_json()

    def table(self, scores: Mapping[str, ValueScores]) -> str:
        """A line for each measure, a column for each model, and whether the first beats the others."""
        width = max(12, len(self.target.unit) + 8)
        lines = [" " * width + "".join(f"{model:>21}" for model in scores)]
        for name, measure in MEASURES.items():
            title = f"{CALLED[name]} {self.target.unit if name in HAVE_UNIT else ''}"
            lines.append(f"{title:<{width}}" + "".join(f"{float(measure(each.sums)):>21.4g}" for each in scores.values()))
        (ours, first), *others = scores.items()
        unbeaten = [name for name, each in others if not first.summary["rmse"] < each.summary["rmse"]]
        return "\n".join([*lines, *(f"note: the {ours} is no better than the {name.replace('_', ' ')}" for name in unbeaten)])

    def panels(self, rows: Sequence[Mapping[str, float]]) -> list[Panel]:
        unit = f", {self.target.unit}" if self.target.unit else ""
        errors = {CALLED[name]: [row[name] for row in rows] for name in HAVE_UNIT}
        return [
            Panel(f"on the validation set{unit}", errors),
            Panel("R2 on the validation set", {"R2": [row["r2"] for row in rows]}, (-1, 1)),
        ]

    def describe(self) -> str:
        target = self.target
        unit = f" {target.unit}" if target.unit else ""
        return f"target: {target.name} {target.mean:.4g} ± {target.std:.4g}{unit}, mostly {target.low:.4g} to {target.high:.4g}{unit}"

    def provenance(self, train: Sequence[LabelledScene]) -> dict[str, Any]:
        share = self.pixels / own_pixels(train)
        return {"labels": {"target": asdict(self.target), "ignored": list(self.labels.ignored)}, "known_share": float(f"{share:.5g}")}

    def settings(self) -> dict[str, Any]:
        return {"target": asdict(self.target), "ignored": list(self.labels.ignored)}


def fit_linear_regression(values_C1N: torch.Tensor, numbers_1N: np.ndarray, target: Target) -> nn.Module:
    """Least squares of a target on normalised pixels, N of them, as a network of 1 x 1 px whose output is in standard deviations."""
    table_NC = np.column_stack([values_C1N[:, 0].double().numpy().T, np.ones(numbers_1N.size)])
    wanted_N = (numbers_1N[0].astype(np.float64) - target.mean) / target.std
    weights, *_ = np.linalg.lstsq(table_NC, wanted_N)
    network = logistic_regression(len(values_C1N), 1)
    weight, bias = network.parameters()
    with torch.no_grad():
        weight.copy_(torch.from_numpy(weights[:-1]).reshape(weight.shape))
        bias.fill_(weights[-1])
    return network
