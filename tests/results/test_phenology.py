"""Seasons of curves: those of a loop over parcels, those of FuseTS, and none where there is none."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from pipeline.results.curves import CurveSettings, fit_curves
from pipeline.results.phenology import GROWING, KNOWN, UNKNOWN, Phenology, PhenologySettings, find_season
from tests.results.real_series import FIELDS, FUSETS, Series, day, fusets_cropsar, fusets_raw, needs_fusets, needs_slovenia, slovenia

SETTINGS = PhenologySettings()
YEAR_2019 = (day("2019-01-01"), day("2019-12-31"))
GRID = np.arange(day("2017-01-01"), day("2021-01-01"), 5)


def hill(peak: int, width: float, height: float = 0.6) -> np.ndarray:
    return height * np.exp(-((GRID - peak) ** 2) / (2 * width**2))


def season_of(curve: np.ndarray, window: tuple[int, int] = YEAR_2019, settings: PhenologySettings = SETTINGS) -> Phenology:
    """The season of one curve, as numbers."""
    return Phenology(*(what[0] for what in find_season(GRID, curve[:, None], window, settings)))


def slow_season(days: np.ndarray, curve: np.ndarray, fraction: float) -> tuple[float, float, float]:
    """Start, peak and end of a curve of one year without gaps, by the definition, day by day."""
    peak = int(np.argmax(curve))
    fine = np.arange(days[0], days[-1] + 0.001, 0.01)
    values = np.interp(fine, days, curve)
    before, after = fine <= days[peak], fine >= days[peak]
    low, high = curve[: peak + 1].min(), curve[peak:].min()
    start = fine[before][values[before] <= low + fraction * (curve[peak] - low) + 1e-9][-1]
    end = fine[after][values[after] <= high + fraction * (curve[peak] - high) + 1e-9][0]
    return start, days[peak], end


def test_a_season_is_found_where_it_was_put():
    found = season_of(0.2 + hill(day("2019-07-01"), 30))
    level = 30 * np.sqrt(-2 * np.log(SETTINGS.fraction))  # days from the peak at which the hill has a fifth of its height
    assert found.state == KNOWN
    assert abs(found.peak - day("2019-07-01")) <= 2.5
    assert abs(found.start - (day("2019-07-01") - level)) < 1 and abs(found.end - (day("2019-07-01") + level)) < 1
    assert (found.base_value, found.peak_value, found.amplitude) == pytest.approx((0.2, 0.8, 0.6), abs=0.003)


def test_every_year_has_its_own_season_and_the_highest_peak_decides():
    peaks = {2018: day("2018-05-20"), 2019: day("2019-08-10"), 2020: day("2020-06-01")}
    curve = 0.15 + sum(hill(peak, 35) for peak in peaks.values()) + hill(day("2019-04-20"), 20, height=0.3)
    for year, peak in peaks.items():
        found = season_of(curve, (day(f"{year}-01-01"), day(f"{year}-12-31")))
        assert found.state == KNOWN and abs(found.peak - peak) <= 2.5, year
        assert found.start < peak < found.end


def test_a_season_may_cross_new_year():
    """Winter wheat: sown in October, harvested in July; it belongs to the year of its peak, and in the south to a window of its own."""
    wheat = season_of(0.2 + hill(day("2019-04-25"), 90))
    assert wheat.state == KNOWN and wheat.start < day("2019-01-01") < wheat.peak
    south = 0.2 + hill(day("2019-01-04"), 50)
    found = season_of(south, (day("2018-07-01"), day("2019-06-30")))
    assert found.state == KNOWN and found.start < day("2019-01-01") < found.end
    assert season_of(south, (day("2018-01-01"), day("2018-12-31"))).state == UNKNOWN  # it rises into the next year: no peak
    assert season_of(south, YEAR_2019).state == KNOWN


@pytest.mark.parametrize(
    "curve",
    [
        np.full(len(GRID), 0.7),
        0.7 + hill(day("2019-07-01"), 40, height=0.08),
        np.full(len(GRID), np.nan),
        np.where(day("2019-06-20") <= GRID, 0.2 + hill(day("2019-07-01"), 40), np.nan),
        np.where(np.abs(GRID - day("2019-05-10")) < 25, np.nan, 0.2 + hill(day("2019-07-01"), 30)),
    ],
    ids=["flat", "low", "never seen", "seen from the peak on", "start in a gap"],
)
def test_what_does_not_rise_and_fall_is_unknown(curve: np.ndarray):
    found = season_of(curve)
    assert found.state == UNKNOWN
    assert np.isnan([float(what) for what in found[1:]]).all()


def test_a_season_that_has_not_fallen_yet_grows_until_its_window_ends():
    curve = 0.2 + hill(day("2019-07-01"), 30)
    until = np.searchsorted(GRID, day("2019-06-25"))
    early = Phenology(*(what[0] for what in find_season(GRID[:until], curve[:until, None], YEAR_2019, SETTINGS)))
    assert early.state == GROWING and np.isnan(early.end)
    assert abs(early.start - season_of(curve).start) < 3  # it moves with the peak so far
    assert early.peak == GRID[until - 1] and early.amplitude == pytest.approx(curve[until - 1] - 0.2, abs=1e-3)
    flat_after = np.where(day("2019-07-01") < GRID, 0.75, curve)  # never falls, and 2019 is over
    assert season_of(flat_after).state == UNKNOWN


def test_parcels_do_not_disturb_each_other_and_dates_outside_leave_nothing():
    curves = np.stack([0.2 + hill(day("2019-07-01") + shift, 30 + shift / 4) for shift in range(-60, 60, 7)], 1)
    together = find_season(GRID, curves, YEAR_2019, SETTINGS)
    for parcel in range(curves.shape[1]):
        alone = find_season(GRID, curves[:, parcel : parcel + 1], YEAR_2019, SETTINGS)
        assert all((one[parcel] == other[0]) for one, other in zip(together, alone, strict=True))
    assert (find_season(GRID, curves, (day("1999-01-01"), day("1999-12-31")), SETTINGS).state == UNKNOWN).all()


@pytest.mark.parametrize("fault", [{"fraction": 1.0}, {"fraction": -0.1}, {"minimum_amplitude": 0.0}])
def test_settings_without_a_meaning_are_refused(fault: dict[str, float]):
    with pytest.raises(ValueError, match="need 0 <= fraction < 1"):
        PhenologySettings(**fault)


@pytest.fixture(scope="module")
def fusets() -> tuple[Series, dict[str, np.ndarray], np.ndarray]:
    """CropSAR's curves of a field, FuseTS' phenology of them, and the pixels that are in the field."""
    reference = fusets_cropsar(FIELDS[0])
    with h5py.File(FUSETS / FIELDS[0] / "phenology.nc") as file:
        theirs = {name: file[name][0].ravel() for name in ("pos_times", "sos_times", "eos_times", "pos_values", "bse_values", "aos_values")}
    return reference, theirs, np.isfinite(theirs["pos_values"]) & np.isfinite(reference.values_TP).all(axis=0)


@needs_fusets
def test_their_start_is_the_lowest_day_on_which_the_curve_rises_before_its_peak(fusets):
    """What "start" means in the reference: Phenolopy's `first_of_slope`, which it is in all pixels."""
    reference, theirs, inside = fusets
    left = np.where(np.arange(len(reference.days_T))[:, None] <= reference.values_TP.argmax(axis=0), reference.values_TP, np.nan)
    lowest = np.where(np.gradient(left, axis=0) > 0, left, np.inf).argmin(axis=0)
    assert (reference.days_T[lowest] - YEAR_2019[0] + 1 == theirs["sos_times"])[inside].all()


