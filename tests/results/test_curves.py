"""Curves: exact against a dense solution, blind to cloud dips, silent in gaps, near the reference curves of FuseTS."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.results import curves
from pipeline.results.curves import Curves, CurveSettings, fit_curves, grid_days, median_known, neighbours_in_time
from tests.results.real_series import FIELDS, Series, fusets_cropsar, fusets_raw, needs_fusets, needs_slovenia, slovenia

SETTINGS = CurveSettings()


def bell(days: np.ndarray) -> np.ndarray:
    """An index that rises from 0.2 to 0.8 and falls, once a year."""
    return 0.2 + 0.6 * np.exp(-(((days % 365) - 180) ** 2) / (2 * 45**2))


def irregular(parcels: int, dates: int = 70, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dates of two years, and observations of which a third is missing."""
    random = np.random.default_rng(seed)
    days = np.sort(random.choice(np.arange(16_801, 17_531), dates, replace=False))
    values = bell(days)[:, None] + random.normal(0, 0.02, (dates, parcels))
    shares = np.where(random.random((dates, parcels)) < 0.35, 0.0, random.uniform(0.5, 1.0, (dates, parcels)))
    return days, np.where(shares > 0, values, np.nan), shares


def at(curve: Curves, days: np.ndarray) -> np.ndarray:
    """The curves, T x P, at other days, without what is not filled."""
    left = np.searchsorted(curve.days_G, days, side="right") - 1
    part = ((days - curve.days_G[left]) / np.diff(curve.days_G)[0])[:, None]
    return (1 - part) * curve.values_GP[left] + part * curve.values_GP[left + 1]


@pytest.mark.parametrize("step", [1, 5, 10])
def test_a_solution_is_that_of_the_dense_matrix(step: int):
    days, values, weights = irregular(3)
    grid = grid_days(days, step)
    smoother = curves._Smoother(days, grid, 7.0)
    found = smoother.solve(np.nan_to_num(values), weights)
    second = np.diff(np.eye(len(grid)), 2, axis=0)
    hat = np.array([np.interp(days, grid, column) for column in np.eye(len(grid))]).T
    for parcel in range(3):
        weight = np.diag(weights[:, parcel])
        dense = np.linalg.solve(
            hat.T @ weight @ hat + 7.0 * second.T @ second + curves.TINY * np.eye(len(grid)),
            hat.T @ weight @ np.nan_to_num(values[:, parcel]),
        )
        assert np.abs(found[:, parcel] - dense).max() < 1e-6
        assert np.abs(smoother.at_dates(found)[:, parcel] - np.interp(days, grid, dense)).max() < 1e-6


def test_a_straight_line_stays_one_and_noise_becomes_less():
    days = np.arange(16_800, 17_530, 7)
    line = (0.2 + (days - days[0]) * 5e-4)[:, None]
    fitted = fit_curves(days, line, np.ones_like(line), SETTINGS)
    inside = np.isfinite(fitted.values_GP[:, 0])
    assert np.abs(fitted.values_GP[inside, 0] - (0.2 + (fitted.days_G[inside] - days[0]) * 5e-4)).max() < 1e-5
    days, values, shares = irregular(200)
    fitted = fit_curves(days, values, shares, SETTINGS)
    error = fitted.values_GP - bell(fitted.days_G)[:, None]
    assert np.nanquantile(np.abs(error), 0.9) < 0.03 and abs(np.nanmean(error)) < 0.005


def test_parcels_and_chunks_do_not_disturb_each_other(monkeypatch: pytest.MonkeyPatch):
    days, values, shares = irregular(50)
    whole = fit_curves(days, values, shares, SETTINGS)
    monkeypatch.setattr(curves, "CHUNK", 7)
    pieces = fit_curves(days, values, shares, SETTINGS)
    assert whole.values_GP.tobytes() == pieces.values_GP.tobytes() and (whole.kept_TP == pieces.kept_TP).all()
    alone = fit_curves(days, values[:, 11:12], shares[:, 11:12], SETTINGS)
    assert whole.values_GP[:, 11].tobytes() == alone.values_GP[:, 0].tobytes()


def test_a_dip_of_a_cloud_that_no_mask_found_is_ignored_and_a_harvest_is_not():
    days = np.arange(16_800, 17_165, 5)
    random = np.random.default_rng(1)
    clean = np.repeat(bell(days)[:, None], 100, axis=1) + random.normal(0, 0.015, (len(days), 100))
    clouded = clean.copy()
    for parcel in range(100):
        clouded[random.choice(np.arange(2, len(days) - 2), 6, replace=False), parcel] -= random.uniform(0.2, 0.5)
    shares = np.ones_like(clean)
    with_dips, without = (fit_curves(days, values, shares, SETTINGS) for values in (clouded, clean))
    off = np.abs(with_dips.values_GP - without.values_GP)
    assert np.nanquantile(off, 0.95) < 0.04
    assert (~with_dips.kept_TP[clouded != clean]).mean() > 0.9 and with_dips.kept_TP[clouded == clean].mean() > 0.99
    harvested = clean.copy()
    harvested[40:] = 0.15
    fitted = fit_curves(days, harvested, shares, SETTINGS)
    assert fitted.kept_TP[43:].mean() > 0.99  # the first days after it pass for a dip: the curve falls within 15 days
    assert np.nanmax(fitted.values_GP[np.searchsorted(fitted.days_G, days[43]) : -2]) < 0.25


