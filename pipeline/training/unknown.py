"""Which pixels of labels say something: class ids other than 255, numbers other than NaN."""

from __future__ import annotations

import math
from typing import Any

import torch

from pipeline.training.classes import IGNORE


def known(labels: Any) -> Any:
    """Where labels, an array or a tensor of ids or of numbers, say something: booleans in their shape."""
    return labels == labels if are_numbers(labels) else labels != IGNORE


def unknown(labels: Any) -> float:
    """What such labels hold where they say nothing."""
    return math.nan if are_numbers(labels) else IGNORE


def are_numbers(labels: Any) -> bool:
    """Whether labels are numbers to predict, not class ids."""
    return labels.is_floating_point() if isinstance(labels, torch.Tensor) else labels.dtype.kind == "f"
