"""Charts as inline SVG, for pages that load nothing: bars with intervals, a confusion matrix, calibration curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from pipeline.results.svg import FAINT, GRID, INK, LETTER, brief, line, raw_text, shortened, svg, swatch, text

SERIES = ("#2563a8", "#e07b39", "#3c9d6b", "#b0413e", "#7d5ba6", "#b8860b", "#3aa6b9", "#d16ba5", "#6b7280", "#8fb339")
HEAT = (37, 99, 168)  # of a full row


class Bar(NamedTuple):
    """A value in 0..1 and its 95 % interval; NaN is drawn as nothing."""

    value: float
    low: float = math.nan
    high: float = math.nan


def bar_chart(groups: Sequence[str], series: Sequence[tuple[str, str]], bars: Sequence[Sequence[Bar]], width: int = 720) -> str:
    """Horizontal bars with whiskers: `bars[group][series]`; `series` are names and colours, told in a legend above."""
    thick, gap, top = (11 if len(series) > 2 else 14), 14, 30
    left = min(240.0, max(70.0, LETTER * max(map(len, groups)) + 16))
    span = width - left - 56
    height = top + len(groups) * (len(series) * thick + gap) + 22
    parts = [_legend(series, left, 12)]
    bottom = height - 22
    for tick in range(0, 11, 2):
        x = left + span * tick / 10
        parts.append(line(x, top, x, bottom, GRID) + text(x, bottom + 15, f"{tick / 10:g}", "middle", FAINT, 11))
    for row, (group, values) in enumerate(zip(groups, bars, strict=True)):
        y = top + gap / 2 + row * (len(series) * thick + gap)
        parts.append(text(left - 8, y + len(series) * thick / 2 + 4, shortened(group, left), "end"))
        for place, ((name, colour), bar) in enumerate(zip(series, values, strict=True)):
            parts.append(_bar(left, y + place * thick, span, thick, colour, bar, f"{group}, {name}"))
    return svg(width, height, parts)


def _bar(left: float, y: float, span: float, thick: float, colour: str, bar: Bar, what: str) -> str:
    if math.isnan(bar.value):
        return text(left + 4, y + thick - 2.5, "none", "start", FAINT, 10)
    end, middle = left + span * max(0.0, min(1.0, bar.value)), y + thick / 2
    told = f"{what}: {bar.value:.3f}"
    parts = [f'<rect x="{left:.1f}" y="{y + 1:.1f}" width="{end - left:.1f}" height="{thick - 2:.1f}" fill="{colour}" rx="1.5"/>']
    last = end
    if math.isfinite(bar.low) and math.isfinite(bar.high):
        low, high = (left + span * max(0.0, min(1.0, edge)) for edge in (bar.low, bar.high))
        parts += [line(low, middle, high, middle, INK, 1.2), *(line(x, middle - 3, x, middle + 3, INK, 1.2) for x in (low, high))]
        told += f" [{bar.low:.3f}, {bar.high:.3f}]"
        last = max(end, high)
    parts.append(text(last + 5, y + thick - 2, f"{bar.value:.2f}", "start", FAINT, 10))
    return f"<g><title>{escape(told)}</title>{''.join(parts)}</g>"


def heat_map(names: Sequence[str], counts: Sequence[Sequence[int]], width: int = 720) -> str:
    """A confusion matrix [truth][predicted]: colour and percent by row, counts in the cells where there is room, and on hovering."""
    count = len(names)
    left = min(220.0, max(80.0, LETTER * max(map(len, names)) + 34))
    cell = min(84.0, (width - left - 70) / count)
    tilt = cell < 76
    top = 34 + (min(130.0, LETTER * 0.75 * max(map(len, names)) + 12) if tilt else 18)
    parts = [text(left + cell * count / 2, 14, "predicted", "middle", FAINT), text(8, top - 8, "truth", "start", FAINT)]
    for number, name in enumerate(names):
        centre = (number + 0.5) * cell
        x = left + centre
        turn = f' transform="rotate(-45 {x:.1f} {top - 6:.1f})"' if tilt else ""
        room = 150 if tilt else cell
        parts.append(text(x, top - 6, shortened(name, room), "start" if tilt else "middle", extra=turn))
        parts.append(text(left - 8, top + centre + 4, shortened(name, left), "end"))
        whole = sum(counts[number])
        for column, pixels in enumerate(counts[number]):
            share = pixels / whole if whole else math.nan
            title = f"{name} called {names[column]}: {pixels:,} px" + ("" if math.isnan(share) else f", {share:.2%} of {name}")
            parts.append(_cell(left + column * cell, top + number * cell, cell, share, pixels, title, number == column))
        parts.append(text(left + count * cell + 6, top + centre + 4, brief(whole), "start", FAINT, 10))
    return svg(width, top + count * cell + 8, parts)


def _cell(x: float, y: float, side: float, share: float, pixels: int, title: str, diagonal: bool) -> str:
    strength = 0.0 if math.isnan(share) else share
    colour = "#" + "".join(f"{round(255 + (full - 255) * strength**0.8):02x}" for full in HEAT)
    ink = "#ffffff" if strength > 0.55 else INK
    edge = f' stroke="{INK}" stroke-width="1"' if diagonal else f' stroke="{GRID}" stroke-width="0.6"'
    parts = [f'<rect x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}" fill="{colour}"{edge}/>']
    size, middle = (12 if side > 44 else 9), y + side / 2
    if side > 22 and not math.isnan(share):
        told = f"{share:.0%}" if share >= 0.005 or not pixels else "&lt;1%"
        parts.append(raw_text(x + side / 2, middle + (0 if side > 44 else 3), told, "middle", ink, size))
        if side > 44:
            parts.append(raw_text(x + side / 2, middle + 14, brief(pixels), "middle", ink, 9))
    return f"<g><title>{escape(title)}</title>{''.join(parts)}</g>"


class Curve(NamedTuple):
    """A bundle's bins: mean confidence, accuracy and share of the pixels of each; only bins that hold any."""

    name: str
    confidence: Sequence[float]
    accuracy: Sequence[float]
    share: Sequence[float]


