"""What a person is told of the scenes of a run: each line holds the scene's own figures, and many scenes are one line."""

from __future__ import annotations

import pytest

from pipeline.results.summary import add_values, short, summary


def row(name: str, pixels: int, mean: float | None, area_m2: float | None = 2e6) -> dict:
    low, high = (None, None) if mean is None else (mean - 1, mean + 2)
    return {
        "scene_id": name, "target_name": "height", "unit": "m", "valid_pixel_count": pixels, "area_m2": area_m2, "mean": mean,
        "minimum": low, "maximum": high,
    }  # fmt: skip


def test_each_scene_has_a_line_of_values():
    lines = summary([[row("a", 1000, 12.3456)], [row("b", 0, None, None)]])
    assert lines[:2] == ["", "height (m)"] and len(lines) == 4
    assert lines[2].split() == ["a", "mean", "12.35,", "11.35", "to", "14.35", "1,000", "px", "2.00", "km2"]
    assert lines[3].split() == ["b", "no", "value", "0", "px"]


def test_many_scenes_are_one_line_whose_mean_is_that_of_the_pixels():
    rows = [row(str(number), 10 * number, float(number)) for number in range(1, 12)]
    total = add_values(rows)
    assert total["mean"] == pytest.approx(sum(10 * number * number for number in range(1, 12)) / total["valid_pixel_count"])
    assert (total["minimum"], total["maximum"], total["area_m2"]) == (0.0, 13.0, 22e6)
    (line,) = summary([[one] for one in rows])[2:]
    assert line.startswith("  11 scenes ") and "0 to 13" in line
    assert add_values([row("a", 0, None, None)])["mean"] is None


def test_names_cannot_forge_lines():
    lines = summary([[row("a\nb", 1, 1.0) | {"target_name": "x\ny", "unit": "\x1b[2J"}]])
    assert not any("\n" in line or "\x1b" in line for line in lines)


def test_nothing_is_told_of_no_scene():
    assert summary([]) == []


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (12.3456, "12.35"), (-3.0, "-3"), (98765.4, "98,765"), (1.2e-5, "1.2e-05"), (3e12, "3e+12")]
)
def test_numbers_are_short(value: float, text: str):
    assert short(value) == text
