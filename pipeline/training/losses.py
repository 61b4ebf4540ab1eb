"""Losses of segmentation, as sums over pixels or samples, so that parts of a batch add up to what the whole would give."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from pipeline.errors import Refused
from pipeline.training.classes import IGNORE
from pipeline.training.unknown import known

NAMES = ("cross_entropy", "focal", "dice")
SQUARED_ERROR = "mse"  # that alone: labels are numbers
FOCUS = 2.0  # gamma of the focal loss, as its paper recommends
SMOOTH = 1.0  # px: keeps the Dice loss of a class that is nearly absent from jumping


class Term(NamedTuple):
    """One loss of a combination, and its factor."""

    name: str
    factor: float


def parse_loss(text: str) -> tuple[Term, ...]:
    """`cross_entropy`, `focal+dice`, `cross_entropy+0.5*dice`, or `mse`. Raises Refused for a name that is not of these."""
    terms: list[Term] = []
    if text.strip() == SQUARED_ERROR:
        return (Term(SQUARED_ERROR, 1.0),)
    for word in text.split("+"):
        if re.search(rf"\b{SQUARED_ERROR}\b", word):
            raise Refused(f"--loss {text}: {SQUARED_ERROR} is of numbers: it stands alone, without a loss of classes or a factor")
        match = re.fullmatch(r"\s*(?:([0-9.]+)\s*\*)?\s*(\w+)\s*", word)
        if not match or match[2] not in NAMES:
            raise Refused(f"--loss {text}: combine {', '.join(NAMES)}, such as cross_entropy+0.5*dice; or {SQUARED_ERROR} for numbers")
        terms.append(Term(match[2], float(match[1] or 1)))
    return tuple(terms)


class Loss(nn.Module):
    """A combination of losses of logits_BKHW against labels_BHW, whose pixels of 255 do not count.

    cross_entropy: weighted by class, with label smoothing. focal: Lin et al. 2017 (arXiv 1708.02002), weighted by class.
    dice: 1 - the mean over the classes of a sample of 2|A and B| / (|A| + |B|), Milletari et al. 2016 (arXiv 1606.04797).

    Law: with `denominators` of the whole batch, the values of its parts add up to the value of the whole.
    """

    weights: torch.Tensor
    labels = torch.int64

    def __init__(self, terms: Sequence[Term], weights_K: torch.Tensor, label_smoothing: float = 0.0):
        super().__init__()
        self.terms, self.label_smoothing = tuple(terms), label_smoothing
        self.register_buffer("weights", weights_K.float())

    def denominators(self, labels_BHW: torch.Tensor) -> torch.Tensor:
        """What each term is divided by, fp64: the weight of the labelled pixels, or for dice the samples that have any."""
        there = labels_BHW != IGNORE
        weight = self.weights[labels_BHW[there]].double().sum()
        samples = there.flatten(1).any(dim=1).double().sum()
        return torch.stack([samples if term.name == "dice" else weight for term in self.terms])

    def forward(self, logits_BKHW: torch.Tensor, labels_BHW: torch.Tensor, denominators: torch.Tensor) -> torch.Tensor:
        logits_BKHW = logits_BKHW.float()
        total = logits_BKHW.sum() * 0.0  # so that a part without labels has gradients, of 0
        for term, denominator in zip(self.terms, denominators.float().clamp(min=1e-12), strict=True):
            total = total + term.factor * getattr(self, f"_{term.name}")(logits_BKHW, labels_BHW) / denominator
        return total

    def _cross_entropy(self, logits_BKHW: torch.Tensor, labels_BHW: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(
            logits_BKHW, labels_BHW, weight=self.weights, ignore_index=IGNORE, reduction="sum", label_smoothing=self.label_smoothing
        )

    def _focal(self, logits_BKHW: torch.Tensor, labels_BHW: torch.Tensor) -> torch.Tensor:
        log_p_BHW = -functional.cross_entropy(logits_BKHW, labels_BHW, ignore_index=IGNORE, reduction="none")
        weight_BHW = self.weights[torch.where(labels_BHW == IGNORE, 0, labels_BHW)]
        return -((1 - log_p_BHW.exp()) ** FOCUS * log_p_BHW * weight_BHW).sum()

    def _dice(self, logits_BKHW: torch.Tensor, labels_BHW: torch.Tensor) -> torch.Tensor:
        known_B1HW = (labels_BHW != IGNORE)[:, None]
        shares_BKHW = logits_BKHW.softmax(dim=1) * known_B1HW
        truth_BKHW = functional.one_hot(torch.where(labels_BHW == IGNORE, 0, labels_BHW), logits_BKHW.shape[1]).permute(0, 3, 1, 2)
        truth_BKHW = truth_BKHW * known_B1HW
        there_BK = truth_BKHW.sum(dim=(2, 3))
        overlap_BK, called_BK = (shares_BKHW * truth_BKHW).sum(dim=(2, 3)), shares_BKHW.sum(dim=(2, 3))
        score_BK = (2 * overlap_BK + SMOOTH) / (called_BK + there_BK + SMOOTH)
        present_BK = (there_BK > 0).float()
        lost_B = 1 - (score_BK * present_BK).sum(dim=1) / present_BK.sum(dim=1).clamp(min=1)
        return (lost_B * (present_BK.sum(dim=1) > 0)).sum()


class SquaredError(nn.Module):
    """The mean squared error of outputs_B1HW, in standard deviations of the target, against numbers_BHW, whose NaNs do not count.

    Law: as of `Loss`, with `denominators` of the whole batch the values of its parts add up to the value of the whole.
    """

    labels = torch.float32

    def __init__(self, mean: float, std: float):
        super().__init__()
        self.mean, self.std = mean, std

    def denominators(self, numbers_BHW: torch.Tensor) -> torch.Tensor:
        """The pixels that have a number, fp64."""
        return known(numbers_BHW).double().sum()[None]

    def forward(self, outputs_B1HW: torch.Tensor, numbers_BHW: torch.Tensor, denominators: torch.Tensor) -> torch.Tensor:
        off_BHW = outputs_B1HW[:, 0].float() - (numbers_BHW - self.mean) / self.std
        return torch.where(known(numbers_BHW), off_BHW, 0.0).square().sum() / denominators[0].float().clamp(min=1)
