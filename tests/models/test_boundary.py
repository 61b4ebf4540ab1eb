"""Boundary F1 against a reference that compares every pixel with every other, and cases that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.geometry.windows import Window
from pipeline.models.boundary import boundary_counts, boundary_f1, boundary_precision, boundary_recall, default_tolerance, mean_boundary_f1


def blobs(seed: int, shape: tuple[int, int] = (40, 50), classes: int = 4) -> np.ndarray:
    random = np.random.default_rng(seed)
    coarse = random.integers(0, classes, (shape[0] // 5 + 1, shape[1] // 5 + 1))
    ids_HW = np.kron(coarse, np.ones((5, 5), int))[: shape[0], : shape[1]].astype(np.uint8)
    ids_HW[random.random(shape) < 0.03] = 255
    return ids_HW


def edges(ids_HW: np.ndarray, number: int) -> list[tuple[int, int]]:
    found = []
    for row, col in zip(*np.nonzero(ids_HW == number), strict=True):
        around = [(row + 1, col), (row - 1, col), (row, col + 1), (row, col - 1)]
        inside = [ids_HW[place] for place in around if 0 <= place[0] < ids_HW.shape[0] and 0 <= place[1] < ids_HW.shape[1]]
        if any(other not in (number, 255) for other in inside):
            found.append((int(row), int(col)))
    return found


def brute_force(truth_HW: np.ndarray, predicted_HW: np.ndarray, classes: int, tolerance: int) -> np.ndarray:
    unknown = (truth_HW == 255) | (predicted_HW == 255)
    truth_HW, predicted_HW = np.where(unknown, 255, truth_HW), np.where(unknown, 255, predicted_HW)
    counts = []
    for number in range(classes):
        true, called = edges(truth_HW, number), edges(predicted_HW, number)
        hits = [
            sum(any((row - y) ** 2 + (col - x) ** 2 <= tolerance**2 for y, x in others) for row, col in some)
            for some, others in ((called, true), (true, called))
        ]
        counts.append([len(called), hits[0], len(true), hits[1]])
    return np.array(counts)


def counted(truth_HW: np.ndarray, predicted_HW: np.ndarray, classes: int = 4, tolerance: int = 2) -> np.ndarray:
    return boundary_counts(truth_HW, predicted_HW, classes, tolerance, Window(0, 0, *truth_HW.shape))


@pytest.mark.parametrize(("seed", "tolerance"), [(0, 1), (1, 2), (2, 3), (3, 5)])
def test_agrees_with_every_pixel_against_every_other(seed: int, tolerance: int) -> None:
    truth_HW, predicted_HW = blobs(seed), blobs(seed + 100)
    assert (counted(truth_HW, predicted_HW, tolerance=tolerance) == brute_force(truth_HW, predicted_HW, 4, tolerance)).all()


@pytest.mark.parametrize("side", [7, 16, 33])
def test_windows_with_a_rim_add_up_to_the_whole(side: int) -> None:
    truth_HW, predicted_HW, rim = blobs(4), blobs(5), 3
    total = np.zeros((4, 4), int)
    scene = Window(0, 0, *truth_HW.shape)
    for row in range(0, scene.height, side):
        for col in range(0, scene.width, side):
            block = Window(row, col, side, side).intersection(scene)
            read = Window(row - rim, col - rim, side + 2 * rim, side + 2 * rim).intersection(scene)
            assert block and read
            part = read.slices()
            total += boundary_counts(truth_HW[part], predicted_HW[part], 4, 2, block.relative_to(read))
    assert (total == counted(truth_HW, predicted_HW)).all()


@pytest.mark.parametrize(("shift", "score"), [(0, 1.0), (2, 1.0), (3, 0.0)])
def test_an_edge_may_be_off_by_the_tolerance(shift: int, score: float) -> None:
    truth_HW, predicted_HW = np.zeros((2, 20, 30), np.uint8)
    truth_HW[:, 10:], predicted_HW[:, 10 + shift :] = 1, 1
    assert boundary_f1(counted(truth_HW, predicted_HW, 2)).tolist() == [score, score]


def test_half_of_a_boundary_is_found() -> None:
    truth_HW, predicted_HW = np.zeros((2, 40, 40), np.uint8)
    truth_HW[:, 10:12] = 1  # two rims, of which the prediction has one
    predicted_HW[:, 10:] = 1
    counts = counted(truth_HW, predicted_HW, 2, tolerance=1)
    assert boundary_precision(counts)[0] == 1 and boundary_recall(counts)[0] == 0.5
    assert boundary_f1(counts)[0] == pytest.approx(2 / 3)


def test_ignored_pixels_and_the_arrays_edge_make_no_boundary() -> None:
    truth_HW = np.zeros((10, 10), np.uint8)
    truth_HW[4:6] = 255
    truth_HW[6:] = 1
    counts = counted(truth_HW, truth_HW, 2)
    assert not counts.any() and np.isnan(boundary_f1(counts)).all() and np.isnan(mean_boundary_f1(counts))


def test_a_class_that_only_one_mask_has_scores_zero() -> None:
    truth_HW, predicted_HW = np.zeros((2, 10, 10), np.uint8)
    predicted_HW[5:] = 1
    counts = counted(truth_HW, predicted_HW, 3)
    assert boundary_f1(counts)[:2].tolist() == [0, 0] and np.isnan(boundary_f1(counts)[2])
    assert mean_boundary_f1(counts) == 0


def test_the_default_is_a_share_of_the_diagonal() -> None:
    assert [default_tolerance(side, side) for side in (1, 100, 256, 512, 100_000)] == [1, 1, 3, 5, 5]