@needs_fusets
def test_phenology_of_their_curves_is_theirs(fusets):
    """Of 2,322 pixels 2,314 have a season that rises and falls. Peak, base and amplitude: equal. Start and end: half within a step."""
    reference, theirs, inside = fusets
    found = find_season(reference.days_T, reference.values_TP, YEAR_2019, PhenologySettings(fraction=0))
    known = inside & (found.state == KNOWN)
    assert known.sum() >= 0.99 * inside.sum()
    assert (found.peak[known] - YEAR_2019[0] + 1 == theirs["pos_times"][known]).all()
    assert np.allclose(found.peak_value[known], theirs["pos_values"][known] * 0.004 - 0.08, atol=1e-9)
    assert np.allclose(found.base_value[known], theirs["bse_values"][known] * 0.004 - 0.08, atol=1e-9)
    assert np.allclose(found.amplitude[known], theirs["aos_values"][known] * 0.004, atol=1e-9)
    for ours, name in ((found.start, "sos_times"), (found.end, "eos_times")):
        off = np.abs(ours - YEAR_2019[0] + 1 - theirs[name])[known]
        assert np.median(off) <= 5 and np.quantile(off, 0.9) <= 15
    default = find_season(reference.days_T, reference.values_TP, YEAR_2019, SETTINGS)
    assert (default.start >= found.start)[known].all() and (default.end <= found.end)[known].all()


