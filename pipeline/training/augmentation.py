"""Random windows of a training block, flipped and turned."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from pipeline.errors import Refused
from pipeline.training.classes import IGNORE

ORIENTATIONS = 8  # of a square: four turns, each as it is or mirrored


def random_batches(
    image_CHW: torch.Tensor, labels_HW: np.ndarray, *, window: int, batch: int, seed: int, turn: bool = True
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of windows of `window` px square: batch_BCHW float32 and labels_BHW int64.

    Every window lies inside the image and holds a labelled pixel; with `turn` each has one of the eight orientations of
    a square. The sequence follows from `seed`. Raises Refused where the image is too small or has no labels.
    """
    _, height, width = image_CHW.shape
    if min(height, width) < window:
        raise Refused(f"the training block is {height} x {width} px, windows are {window} px: choose a smaller --window")
    labelled = np.flatnonzero(labels_HW != IGNORE)
    if not labelled.size:
        raise Refused("no pixel of the training block has a class: check --labels, --classes and --train-columns")
    random = np.random.default_rng(seed)
    labels = torch.from_numpy(labels_HW.astype(np.int64))
    while True:
        images, targets = [], []
        for _ in range(batch):
            row, col = (int(part) for part in divmod(random.choice(labelled), width))
            top, left = _start(random, row, window, height), _start(random, col, window, width)
            area = slice(top, top + window), slice(left, left + window)
            orientation = int(random.integers(ORIENTATIONS)) if turn else 0
            images.append(oriented(image_CHW[:, *area], orientation))
            targets.append(oriented(labels[area], orientation))
        yield torch.stack(images), torch.stack(targets)


def oriented(array_HW: torch.Tensor, orientation: int) -> torch.Tensor:
    """One of the eight orientations, 0..7, of the last two axes of a square array; 0 leaves it as it is."""
    turned = torch.rot90(array_HW, orientation % 4, dims=(-2, -1))
    return turned.flip(-1) if orientation >= 4 else turned


def _start(random: np.random.Generator, pixel: int, window: int, length: int) -> int:
    """Where a window that holds `pixel` starts, so that it lies in [0, length)."""
    return int(np.clip(pixel - random.integers(window), 0, length - window))
