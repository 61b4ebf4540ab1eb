"""The stack that a model of several dates asks for, against numpy, and the seasons that windows belong to."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipeline.errors import Refused
from pipeline.imagery.bands import Band
from pipeline.imagery.catalogue import Asset, Source
from pipeline.imagery.composites import Recipe, recipe_of, seasons_of, stack_id, write_stack
from pipeline.imagery.raster import Scene, open_scene
from tests.toys import write_scene

SHAPE = (2, 700, 90)


def recipe(*names: str) -> Recipe:
    found = recipe_of([Band(name) for name in names])
    assert found is not None
    return found


def test_names_say_what_is_wanted():
    found = recipe("ndvi@04", "red@03-15..04-30:best", "ndvi@03-15..04-30:best", "red@04")
    assert [(each.band, each.step) for each in found.wanted] == [("ndvi", 0), ("red", 1), ("ndvi", 1), ("red", 0)]
    assert found.windows(2021) == [(date(2020, 4, 1), date(2020, 4, 30)), (date(2021, 3, 15), date(2021, 4, 30))]
    assert found.bands == ["ndvi", "red"]
    assert recipe_of([Band("red"), Band("nir")]) is None


@pytest.mark.parametrize("name", ["red", "red@13", "red@04..05-01", "red@04-31..05-01", "red@04:mean", "red@", "red@04-01"])
def test_other_names_are_refused(name: str):
    with pytest.raises(Refused, match="band"):
        recipe_of([Band("ndvi@04"), Band(name)])


def test_a_season_is_called_by_the_year_of_its_last_window():
    months = recipe(*(f"ndvi@{month:02d}" for month in (11, 12, 1, 2, 3)))
    windows = months.windows(2021)
    assert windows[0] == (date(2020, 11, 1), date(2020, 11, 30)) and windows[2] == (date(2021, 1, 1), date(2021, 1, 31))
    assert recipe("a@02").windows(2020) == [(date(2020, 2, 1), date(2020, 2, 29))]
    assert recipe("a@12-15..01-15").windows(2021) == [(date(2020, 12, 15), date(2021, 1, 15))]


def test_a_season_is_there_once_it_is_over_and_every_window_was_seen():
    found = recipe("a@04", "a@07")
    days = [date(2016, 4, 3), date(2017, 4, 9), date(2017, 7, 2)]
    assert seasons_of(found, days) == [], "July 2017 may still bring scenes"
    assert seasons_of(found, [*days, date(2017, 8, 1)]) == [2017]
    assert seasons_of(found, days, date(2017, 7, 31)) == [2017], "or that is all there will be"
    assert seasons_of(found, []) == []


def dated(folder: Path, day: date, seed: int, cloudy: float) -> tuple[date, Scene]:
    random = np.random.default_rng(seed)
    values_CHW = random.integers(1, 10_000, SHAPE).astype(np.uint16)
    values_CHW[:, random.random(SHAPE[1:]) < cloudy] = 0
    values_CHW[0, :5] = 0  # a band that is missing where the other is there
    path = write_scene(folder / f"{day}.tif", values_CHW, descriptions=["red", "nir"], nodata=0)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (1e-4, 1e-4), (-0.1, -0.1)
    return day, open_scene(Source(str(path), str(day), f"{day}T10:00:00Z", (Asset(path),)), [Band("red"), Band("nir")])


def test_a_stack_is_what_numpy_makes_of_the_same_dates(tmp_path: Path):
    found = recipe("red@04", "nir@04", "nir@05-01..06-15:best", "red@05-01..06-15:best")
    days = [
        date(2017, 4, 2),
        date(2017, 4, 12),
        date(2017, 4, 30),
        date(2017, 5, 3),
        date(2017, 5, 30),
        date(2017, 6, 15),
        date(2017, 6, 16),
    ]
    scenes = [
        dated(tmp_path, day, seed, cloudy) for seed, (day, cloudy) in enumerate(zip(days, (0.4, 0.3, 0.9, 0.5, 0.1, 0.3, 0), strict=True))
    ]
    write_stack(found, 2017, scenes, tmp_path / "stack.tif")
    physical = []
    for _, scene in scenes:
        with rasterio.open(scene.bands[0].path) as dataset:
            stored = dataset.read().astype(float)
        physical.append(np.where(stored == 0, np.nan, stored * 1e-4 - 0.1))
    with np.errstate(all="ignore"), pytest.warns(RuntimeWarning):
        april = np.nanmedian(np.stack(physical[:3]), axis=0)
    best = physical[4].copy()
    for other in (physical[5], physical[3]):
        gaps = ~np.isfinite(best).all(axis=0) & np.isfinite(other).all(axis=0)
        best[:, gaps] = other[:, gaps]
    best[:, ~np.isfinite(best).all(axis=0)] = np.nan
    with rasterio.open(tmp_path / "stack.tif") as dataset:
        made = dataset.read()
        assert dataset.descriptions == ("red@04", "nir@04", "nir@05-01..06-15:best", "red@05-01..06-15:best")
        assert dataset.tags()["STACK_ID"] == stack_id(found, 2017, [scene for _, scene in scenes])
    for band, truth in zip(made, (april[0], april[1], best[1], best[0]), strict=True):
        assert np.allclose(band, truth, atol=1e-6, equal_nan=True)
    assert np.isnan(made).any() and np.isfinite(made).mean() > 0.8


def test_a_stack_is_another_where_a_scene_is(tmp_path: Path):
    found = recipe("red@04", "nir@04")
    _, one = dated(tmp_path, date(2017, 4, 2), 1, 0.1)
    _, other = dated(tmp_path, date(2017, 4, 12), 2, 0.1)
    assert len({stack_id(found, 2017, [one]), stack_id(found, 2017, [one, other]), stack_id(found, 2018, [one])}) == 3
    assert stack_id(found, 2017, [one, other]) == stack_id(found, 2017, [other, one])
