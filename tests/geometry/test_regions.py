"""Regions found strip by strip are scipy's connected components of the whole raster."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.geometry.regions import Seam, find_regions
from tests.geometry.rasters import NODATA, checkerboard, random_mask, spiral
from tests.geometry.test_sieve import regions_of


def labels_of(mask_HW: np.ndarray, rows: int) -> np.ndarray:
    """A number for each region, joined over the seams, the way a reader of strips would."""
    seam, names, number = Seam.above_all(mask_HW.shape[1], NODATA), [0], 1
    labelled, same = list[np.ndarray](), dict[int, int]()
    for row in range(0, len(mask_HW), rows):
        strip_HW = mask_HW[row : row + rows]
        regions = find_regions(strip_HW, seam)
        assert np.array_equal(regions.values[regions.region_of_node[regions.node_HW[1:]]], strip_HW)
        own = np.arange(number, number + regions.size)
        number += regions.size
        for name, region in zip(names, regions.carried, strict=True):
            same[name] = int(own[region])
        labelled.append(own[regions.region_of_node[regions.node_HW[1:]]])
        seam, reaching = regions.seam()
        assert np.array_equal(seam.values_W, strip_HW[-1])
        names = own[reaching].tolist()

    def last(label: int) -> int:
        while label in same:
            label = same[label]
        return label

    return np.vectorize(last)(np.concatenate(labelled))


@pytest.mark.parametrize("mask_HW", [checkerboard(9, 12), spiral(21), *map(random_mask, range(6))])
@pytest.mark.parametrize("rows", [1, 2, 5, 50])
def test_regions_are_those_of_the_whole(mask_HW: np.ndarray, rows: int):
    found_HW, expected_HW = labels_of(mask_HW, rows), regions_of(mask_HW)
    inside = mask_HW != NODATA
    pairs = set(zip(found_HW[inside].tolist(), expected_HW[inside].tolist(), strict=True))
    assert len(pairs) == len({one for one, _ in pairs}) == len({other for _, other in pairs}) == expected_HW.max()
