"""Scenes of many dates as one: the stack of composites that a multi-temporal model asks for, by the names of its bands.

A band `ndvi@04` is the median of a pixel's clear values in April, `red@03-15..04-30` that from 15 March to 30 April, and
`red@04:best` the pixel of the clearest scene in April that shows it, the same scene for all bands of that window. Windows follow
each other as the model lists them; the last one gives the season its year, so 11, 12, 01 of season 2021 begin in November 2020.
"""

from __future__ import annotations

import calendar
import hashlib
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio

from pipeline.errors import Refused
from pipeline.geometry.windows import Window
from pipeline.imagery.bands import Band
from pipeline.imagery.raster import Scene, opened_dataset
from pipeline.imagery.reader import SceneReader
from pipeline.imagery.storage import Place

NAME = re.compile(r"(?P<band>[^@]+)@(?P<first>\d\d(?:-\d\d)?)(?:\.\.(?P<last>\d\d-\d\d))?(?::(?P<how>median|best))?")
PIECE = 512  # px a side: what is held of all dates at once
CLEAR_STEP = 16  # of the pixels, in rows and columns, one is looked at to tell the clearest scene


@dataclass(frozen=True)
class Step:
    """A window of the year and how its values are made one. Months and days; the last is included."""

    first: tuple[int, int]
    last: tuple[int, int]
    how: str

    def within(self, year: int) -> tuple[date, date]:
        """The window that begins in that year."""
        ends = year + (self.last < self.first)
        return _day(year, *self.first), _day(ends, *self.last)


class Wanted(NamedTuple):
    """A band of a stack: which band of the scenes, in which of the steps."""

    name: str
    band: str
    step: int


@dataclass(frozen=True)
class Recipe:
    """What a multi-temporal model asks for."""

    steps: tuple[Step, ...]
    wanted: tuple[Wanted, ...]

    @property
    def bands(self) -> list[str]:
        """The bands of the scenes that it is made from."""
        return list(dict.fromkeys(each.band for each in self.wanted))

    def windows(self, season: int) -> list[tuple[date, date]]:
        """First and last day of each step, of the season whose last step ends in that year."""
        year = season - (self.steps[-1].last < self.steps[-1].first)
        found = [self.steps[-1].within(year)]
        for step in reversed(self.steps[:-1]):
            year = found[0][0].year
            mine = step.within(year)
            found.insert(0, mine if mine[0] <= found[0][0] else step.within(year - 1))
        return found


def recipe_of(bands: Sequence[Band]) -> Recipe | None:
    """The recipe in the names of a model's bands; None where no band names a date. Raises Refused where only some do."""
    found = [NAME.fullmatch(band.name) for band in bands]
    if not any("@" in band.name for band in bands):
        return None
    steps: list[Step] = []
    wanted: list[Wanted] = []
    for band, match in zip(bands, found, strict=True):
        if match is None:
            raise Refused(f"band {band.name}: a model of several dates names each as band@04, band@03-15..04-30 or band@04:best")
        step = _step(match, band.name)
        if step not in steps:
            steps.append(step)
        wanted.append(Wanted(band.name, match["band"], steps.index(step)))
    return Recipe(tuple(steps), tuple(wanted))


def _step(match: re.Match[str], name: str) -> Step:
    first, last = match["first"], match["last"]
    try:
        if last is None and "-" not in first:
            return Step((int(first), 1), (int(first), calendar.monthrange(2001, int(first))[1]), match["how"] or "median")
        if last is None or "-" not in first:
            raise ValueError(name)
        ends = [tuple(map(int, text.split("-"))) for text in (first, last)]
        for month, day in ends:
            date(2000, month, day)
        return Step(ends[0], ends[1], match["how"] or "median")  # type: ignore[arg-type]
    except (ValueError, calendar.IllegalMonthError):
        raise Refused(f"band {name}: {first}{f'..{last}' if last else ''} is no month and no window such as 03-15..04-30") from None


def _day(year: int, month: int, day: int) -> date:
    """That day; the last of February for 29 February of other years; the whole of February where its last day is meant."""
    length = calendar.monthrange(year, month)[1]
    return date(year, month, length if (month, day) == (2, 28) else min(day, length))


def seasons_of(recipe: Recipe, days: Sequence[date], until: date | None = None) -> list[int]:
    """The seasons that are over on the last of these days, or on `until`, and of which each step holds at least one of them, in order."""
    if not days:
        return []
    found, last = [], max([*days, *([until] if until else [])])
    for season in range(min(days).year, max(days).year + 2):
        windows = recipe.windows(season)
        complete = all(any(first <= day <= last for day in days) for first, last in windows)
        if complete and last >= windows[-1][1]:
            found.append(season)
    return found


def stack_id(recipe: Recipe, season: int, scenes: Sequence[Scene]) -> str:
    """What tells one stack from another: its recipe, its season, and the scenes it is made from."""
    content = repr((recipe, season, sorted((scene.uri, scene.version) for scene in scenes)))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def stack_id_of(file: Place) -> str | None:
    """Which stack a file holds; None where there is none."""
    try:
        with opened_dataset(file) as dataset:
            return str(dataset.tags().get("STACK_ID"))
    except Refused:
        return None


