"""Weighted statistics of groups, against numpy where weights are equal and exactextract where they are not."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from exactextract import exact_extract
from exactextract.raster import NumPyRasterSource

from pipeline.results.weighted import BINS, QUANTILES, STATISTICS, streamed_statistics, weighted_statistics


@pytest.mark.parametrize("count", [1, 2, 3, 7, 1000])
def test_with_equal_weights_it_is_numpys(count: int):
    random = np.random.default_rng(count)
    values, group = random.normal(size=5 * count) * 10.0 ** random.integers(-3, 4), np.repeat(np.arange(5), count)
    mixed = random.permutation(5 * count)
    found = weighted_statistics(group[mixed], values[mixed], np.full(5 * count, 0.25, np.float32), 5)
    for number in range(5):
        some = values[group == number]
        wanted = [some.mean(), some.std(), some.min(), *np.quantile(some, QUANTILES), some.max()]
        assert found[number] == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_with_weights_it_is_exactextracts():
    random = np.random.default_rng(4)
    values_HW = random.normal(0.4, 0.3, (30, 30))
    polygon = shapely.Polygon([(3.3, 4.1), (25.7, 2.2), (22.1, 27.9), (12.5, 20.0), (5.2, 26.6)])
    source = NumPyRasterSource(values_HW, 0, 0, 30, 30)
    asked = ["mean", "stdev", "min", *(f"quantile(q={q})" for q in QUANTILES), "max", "values", "coverage"]
    names = ["mean", "stdev", "min", *(f"quantile_{int(100 * q)}" for q in QUANTILES), "max"]
    feature = {"type": "Feature", "geometry": shapely.geometry.mapping(polygon), "properties": {}}
    told = exact_extract(source, feature, asked)[0]["properties"]
    values, weights = told.pop("values"), told.pop("coverage")
    found = weighted_statistics(np.zeros(len(values), int), values, weights, 1)[0]
    assert found == pytest.approx([told[name] for name in names], rel=1e-6)


def test_what_is_not_finite_does_not_count():
    values = np.array([1.0, np.nan, 3.0, np.inf, np.nan, -0.0, 0.0])
    found = weighted_statistics(np.array([0, 0, 0, 0, 1, 3, 3]), values, np.ones(7), 5)
    assert found[0].tolist() == [2, 1, 1, *(1 + 2 * q for q in QUANTILES), 3]
    assert np.isnan(found[[1, 2, 4]]).all() and (found[3] == 0).all()
    assert np.isnan(weighted_statistics(np.zeros(0, int), np.zeros(0), np.zeros(0), 2)).all()


@pytest.mark.parametrize("chunk", [1, 37, 100_000])
def test_streamed_it_is_the_same_within_a_bin(chunk: int):
    random = np.random.default_rng(1)
    values, weights = random.gamma(2, 0.2, 20_000), random.random(20_000).astype(np.float32)
    values[::50] = np.nan

    def chunks():
        return ((values[start : start + chunk], weights[start : start + chunk]) for start in range(0, len(values), chunk))

    whole = weighted_statistics(np.zeros(len(values), int), values, weights, 1)[0]
    found = streamed_statistics(chunks)
    exact = [STATISTICS.index(name) for name in ("mean", "std", "minimum", "maximum")]
    assert found[exact] == pytest.approx(whole[exact], rel=1e-6)
    neighbours = np.diff(np.sort(values[np.isfinite(values)]))[: int(0.9 * len(values))].max()
    assert np.abs(found - whole).max() < (whole[8] - whole[2]) / BINS + neighbours
    assert np.isnan(streamed_statistics(lambda: [(np.array([np.nan]), np.ones(1))])).all()
    assert streamed_statistics(lambda: [(np.array([2.0, 2.0]), np.ones(2))]).tolist() == [2, 0, *[2] * 7]