def calibration_chart(curves: Sequence[Curve], width: int = 520) -> str:
    """Accuracy against confidence: on the diagonal confidence can be believed, below it the model is too sure. Points of a
    bin are larger where it holds more pixels."""
    side, left = 330.0, 56.0
    top = 18 + 18 * len(curves) + 8
    legend = [swatch(left, 18 + 18 * row, SERIES[row % len(SERIES)], curve.name) for row, curve in enumerate(curves)]
    parts = [*legend, line(left, top + side, left + side, top, FAINT, 1, ' stroke-dasharray="4 4"')]
    for tick in range(0, 11, 2):
        x, y = left + side * tick / 10, top + side - side * tick / 10
        parts += [line(x, top, x, top + side, GRID), line(left, y, left + side, y, GRID)]
        parts += [
            text(x, top + side + 16, f"{tick / 10:g}", "middle", FAINT, 11),
            text(left - 6, y + 4, f"{tick / 10:g}", "end", FAINT, 11),
        ]
    parts.append(text(left + side / 2, top + side + 34, "confidence", "middle", FAINT))
    parts.append(text(14, top + side / 2, "accuracy", "middle", FAINT, extra=f' transform="rotate(-90 14 {top + side / 2:.1f})"'))
    for row, curve in enumerate(curves):
        colour = SERIES[row % len(SERIES)]
        points = [(left + side * x, top + side - side * y) for x, y in zip(curve.confidence, curve.accuracy, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        for (x, y), share, sure, right in zip(points, curve.share, curve.confidence, curve.accuracy, strict=True):
            title = escape(f"{curve.name}: confidence {sure:.3f}, accuracy {right:.3f}, {share:.1%} of the pixels")
            radius = 2 + 7 * math.sqrt(share)
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{colour}" fill-opacity="0.75"><title>{title}</title></circle>'
            )
    return svg(width, top + side + 44, parts)


def _legend(series: Sequence[tuple[str, str]], left: float, y: float) -> str:
    parts, x = [], left
    for name, colour in series:
        parts.append(swatch(x, y, colour, shortened(name, 190)))
        x += 30 + LETTER * min(len(name), 28)
    return "".join(parts)


def scatter_chart(counts: Sequence[Sequence[int]], axis: Sequence[float], name: str, side: float = 360.0) -> str:
    """Predicted against true: `counts[truth][predicted]` of the bins that `axis` parts, darker where there are more, on a log scale."""
    left, top, cells = 76.0, 12.0, len(counts)
    bottom, cell, most = top + side, side / cells, math.log1p(max(map(max, counts), default=0)) or 1.0
    parts = [f'<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="none" stroke="{GRID}"/>']
    for true, row in enumerate(counts):
        for called, pixels in enumerate(row):
            if pixels:
                x, y = left + true * cell, bottom - (called + 1) * cell
                strength = 0.12 + 0.88 * math.log1p(pixels) / most
                parts.append(
                    f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell + 0.2:.2f}" height="{cell + 0.2:.2f}" fill="{SERIES[0]}"'
                    f' fill-opacity="{strength:.2f}"><title>{pixels:,} px</title></rect>'
                )
    parts.append(line(left, bottom, left + side, top, INK, 1, ' stroke-dasharray="4 4"'))
    for tick in range(0, 5):
        place, number = side * tick / 4, axis[0] + (axis[-1] - axis[0]) * tick / 4
        parts.append(text(left + place, bottom + 16, f"{number:.4g}", "middle", FAINT, 11))
        parts.append(text(left - 6, bottom - place + 4, f"{number:.4g}", "end", FAINT, 11))
    middle = top + side / 2
    parts.append(text(left + side / 2, bottom + 34, f"true {name}", "middle", FAINT))
    parts.append(text(14, middle, "predicted", "middle", FAINT, extra=f' transform="rotate(-90 14 {middle:.1f})"'))
    return svg(left + side + 20, bottom + 44, parts)
