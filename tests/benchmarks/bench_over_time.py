"""How long do curves, seasons and changes of 100,000 parcels on 68 dates take, and how much longer would a loop over parcels?

    python tests/benchmarks/bench_over_time.py [--parcels 100000] [--dates 68] [--tables]

The loop solves the same equations, as often, with scipy.linalg.solveh_banded; it is timed on 300 parcels. --tables times
write_over_time on made-up tables, five classes a parcel, and a second time, when they are current.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.linalg import solveh_banded

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline.results import curves
from pipeline.results.changes import ChangeSettings, class_flips, index_drops
from pipeline.results.curves import CurveSettings, fit_curves, grid_days
from pipeline.results.over_time import TABLES, OverTimeSettings, write_over_time
from pipeline.results.peers import find_peers
from pipeline.results.phenology import PhenologySettings, find_season
from tests.benchmarks.machine import describe_machine
from tests.results.monitored import MODEL_ID, Monitored, write_date, write_geometry

LOOPED = 300


def made_up(dates: int, parcels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Days over 29 months, an index T x P with a yearly course, noise and clouds, half of it missing, and valid shares."""
    random = np.random.default_rng(0)
    days = np.sort(random.choice(np.arange(16_627, 17_522), dates, replace=False))
    peak = random.normal(180, 25, parcels)
    course = 0.2 + 0.6 * np.exp(-(((days[:, None] - peak) % 365 - 182) ** 2) / (2 * 45**2))
    values = course + random.normal(0, 0.03, course.shape) - np.where(random.random(course.shape) < 0.05, 0.3, 0.0)
    shares = np.where(random.random(course.shape) < 0.5, 0.0, random.uniform(0.5, 1.0, course.shape))
    return days, np.where(shares > 0, values, np.nan).astype(np.float32), shares.astype(np.float32)


def timed(what: str, parcels: int, work):  # type: ignore[no-untyped-def]
    start = time.perf_counter()
    done = work()
    taken = time.perf_counter() - start
    print(f"{what:50s} {taken:8.1f} s   {taken / parcels * 1e6:8.1f} us a parcel", flush=True)
    return done, taken


def loop(days: np.ndarray, values: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The equations of `fit_curves`, one parcel after another."""
    settings = CurveSettings()
    grid = grid_days(days, settings.step_days)
    main, first, second = curves._penalty_bands(len(grid), settings.smoothness)
    left = np.searchsorted(grid, days, side="right") - 1
    part = (days - grid[left]) / settings.step_days
    noise = curves._noise(days, values.astype(float), settings)
    found = np.empty((len(grid), values.shape[1]))
    for parcel in range(values.shape[1]):
        known, weight = np.nan_to_num(values[:, parcel]), shares[:, parcel] * (settings.noise / noise[parcel]) ** 2
        robust = np.ones(len(days))
        for turn in range(curves.ROUNDS + 1):
            w = weight * robust
            bands = np.stack([main + curves.TINY, first, second])
            np.add.at(bands[0], left, w * (1 - part) ** 2)
            np.add.at(bands[0], left + 1, w * part**2)
            np.add.at(bands[1], left, w * part * (1 - part))
            right = np.bincount(left, w * (1 - part) * known, len(grid)) + np.bincount(left + 1, w * part * known, len(grid))
            curve = solveh_banded(bands, right, lower=True)
            if turn < curves.ROUNDS:
                below = np.clip(((1 - part) * curve[left] + part * curve[left + 1] - known) / (curves.BISQUARE * noise[parcel]), 0, 1)
                robust = (1 - below**2) ** 2
        found[:, parcel] = curve
    return found


def seasons(fitted: curves.Curves, year: tuple[int, int]) -> None:
    for part in curves.chunks(fitted.values_GP.shape[1]):
        find_season(fitted.days_G, fitted.values_GP[:, part], year, PhenologySettings())


def bench_arrays(dates: int, parcels: int) -> None:
    days, values, shares = made_up(dates, parcels)
    fitted, taken = timed("curves", parcels, lambda: fit_curves(days, values, shares, CurveSettings()))
    few = slice(0, LOOPED)
    looped, slow = timed(f"the same in a loop, {LOOPED} parcels", LOOPED, lambda: loop(days, values[:, few], shares[:, few]))
    told = np.isfinite(fitted.values_GP[:, few])
    assert np.abs(looped - fitted.values_GP[:, few])[told].max() < 1e-4
    print(f"the loop takes {slow / LOOPED / (taken / parcels):.1f} times as long")
    years = [(16_801, 17_166), (17_167, 17_531)]
    timed(
        "seasons of two years", parcels, lambda: [find_season(fitted.days_G, fitted.values_GP, year, PhenologySettings()) for year in years]
    )
    random = np.random.default_rng(1)
    classes = np.where(np.isfinite(values), random.choice(5, values.shape, p=[0.9, 0.04, 0.03, 0.02, 0.01]), 255).astype(np.uint8)
    timed("class flips", parcels, lambda: class_flips(classes, 3))
    places = random.uniform(0, 300 * np.sqrt(parcels), (parcels, 2))
    peers, _ = timed("neighbours of five classes", parcels, lambda: find_peers(places, np.arange(parcels) % 5, 15))
    timed("drops of the index", parcels, lambda: index_drops(days, values, peers, ChangeSettings()))


def bench_tables(dates: int, parcels: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        made, results = Monitored(parcels=parcels, dates=dates, classes=5), Path(name)
        for number in range(dates):
            write_date(results, made, number)
        write_geometry(results, made)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        timed("write_over_time", parcels, lambda: write_over_time(results, "region", OverTimeSettings(), MODEL_ID))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        timed("write_over_time, nothing new", parcels, lambda: write_over_time(results, "region", OverTimeSettings(), MODEL_ID))
        sizes = ", ".join(f"{kind} {(results / kind / 'region.parquet').stat().st_size / 2**20:.1f} MiB" for kind in TABLES)
        print(f"{sizes}; peak memory {after:.0f} MiB, {before:.0f} MiB before it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parcels", type=int, default=100_000)
    parser.add_argument("--dates", type=int, default=68)
    parser.add_argument("--tables", action="store_true", help="time the tables too")
    options = parser.parse_args()
    print(describe_machine())
    print(f"{options.parcels} parcels, {options.dates} dates")
    bench_arrays(options.dates, options.parcels)
    if options.tables:
        bench_tables(options.dates, options.parcels)


if __name__ == "__main__":
    main()