def write_stack(recipe: Recipe, season: int, scenes: Sequence[tuple[date, Scene]], target: Path) -> None:
    """Write the stack of a season as a tiled GeoTIFF: float32 in physical units, NaN where a window shows nothing of a pixel.

    `scenes` share one grid and hold the recipe's bands, in its order. Memory is that of a piece of all dates. Raises Unreadable.
    """
    grid = scenes[0][1].grid
    windows = recipe.windows(season)
    with ExitStack() as stack:
        readers = [(day, stack.enter_context(SceneReader(scene))) for day, scene in sorted(scenes, key=lambda pair: (pair[0], pair[1].uri))]
        orders = [_order(step, window, readers) for step, window in zip(recipe.steps, windows, strict=True)]
        made = stack.enter_context(rasterio.open(
            target, "w", driver="GTiff", height=grid.height, width=grid.width, count=len(recipe.wanted), dtype="float32",
            crs=grid.rasterio_crs, transform=grid.affine, nodata=float("nan"), tiled=True, blockxsize=PIECE, blockysize=PIECE,
            compress="deflate", predictor=3, bigtiff="if_safer",
        ))  # fmt: skip
        made.descriptions = tuple(each.name for each in recipe.wanted)
        made.update_tags(STACK_ID=stack_id(recipe, season, [scene for _, scene in scenes]))
        for row in range(0, grid.height, PIECE):
            for col in range(0, grid.width, PIECE):
                window = Window(row, col, min(PIECE, grid.height - row), min(PIECE, grid.width - col))
                _write_piece(made, recipe, orders, window)


def _order(step: Step, window: tuple[date, date], readers: Sequence[tuple[date, SceneReader]]) -> list[SceneReader]:
    """The scenes of a step; for the best pixel the clearest first, and of two alike the one nearer to the window's middle."""
    mine = [(day, reader) for day, reader in readers if window[0] <= day <= window[1]]
    if step.how == "median":
        return [reader for _, reader in mine]
    middle = window[0] + (window[1] - window[0]) / 2
    ranked = sorted(mine, key=lambda pair: (-_clear(pair[1]), abs(pair[0] - middle), pair[0]))
    return [reader for _, reader in ranked]


def _clear(reader: SceneReader) -> float:
    """The share of a scene that shows ground in all bands, from a sparse look at it."""
    grid = reader.scene.grid
    clear = total = 0
    for row in range(0, grid.height, PIECE):
        pixels = reader.read(Window(row, 0, min(PIECE, grid.height - row), grid.width))
        sparse = slice(None, None, CLEAR_STEP)
        valid_HW = np.ones((1, 1), bool) if pixels.valid_CHW is None else pixels.valid_CHW[:, sparse, sparse].all(axis=0)
        clear, total = clear + int(valid_HW.mean() * 1e6), total + 1
    return clear / total


def _write_piece(made: rasterio.io.DatasetWriter, recipe: Recipe, orders: Sequence[Sequence[SceneReader]], window: Window) -> None:
    composites = {}
    for number, (step, readers) in enumerate(zip(recipe.steps, orders, strict=True)):
        values_TCHW = np.stack([_physical(reader, window) for reader in readers])
        composites[number] = _best(values_TCHW) if step.how == "best" else median_known(values_TCHW)
    area = rasterio.windows.Window(window.col, window.row, window.width, window.height)
    for index, each in enumerate(recipe.wanted, 1):
        made.write(composites[each.step][recipe.bands.index(each.band)], index, window=area)


def _physical(reader: SceneReader, window: Window) -> np.ndarray:
    """A window in physical units, C x H x W float32, NaN where nothing is known."""
    pixels = reader.read(window)
    scale, offset = (np.array([getattr(band, name) for band in reader.scene.bands]).reshape(-1, 1, 1) for name in ("scale", "offset"))
    values_CHW = (pixels.values_CHW * scale + offset).astype(np.float32)
    return values_CHW if pixels.valid_CHW is None else np.where(pixels.valid_CHW, values_CHW, np.float32(np.nan))


def median_known(values_T: np.ndarray) -> np.ndarray:
    """The median along the first axis, dates, of what is not NaN, of the middle two their mean; NaN where nothing is known."""
    ordered_T = np.sort(values_T, axis=0)  # NaN last
    count = np.isfinite(ordered_T).sum(axis=0)
    places = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, len(ordered_T) - 1)
    low, high = (np.take_along_axis(ordered_T, place[None], axis=0)[0] for place in places)
    return (low + high) / 2


def _best(values_TCHW: np.ndarray) -> np.ndarray:
    """The first date that shows a pixel in all bands."""
    whole_THW = np.isfinite(values_TCHW).all(axis=1)
    first_HW = whole_THW.argmax(axis=0)
    chosen_CHW = np.take_along_axis(values_TCHW, first_HW[None, None], axis=0)[0]
    return np.where(whole_THW.any(axis=0), chosen_CHW, np.float32(np.nan))