def test_gaps_ends_and_few_observations_are_not_filled():
    days = np.array([16_800, 16_810, 16_820, 16_830, 16_930, 16_940, 16_950, 16_960])
    values = np.full((8, 3), 0.5)
    values[:2, 1] = np.nan
    values[4:, 2] = np.nan
    fitted = fit_curves(days, values, np.isfinite(values).astype(float), SETTINGS)
    filled = np.isfinite(fitted.values_GP)
    near = np.abs(fitted.days_G[:, None] - days).min(axis=1) <= 30
    inside = (fitted.days_G > 16_795) & (fitted.days_G < 16_965)
    assert (filled[:, 0] == (near & inside)).all()
    assert not filled[fitted.days_G < 16_815, 1].any() and filled[fitted.days_G == 16_820, 1]
    assert not filled[:, 2].any() and not fitted.kept_TP[:, 2].any()  # four observations
    assert not np.isfinite(fit_curves(days, np.full((8, 2), np.nan), np.zeros((8, 2)), SETTINGS).values_GP).any()


def test_another_date_moves_no_day_of_the_grid():
    assert set(grid_days(np.array([16_803, 17_001]), 5)) < set(grid_days(np.array([16_803, 17_014]), 5))
    assert (grid_days(np.array([16_803, 17_001]), 5) % 5 == 0).all()


@pytest.mark.parametrize("fault", [{"step_days": 0}, {"smoothness": 0.0}, {"reach_days": 0}, {"noise": 0.0}, {"minimum_observations": 2}])
def test_settings_that_make_no_curve_are_refused(fault: dict[str, float]):
    with pytest.raises(ValueError, match="need step_days"):
        CurveSettings(**fault)  # type: ignore[arg-type]


def test_medians_and_neighbours_are_those_of_numpy():
    _, values, _ = irregular(40)
    assert np.allclose(median_known(values), np.nanmedian(values, axis=0))
    before, after = neighbours_in_time(values)
    for parcel in range(40):
        known = np.flatnonzero(np.isfinite(values[:, parcel]))
        for date in range(len(values)):
            assert before[date, parcel] == max(known[known < date], default=date)
            assert after[date, parcel] == min(known[known > date], default=date)


def held_out(series: Series, smoothness: float) -> float:
    """The median error at dates that were held out whole, an eighth at a time."""
    errors = np.full(series.values_TP.shape, np.nan)
    for fold in range(8):
        out = np.arange(len(series.days_T)) % 8 == fold
        rest = np.where(out[:, None], np.nan, series.values_TP)
        fitted = fit_curves(series.days_T, rest, series.shares_TP, CurveSettings(smoothness=smoothness, reach_days=60))
        errors[out] = (series.values_TP - at(fitted, series.days_T))[out]
    return float(np.nanmedian(np.abs(errors)))


@needs_slovenia
@needs_fusets
def test_the_default_is_near_the_best_for_cloudy_and_for_clear_series():
    """Cross-validated: the best for each is 0.3 to 3; the default costs at most a fifth more than that."""
    for series in (slovenia(4), fusets_raw(FIELDS[1]), fusets_raw(FIELDS[3])):
        errors = {smoothness: held_out(series, smoothness) for smoothness in (0.1, 0.3, 1.0, 3.0, 10.0)}
        assert errors[1.0] <= 1.25 * min(errors.values()), errors
        assert errors[1.0] < 0.055


@needs_fusets
@pytest.mark.parametrize("field", FIELDS)
def test_curves_agree_with_those_that_fusets_made_from_optical_and_radar_images(field: str):
    """Pixels: RMSE at most 0.05 and correlation at least 0.98; the field's mean: 0.045 and 0.99.

    CropSAR lies 0.03 below the clear observations in two fields, so part of it is theirs: of the field's mean, less the reference's own
    distance from the observations, the RMSE is at most 0.03.
    """
    raw, reference = fusets_raw(field), fusets_cropsar(field)
    places = {tuple(place): number for number, place in enumerate(raw.xy_P2)}
    inside = [number for number in range(len(reference.xy_P2)) if np.isfinite(reference.values_TP[:, number]).all()]
    own = [places[tuple(reference.xy_P2[number])] for number in inside]
    fitted = fit_curves(raw.days_T, raw.values_TP[:, own], raw.shares_TP[:, own], SETTINGS)
    theirs = reference.values_TP[:, inside]
    off = at(fitted, reference.days_T) - theirs
    filled = np.isfinite(off)
    assert filled.mean() > 0.9
    assert np.sqrt(np.mean(off[filled] ** 2)) <= 0.05
    assert np.corrcoef((off + theirs)[filled], theirs[filled])[0, 1] >= 0.98
    share = np.isfinite(raw.values_TP[:, own]).mean(axis=1, keepdims=True)
    mean = np.nansum(raw.values_TP[:, own], axis=1, keepdims=True) / np.where(share > 0, share * len(own), np.nan)
    mean_theirs = theirs.mean(axis=1)
    mean_off = at(fit_curves(raw.days_T, mean, share, SETTINGS), reference.days_T)[:, 0] - mean_theirs
    assert np.sqrt(np.nanmean(mean_off**2)) <= 0.045
    own_offset = np.nanmean(mean[:, 0] - np.interp(raw.days_T, reference.days_T, mean_theirs))
    assert np.sqrt(np.nanmean((mean_off - own_offset) ** 2)) <= 0.03
