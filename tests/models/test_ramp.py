"""Colours of numbers: those of matplotlib's viridis, grey for what is unknown, and a legend of the same colours."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps

from pipeline.models.bundle import Target
from pipeline.models.ramp import BLANK, ramp_colours, ramp_legend


def test_numbers_have_viridis_colours_and_nan_is_grey() -> None:
    values_HW = np.array([[2.0, 3.0, 4.0, -9.0, 9.0, np.nan]], np.float32)
    found = ramp_colours(values_HW, 2.0, 4.0)[0]
    expected = [np.round(np.array(colormaps["viridis"](share)[:3]) * 255) for share in (0.0, 127 / 255, 1.0, 0.0, 1.0)]
    assert found.dtype == np.uint8 and np.abs(found[:5].astype(int) - expected).max() <= 1
    assert tuple(found[5]) == BLANK


def test_the_legend_says_which_colour_is_which_number() -> None:
    legend = ramp_legend(Target("height", "m", 10, 3, 0.0, 50.0), steps=3)
    assert [text for _, text in legend] == ["0 m or less", "25 m", "50 m or more"]
    for (colour, _), number in zip(legend, (0.0, 25.0, 50.0), strict=True):
        assert bytes.fromhex(colour[1:]) == ramp_colours(np.array([[number]]), 0.0, 50.0).tobytes()
