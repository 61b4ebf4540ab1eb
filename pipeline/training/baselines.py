"""What a network that learns classes has to beat: calling everything the commonest, and logistic regression on a pixel's own values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from pipeline.models.metrics import Scores
from pipeline.models.networks.logistic import logistic_regression
from pipeline.training.sampling import Draws
from pipeline.training.unknown import known

SAMPLE = 200_000  # pixels that a logistic regression is fitted to


def majority_scores(train_counts: np.ndarray, confusion: np.ndarray) -> Scores:
    """The scores of calling every pixel what most training pixels are, from any confusion matrix of the test pixels."""
    called = np.zeros_like(confusion)
    called[:, train_counts.argmax()] = confusion.sum(axis=1)
    return Scores(called)


def sample_pixels(draws: Draws, seed: int = 0, most: int = SAMPLE) -> tuple[torch.Tensor, np.ndarray]:
    """Labelled training pixels, some of each draw's: normalised values, fp32 C x 1 x N, and class ids, uint8 1 x N, or numbers, fp32."""
    random = np.random.default_rng(seed)
    count = min(draws.epoch_length, 256)
    values, labels = [], []
    for draw in np.linspace(0, draws.epoch_length - 1, count).astype(int).tolist():
        image_CHW, labels_HW, _ = draws[draw]
        labelled = np.flatnonzero(known(labels_HW))
        chosen = torch.from_numpy(random.permutation(labelled)[: -(-most // count)])
        values.append(image_CHW.flatten(1)[:, chosen])
        labels.append(labels_HW.flatten()[chosen])
    return torch.cat(values, dim=1)[:, None], torch.cat(labels).numpy().astype(draws.scenes[0].table.dtype)[None]


def fit_logistic_regression(values_C1N: torch.Tensor, labels_1N: np.ndarray, weights_K: np.ndarray) -> nn.Module:
    """The `logistic_regression` network fitted to convergence to normalised pixels, N of them.

    Minimises the mean cross-entropy, weighted as the network's own training is, plus |W|^2 / 2N: multinomial
    regression with the unit ridge penalty that is usual for it (in scikit-learn C = 1).
    """
    batch_BCHW = values_C1N.double()[None]
    targets_BHW = torch.from_numpy(labels_1N.astype(np.int64))[None]
    weights, pixels = torch.from_numpy(weights_K).double(), labels_1N.size
    network = logistic_regression(len(values_C1N), len(weights_K)).double()
    weight, bias = network.parameters()
    nn.init.zeros_(weight)
    nn.init.zeros_(bias)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe")

    def objective() -> torch.Tensor:
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(network(batch_BCHW), targets_BHW, weight=weights, reduction="sum") / pixels
        loss = loss + weight.square().sum() / (2 * pixels)
        loss.backward()
        return loss

    optimiser.step(objective)
    return network.float().eval()


def score_table(scores: Mapping[str, Scores], names: Sequence[str]) -> str:
    """The scores as text: a line for each measure and class, a column for each model."""
    width = max(len(name) for name in (*names, "overall accuracy")) + 4
    lines = [" " * width + "".join(f"{model:>21}" for model in scores)]
    rows = [("overall accuracy", [each.accuracy for each in scores.values()])]
    rows += [("mean IoU", [each.mean_iou for each in scores.values()]), ("mean F1", [each.mean_f1 for each in scores.values()])]
    for measure in ("iou", "f1"):
        rows += [
            (f"{'IoU' if measure == 'iou' else 'F1'} {name}", [getattr(each, measure)[number] for each in scores.values()])
            for number, name in enumerate(names)
        ]
    lines += [f"{title:<{width}}" + "".join(f"{value:>21.3f}" for value in values) for title, values in rows]
    return "\n".join(lines)
