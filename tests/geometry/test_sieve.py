"""Sieving strip by strip is sieving the whole raster by the rule that the module states."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from scipy import ndimage

from pipeline.geometry.sieve import SieveRound
from tests.geometry.rasters import NLCD, NODATA, checkerboard, land_cover, random_mask, spiral
from tests.geometry.test_polygons import pixels

MINIMA = (2, 5, 12)


def sieve_round(mask_HW: np.ndarray, minimum: int, rows: int) -> tuple[np.ndarray, int]:
    sieve = SieveRound(mask_HW.shape[1], pixels, minimum)
    strips = [strip_HW for row in range(0, len(mask_HW), rows) for strip_HW in sieve.push(mask_HW[row : row + rows])]
    return np.concatenate([*strips, *sieve.finish()]), sieve.changed


def sieve_until_done(mask_HW: np.ndarray, minimum: int, rows: int) -> np.ndarray:
    while True:
        mask_HW, changed = sieve_round(mask_HW, minimum, rows)
        if not changed:
            return mask_HW


def regions_of(mask_HW: np.ndarray) -> np.ndarray:
    """A number for each 4-connected region, 0 for nodata."""
    labels_HW = np.zeros(mask_HW.shape, np.int64)
    for value in np.unique(mask_HW[mask_HW != NODATA]):
        found_HW, _ = ndimage.label(mask_HW == value)
        labels_HW[found_HW > 0] = found_HW[found_HW > 0] + labels_HW.max()
    return labels_HW


def whole_round(mask_HW: np.ndarray, minimum: int) -> np.ndarray:
    """The stated rule, region by region, on the whole raster."""
    labels_HW = regions_of(mask_HW)
    numbers, first, size = np.unique(labels_HW, return_index=True, return_counts=True)
    about = {number: (min(count, minimum), -at) for number, at, count in zip(numbers, first, size, strict=True)}
    value = dict(zip(numbers, mask_HW.ravel()[first].tolist(), strict=True))
    sides: dict[int, Counter[int]] = defaultdict(Counter)
    for one_HW, other_HW in ((labels_HW[:, 1:], labels_HW[:, :-1]), (labels_HW[1:], labels_HW[:-1])):
        for one, other in zip(one_HW.ravel(), other_HW.ravel(), strict=True):
            if one and other and one != other:
                sides[one][other] += 1
                sides[other][one] += 1
    result_HW = mask_HW.copy()
    for number in numbers[numbers > 0]:
        border: Counter[int] = Counter()
        for other, length in sides[number].items():
            if about[other][0] == minimum or about[other] > about[number]:
                border[value[other]] += length
        if about[number][0] < minimum and border:
            result_HW[labels_HW == number] = min(border, key=lambda of: (-border[of], of))
    return result_HW


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("minimum", MINIMA)
def test_a_round_is_that_of_the_whole(seed: int, minimum: int):
    mask_HW = random_mask(seed)
    expected_HW = whole_round(mask_HW, minimum)
    for rows in (1, 2, 5, 64):
        found_HW, changed = sieve_round(mask_HW, minimum, rows)
        assert np.array_equal(found_HW, expected_HW)
        assert bool(changed) == (expected_HW != mask_HW).any()


@pytest.mark.parametrize("mask_HW", [checkerboard(21, 17), spiral(31), *map(random_mask, range(4))])
@pytest.mark.parametrize("minimum", MINIMA)
def test_at_the_end_only_what_has_no_neighbour_is_too_small(mask_HW: np.ndarray, minimum: int):
    sieved_HW = sieve_until_done(mask_HW, minimum, 6)
    assert np.array_equal(sieved_HW == NODATA, mask_HW == NODATA), "nodata neither joins nor is joined"
    labels_HW = regions_of(sieved_HW)
    for number in np.flatnonzero(np.bincount(labels_HW.ravel()) < minimum):
        if number:
            around_HW = ndimage.binary_dilation(labels_HW == number) & (labels_HW != number)
            assert (sieved_HW[around_HW] == NODATA).all()


@pytest.mark.skipif(not NLCD.exists(), reason="needs ../shared/data")
def test_a_real_mask():
    mask_HW = land_cover(slice(300, 500), slice(300, 600))
    expected_HW = mask_HW
    for _ in range(2):
        expected_HW = whole_round(expected_HW, 30)
    found_HW = mask_HW
    for _ in range(2):
        found_HW, _ = sieve_round(found_HW, 30, 48)
    assert np.array_equal(found_HW, expected_HW)


def test_strips_come_as_they_were_cut():
    sieve = SieveRound(5, pixels, 4)
    cut = np.split(np.zeros((9, 5), np.uint8), [2, 3, 7])
    given = [made_HW for strip_HW in cut for made_HW in sieve.push(strip_HW)]
    assert [made_HW.shape for made_HW in [*given, *sieve.finish()]] == [strip_HW.shape for strip_HW in cut]
