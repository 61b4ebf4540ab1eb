"""Charts over time as inline SVG: lines with bands and marks, and a strip of bars, a day in its true place."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from html import escape
from typing import NamedTuple

from pipeline.results.svg import FAINT, GRID, INK, line, svg, text

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
LABEL = 46.0  # px that a label of the time axis needs
BOTTOM, TOP, LEFT, RIGHT = 22.0, 8.0, 44.0, 10.0
WIDTHS = 1000.0, 350.0
MARKED = 14.0  # px more above, where marks are told
GAP_DAYS = 200  # a line is not drawn over more days without a value


class Series(NamedTuple):
    """Values by day; NaN where there is none. `low` and `high` are the ends of a band around them; `dots` are drawn unjoined."""

    name: str
    colour: str
    days: Sequence[date]
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dots: bool = False
    width: float = 1.8


class Mark(NamedTuple):
    """A day that a chart points out."""

    day: date
    label: str


class Axes(NamedTuple):
    """From where to where a chart goes, and the box that it is drawn in, px."""

    first: date
    last: date
    low: float
    high: float
    width: float
    height: float
    top: float = TOP

    def x(self, day: date) -> float:
        span = max(1, (self.last - self.first).days)
        return LEFT + (self.width - LEFT - RIGHT) * (day - self.first).days / span

    def y(self, value: float) -> float:
        inside = self.height - self.top - BOTTOM
        return self.top + inside * (1 - (value - self.low) / ((self.high - self.low) or 1.0))


def time_chart(
    series: Sequence[Series], *, width: float = 680, height: float = 260, percent: bool = False,
    marks: Sequence[Mark] = (), span: tuple[date, date] | None = None, limits: tuple[float, float] | None = None, title: str = "",
) -> str:  # fmt: skip
    """Lines with bands and dots; what is not said is taken from the values. Nothing where there is no value."""
    days = [day for each in series for day in each.days]
    told = [value for each in series for row in (each.values, each.low, each.high) for value in row if math.isfinite(value)]
    if not days or not told:
        return ""
    first, last = span or (min(days), max(days))
    low, high, step = _limits(*(limits or (min(told), max(told))))
    axes = Axes(first, last, low, high, width, height, TOP + (MARKED if marks else 0))
    parts = [*_grid(axes, step, percent), *(_band(axes, each) for each in series), *(_drawn(axes, each, percent) for each in series)]
    parts += [_mark(axes, mark) for mark in marks]
    return svg(width, height, parts, title)


def both(draw: Callable[[float], str]) -> str:
    """A chart in the width of a desk's screen and in that of a phone's, of which the page shows one: letters stay as large."""
    desk, hand = WIDTHS
    return f'<div class="desk">{draw(desk)}</div><div class="hand">{draw(hand)}</div>'


def strip_chart(days: Sequence[date], shares: Sequence[float], colour: str, width: float = 680, height: float = 96) -> str:
    """A bar a day, as high as its share."""
    axes = Axes(days[0], days[-1], 0.0, 1.0, width, height)
    thick = max(1.2, min(9.0, 0.7 * (width - LEFT - RIGHT) / max(1, len(days))))
    parts = _grid(axes, 0.5, True)
    for day, share in zip(days, shares, strict=True):
        x, y = axes.x(day), axes.y(share)
        told = f"{day}: {share:.0%}"
        parts.append(
            f'<rect x="{x - thick / 2:.1f}" y="{y:.1f}" width="{thick:.1f}" height="{max(0.8, axes.y(0) - y):.1f}" fill="{colour}">'
            f"<title>{told}</title></rect>"
        )
    return svg(width, height, parts, "valid share by date")


def _grid(axes: Axes, step: float, percent: bool) -> list[str]:
    parts = []
    for number in range(round((axes.high - axes.low) / step) + 1):
        value = axes.low + number * step
        y = axes.y(value)
        label = f"{value * 100:.3g} %" if percent else f"{value:.3g}"
        parts += [line(LEFT, y, axes.width - RIGHT, y, GRID), text(LEFT - 6, y + 4, label, "end", FAINT, 11)]
    bottom = axes.height - BOTTOM
    parts.append(line(LEFT, bottom, axes.width - RIGHT, bottom, FAINT))
    for day, label in _ticks(axes):
        x = axes.x(day)
        parts += [line(x, bottom, x, bottom + 4, FAINT), text(x, bottom + 16, label, "middle", FAINT, 11)]
    return parts


def _ticks(axes: Axes) -> list[tuple[date, str]]:
    """Firsts of months, as many as have room; a January is called by its year. Of a few weeks, days."""
    room = max(2, int((axes.width - LEFT - RIGHT) / LABEL))
    count = (axes.last - axes.first).days
    if count < 45:
        every = max(1, math.ceil((count + 1) / room))
        days = [axes.first + timedelta(days=number) for number in range(0, count + 1, every)]
        return [(day, f"{day.day} {MONTHS[day.month - 1]}") for day in days]
    months = (axes.last.year - axes.first.year) * 12 + axes.last.month - axes.first.month + 1
    every = next((step for step in (1, 2, 3, 6, 12, 24, 60) if months / step <= room), 120)
    ticks = []
    for number in range(months + 1):
        year, month = divmod(axes.first.year * 12 + axes.first.month - 1 + number, 12)
        day = date(year, month + 1, 1)
        if (year * 12 + month) % every == 0 and axes.first <= day <= axes.last:
            ticks.append((day, str(year) if month == 0 else MONTHS[month]))
    if ticks and not any(label.isdigit() for _, label in ticks):
        ticks[0] = (ticks[0][0], f"{ticks[0][1]} {ticks[0][0].year}")
    return ticks


def _limits(low: float, high: float) -> tuple[float, float, float]:
    """Round ends around the values, and the step between lines: four to six of them; 0 is an end where it is near."""
    if 0 < low < 0.4 * high:
        low = 0.0
    if low == high:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(times * power for times in (1, 2, 2.5, 5, 10) if times * power >= rough * 0.999)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step


def _pieces(series: Series, rows: Sequence[Sequence[float]]) -> list[list[int]]:
    """The numbers of values that belong together: all rows are told, and no long time lies between."""
    pieces: list[list[int]] = []
    for number, day in enumerate(series.days):
        if not all(math.isfinite(row[number]) for row in rows):
            continue
        if pieces and (day - series.days[pieces[-1][-1]]).days <= GAP_DAYS:
            pieces[-1].append(number)
        else:
            pieces.append([number])
    return pieces


def _band(axes: Axes, series: Series) -> str:
    if not series.low or series.dots:
        return ""
    parts = []
    for piece in _pieces(series, (series.low, series.high)):
        there = [f"{axes.x(series.days[number]):.1f},{axes.y(series.high[number]):.1f}" for number in piece]
        back = [f"{axes.x(series.days[number]):.1f},{axes.y(series.low[number]):.1f}" for number in reversed(piece)]
        parts.append(f'<polygon points="{" ".join(there + back)}" fill="{series.colour}" fill-opacity="0.18"/>')
    return "".join(parts)


def _drawn(axes: Axes, series: Series, percent: bool) -> str:
    if series.dots:
        return "".join(_dot(axes, series, number, percent) for piece in _pieces(series, (series.values,)) for number in piece)
    parts = []
    for piece in _pieces(series, (series.values,)):
        points = " ".join(f"{axes.x(series.days[number]):.1f},{axes.y(series.values[number]):.1f}" for number in piece)
        if _is_light(series.colour):
            cased = f'stroke="{INK}" stroke-opacity="0.45" stroke-width="{series.width + 1.6:g}" stroke-linejoin="round"'
            parts.append(f'<polyline points="{points}" fill="none" {cased}/>')
        stroke = f'stroke="{series.colour}" stroke-width="{series.width:g}" stroke-linejoin="round"'
        parts.append(f'<polyline points="{points}" fill="none" {stroke}><title>{escape(series.name)}</title></polyline>')
        if len(piece) == 1:
            parts.append(_dot(axes, series, piece[0], percent))
    return "".join(parts)


def _is_light(colour: str) -> bool:
    """Whether a line of that colour is lost on white: below a contrast of 1.7 (WCAG 2.2's relative luminance)."""
    shares = [channel / 255 for channel in bytes.fromhex(colour[1:])]
    red, green, blue = (share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
    return 1.05 / (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05) < 1.7


def _dot(axes: Axes, series: Series, number: int, percent: bool) -> str:
    value, told = series.values[number], ""
    if series.low and math.isfinite(series.low[number]):
        told = f" ({_value(series.low[number], percent)} to {_value(series.high[number], percent)})"
    title = escape(f"{series.name}, {series.days[number]}: {_value(value, percent)}{told}")
    x, y = axes.x(series.days[number]), axes.y(value)
    edge = f' stroke="{INK}" stroke-opacity="0.45" stroke-width="0.8"' if _is_light(series.colour) else ""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" fill="{series.colour}"{edge}><title>{title}</title></circle>'


def _mark(axes: Axes, mark: Mark) -> str:
    x = axes.x(mark.day)
    label = text(min(max(x, 40), axes.width - 40), axes.top - 6, mark.label, "middle", INK, 11)
    return line(x, axes.top - 2, x, axes.height - BOTTOM, "#b0413e", 1.4, ' stroke-dasharray="4 3"') + label


def _value(value: float, percent: bool) -> str:
    return f"{value:.1%}" if percent else f"{value:.3g}"