@needs_fusets
@pytest.mark.parametrize("fraction", [0.2, 0.5])
def test_seasons_of_real_curves_are_those_of_a_loop(fusets, fraction: float):
    reference, _, inside = fusets
    pixels = np.flatnonzero(inside)[::23]
    found = find_season(reference.days_T, reference.values_TP[:, pixels], YEAR_2019, PhenologySettings(fraction=fraction))
    for number, pixel in enumerate(pixels):
        if found.state[number] == KNOWN:
            slow = slow_season(reference.days_T, reference.values_TP[:, pixel], fraction)
            assert np.abs(np.array([found.start[number], found.peak[number], found.end[number]]) - slow).max() < 0.02
    assert (found.state == KNOWN).mean() > 0.95


@needs_fusets
def test_phenology_of_our_own_curves_is_near_that_of_theirs(fusets):
    """From Sentinel-2 alone against theirs from optical and radar images, both by our definition."""
    reference, _, inside = fusets
    raw = fusets_raw(FIELDS[0])
    places = {tuple(place): number for number, place in enumerate(raw.xy_P2)}
    pixels = np.flatnonzero(inside)
    own = [places[tuple(reference.xy_P2[pixel])] for pixel in pixels]
    fitted = fit_curves(raw.days_T, raw.values_TP[:, own], raw.shares_TP[:, own], CurveSettings())
    ours = find_season(fitted.days_G, fitted.values_GP, YEAR_2019, SETTINGS)
    theirs = find_season(reference.days_T, reference.values_TP[:, pixels], YEAR_2019, SETTINGS)
    both = (ours.state == KNOWN) & (theirs.state == KNOWN)
    assert both.mean() > 0.9
    for name, median, p90 in (("start", 4, 8), ("peak", 10, 20), ("end", 4, 8)):
        off = np.abs(getattr(ours, name) - getattr(theirs, name))[both]
        assert np.median(off) <= median and np.quantile(off, 0.9) <= p90, name


@needs_slovenia
def test_the_seasons_of_slovenian_parcels_are_those_of_a_temperate_year():
    """2017: green from March to November, forest above meadows all year. What the pictures of the curves show."""
    series = slovenia(4)
    fitted = fit_curves(series.days_T, series.values_TP, series.shares_TP, CurveSettings())
    found = find_season(fitted.days_G, fitted.values_GP, (day("2017-01-01"), day("2017-12-31")), SETTINGS)
    known = found.state == KNOWN
    assert known.mean() > 0.95
    assert day("2017-02-15") < np.quantile(found.start[known], 0.05) and np.quantile(found.start[known], 0.95) < day("2017-04-15")
    assert day("2017-05-01") < np.quantile(found.peak[known], 0.05)
    assert day("2017-11-01") < np.quantile(found.end[known], 0.05)
    forest, meadow = (known & (np.array(series.names) == name) for name in ("forest", "grassland"))
    assert np.median(found.base_value[forest]) > np.median(found.base_value[meadow]) + 0.1
    assert np.median(found.amplitude[meadow]) > np.median(found.amplitude[forest]) + 0.1
