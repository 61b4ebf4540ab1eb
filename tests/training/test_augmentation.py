"""Random windows: inside the block, labelled, and in all eight orientations."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from pipeline.errors import Refused
from pipeline.training.augmentation import oriented, random_batches

HEIGHT, WIDTH, WINDOW = 24, 40, 8


def position_image() -> torch.Tensor:
    """One band that holds each pixel's own number, from 0."""
    return torch.arange(HEIGHT * WIDTH, dtype=torch.float32).reshape(1, HEIGHT, WIDTH)


def test_windows_are_parts_of_the_image_with_their_own_labels() -> None:
    """Each window is an orientation of a slice of the image, and its labels the same orientation of the same slice."""
    labels_HW = (np.arange(HEIGHT * WIDTH) % 7).astype(np.uint8).reshape(HEIGHT, WIDTH)
    batches = random_batches(position_image(), labels_HW, window=WINDOW, batch=4, seed=1)
    corners = set()
    for batch_BCHW, labels_BHW in islice(batches, 100):
        for numbers, targets in zip(batch_BCHW[:, 0].long(), labels_BHW, strict=True):
            assert (targets == numbers % 7).all()
            top, left = divmod(int(numbers.min()), WIDTH)
            corners.add((top, left))
            expected = position_image()[0, top : top + WINDOW, left : left + WINDOW].long()
            assert any(torch.equal(numbers, oriented(expected, orientation)) for orientation in range(8))
    tops, lefts = zip(*corners, strict=True)
    assert (min(tops), max(tops), min(lefts), max(lefts)) == (0, HEIGHT - WINDOW, 0, WIDTH - WINDOW)


def test_the_eight_orientations_differ_and_the_first_changes_nothing() -> None:
    square = torch.arange(9).reshape(3, 3)
    seen = {tuple(oriented(square, orientation).ravel().tolist()) for orientation in range(8)}
    assert len(seen) == 8 and torch.equal(oriented(square, 0), square)


def test_without_turning_windows_stay_upright() -> None:
    labels_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
    for batch_BCHW, _ in islice(random_batches(position_image(), labels_HW, window=WINDOW, batch=4, seed=1, turn=False), 20):
        assert (batch_BCHW.diff(dim=-1) == 1).all() and (batch_BCHW.diff(dim=-2) == WIDTH).all()


def test_every_window_holds_a_label() -> None:
    labels_HW = np.full((HEIGHT, WIDTH), 255, np.uint8)
    labels_HW[23, 39] = 3
    for _, labels_BHW in islice(random_batches(position_image(), labels_HW, window=WINDOW, batch=4, seed=1), 20):
        assert (labels_BHW == 3).flatten(1).any(dim=1).all()


def test_the_sequence_follows_from_the_seed() -> None:
    labels_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
    runs = [
        torch.cat([images for images, _ in islice(random_batches(position_image(), labels_HW, window=WINDOW, batch=2, seed=seed), 5)])
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_what_cannot_be_sampled_is_refused() -> None:
    with pytest.raises(Refused, match="24 x 40 px, windows are 32 px"):
        next(random_batches(position_image(), np.zeros((HEIGHT, WIDTH), np.uint8), window=32, batch=1, seed=0))
    with pytest.raises(Refused, match="no pixel of the training block has a class"):
        next(random_batches(position_image(), np.full((HEIGHT, WIDTH), 255, np.uint8), window=8, batch=1, seed=0))
