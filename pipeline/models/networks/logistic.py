"""Per-pixel logistic regression: the baseline that a network which looks at a pixel's surroundings has to beat."""

from __future__ import annotations

from torch import nn


def logistic_regression(bands: int, classes: int) -> nn.Module:
    """A linear score for each class of a pixel's own band values."""
    return nn.Conv2d(bands, classes, kernel_size=1)
