"""Days and values stand where they belong; what has no value is not drawn; ticks are round."""

from __future__ import annotations

import math
import re
from datetime import date, timedelta
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from pipeline.results.time_charts import Mark, Series, both, strip_chart, time_chart

SVG = "{http://www.w3.org/2000/svg}"
DAYS = [date(2017, 3, 1) + timedelta(days=10 * number) for number in range(12)]


def parsed(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(chart)


def points(element: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in element.attrib["points"].split())]


def test_a_line_is_straight_where_its_values_are() -> None:
    chart = parsed(time_chart([Series("a<b", "#123456", DAYS, [0.1 * number for number in range(12)])]))
    (line,) = chart.iter(f"{SVG}polyline")
    found = points(line)
    steps = {(round(b[0] - a[0], 0), round(b[1] - a[1], 0)) for a, b in pairwise(found)}
    assert len(found) == 12 and len({dx for dx, _ in steps}) == 1 and all(dy < 0 for _, dy in steps)
    assert line.find(f"{SVG}title").text == "a<b"  # type: ignore[union-attr]


def test_what_has_no_value_is_not_drawn() -> None:
    values = [0.5, 0.6, math.nan, 0.7, *[math.nan] * 8]
    chart = parsed(time_chart([Series("s", "#123456", DAYS, values), Series("s", "#123456", DAYS, values, dots=True)]))
    assert [len(points(line)) for line in chart.iter(f"{SVG}polyline")] == [3]
    assert len(list(chart.iter(f"{SVG}circle"))) == 3
    assert time_chart([Series("s", "#123456", DAYS, [math.nan] * 12)]) == "" and time_chart([]) == ""
    far = [DAYS[0], DAYS[0] + timedelta(days=400)]
    assert len(list(parsed(time_chart([Series("s", "#123456", far, [1, 2])])).iter(f"{SVG}polyline"))) == 2


def test_a_band_is_around_its_line() -> None:
    value = [0.2 + 0.05 * number for number in range(12)]
    series = Series("s", "#123456", DAYS, value, [each - 0.1 for each in value], [each + 0.1 for each in value])
    chart = parsed(time_chart([series]))
    (band,), (line,) = list(chart.iter(f"{SVG}polygon")), list(chart.iter(f"{SVG}polyline"))
    corners = points(band)
    for (x, y), above, below in zip(points(line), corners[:12], reversed(corners[12:]), strict=True):
        assert above[0] == below[0] == x and above[1] < y < below[1] and abs(above[1] + below[1] - 2 * y) < 0.3


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.1, 0.93, ["0", "0.25", "0.5", "0.75", "1"]),
        (0.55, 0.61, ["0.54", "0.56", "0.58", "0.6", "0.62"]),
        (3, 3, ["2.5", "2.75", "3", "3.25", "3.5"]),
    ],
)  # fmt: skip
def test_ends_are_round(low: float, high: float, labels: list[str]) -> None:
    chart = parsed(time_chart([Series("s", "#123456", DAYS[:2], [low, high])]))
    told = [text.text for text in chart.iter(f"{SVG}text") if text.attrib["text-anchor"] == "end"]
    assert told == labels


@pytest.mark.parametrize(("days", "most"), [(20, 21), (120, 6), (900, 20), (4000, 20)])
def test_ticks_have_room_and_tell_the_year(days: int, most: int) -> None:
    chart = time_chart([Series("s", "#123456", [date(2017, 3, 5), date(2017, 3, 5) + timedelta(days=days)], [0, 1])], width=350)
    texts = [text for text in parsed(chart).iter(f"{SVG}text") if text.attrib["text-anchor"] == "middle"]
    x = [float(text.attrib["x"]) for text in texts]
    assert 1 <= len(texts) <= most and all(b - a > 30 for a, b in pairwise(x))
    assert days < 45 or any(re.search(r"20\d\d", text.text or "") for text in texts)


def test_marks_and_strips() -> None:
    chart = parsed(time_chart([Series("s", "#123456", DAYS, [0.5] * 12)], marks=[Mark(DAYS[4], "<here>")]))
    (dashed,) = [line for line in chart.iter(f"{SVG}line") if "stroke-dasharray" in line.attrib]
    (line,) = chart.iter(f"{SVG}polyline")
    assert float(dashed.attrib["x1"]) == points(line)[4][0]
    assert "<here>" in [text.text for text in chart.iter(f"{SVG}text")]
    bars = parsed(strip_chart(DAYS, [number / 11 for number in range(12)], "#123456")).iter(f"{SVG}rect")
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert heights == sorted(heights) and heights[11] == pytest.approx(2.2 * heights[5], rel=0.01)
    assert both(lambda width: f"{width:g}") == '<div class="desk">1000</div><div class="hand">350</div>'


@pytest.mark.parametrize(("colour", "strokes"), [("#D9F0D3", 2), ("#1B7837", 1), ("#E05050", 1)])
def test_a_line_that_would_be_lost_on_white_has_an_edge(colour: str, strokes: int) -> None:
    chart = parsed(time_chart([Series("s", colour, DAYS, [0.5] * 12)]))
    assert len(list(chart.iter(f"{SVG}polyline"))) == strokes
