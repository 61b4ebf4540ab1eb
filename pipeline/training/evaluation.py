"""How good a network is on pixels that it never saw, beside two baselines: the commonest class and logistic regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
import torch
from torch import nn

from pipeline.geometry.windows import Span, Window, ceil_to, spans
from pipeline.models.bundle import INEXACT_HALO
from pipeline.models.metrics import Scores, confusion_matrix
from pipeline.models.networks.logistic import logistic_regression
from pipeline.models.receptive import Reach
from pipeline.training.classes import IGNORE
from pipeline.training.loop import class_weights

CORE = 512  # px: the blocks in which an image is classified
SAMPLE = 200_000  # pixels that a logistic regression is fitted to


def context_px(reach: Reach) -> int:
    """The pixels around a block that its classes depend on: the exact halo, or what stands in for it."""
    return ceil_to(INEXACT_HALO, reach.stride) if reach.exact_halo is None else reach.exact_halo


@torch.inference_mode()
def classify(network: nn.Module, image_CHW: torch.Tensor, reach: Reach) -> np.ndarray:
    """The class of each pixel of a normalised image, uint8 H x W, computed in tiles with an exact halo.

    Height and width must be multiples of the network's stride.
    """
    _, height, width = image_CHW.shape
    device = next(chain(network.parameters(), network.buffers())).device
    halo, ids_HW = context_px(reach), np.empty((height, width), np.uint8)
    tile = ceil_to(CORE + 2 * halo, reach.stride)
    for read_rows, core_rows in spans(Span(0, height), height, tile, halo):
        for read_cols, core_cols in spans(Span(0, width), width, tile, halo):
            read, core = Window.of(read_rows, read_cols), Window.of(core_rows, core_cols)
            tile_BCHW = image_CHW[None, :, *read.slices()].to(device, memory_format=torch.channels_last)
            tile_ids_HW = network(tile_BCHW)[0].max(dim=0).indices.to(torch.uint8).cpu().numpy()
            ids_HW[core.slices()] = tile_ids_HW[core.relative_to(read).slices()]
    return ids_HW


def evaluate(network: nn.Module, image_CHW: torch.Tensor, labels_HW: np.ndarray, reach: Reach, classes: int) -> Scores:
    """The scores of a network where `labels_HW` has a class."""
    return Scores(confusion_matrix(labels_HW, classify(network, image_CHW, reach), classes))


def majority_scores(train_labels_HW: np.ndarray, labels_HW: np.ndarray, classes: int) -> Scores:
    """The scores of calling every pixel what most training pixels are."""
    commonest = np.bincount(train_labels_HW.ravel(), minlength=256)[:classes].argmax()
    return Scores(confusion_matrix(labels_HW, np.full_like(labels_HW, commonest), classes))


def fit_logistic_regression(
    image_CHW: torch.Tensor, labels_HW: np.ndarray, *, classes: int, balance: float = 0.0, seed: int = 0, sample: int = SAMPLE
) -> nn.Module:
    """The `logistic_regression` network fitted to convergence to up to `sample` labelled pixels of a normalised image.

    Minimises the mean cross-entropy, weighted as the network's own training is, plus |W|^2 / 2N: multinomial
    regression with the unit ridge penalty that is usual for it (in scikit-learn C = 1).
    """
    labelled = np.flatnonzero(labels_HW != IGNORE)
    chosen = np.random.default_rng(seed).permutation(labelled)[:sample]
    batch_BCHW = image_CHW.flatten(1)[:, torch.from_numpy(chosen)].double()[None, :, None]
    targets_BHW = torch.from_numpy(labels_HW.ravel()[chosen].astype(np.int64))[None, None]
    network = logistic_regression(image_CHW.shape[0], classes).double()
    weight, bias = network.parameters()
    nn.init.zeros_(weight)
    nn.init.zeros_(bias)
    weights = class_weights(labels_HW, classes, balance).double()
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe")

    def objective() -> torch.Tensor:
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(network(batch_BCHW), targets_BHW, weight=weights, reduction="sum") / len(chosen)
        loss = loss + weight.square().sum() / (2 * len(chosen))
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
