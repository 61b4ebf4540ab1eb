"""The colours of a target: viridis from its low to its high value, grey where nothing is known."""

from __future__ import annotations

from functools import cache

import numpy as np

from pipeline.models.bundle import Target

BLANK = (214, 214, 214)
STEPS = 256


def ramp_colours(values_HW: np.ndarray, low: float, high: float) -> np.ndarray:
    """Numbers as colours, uint8 H x W x 3: below `low` and above `high` those of the ends, NaN grey."""
    share_HW = np.clip((values_HW - low) / max(high - low, 1e-30), 0, 1)
    place_HW = np.where(np.isnan(share_HW), STEPS, share_HW * (STEPS - 1)).astype(np.int64)
    return _table()[place_HW]


def ramp_legend(target: Target, steps: int = 6) -> list[tuple[str, str]]:
    """Colours of the ramp, #RRGGBB, and the number that each stands for, with the unit; the last says that more is as the end."""
    numbers = np.linspace(target.low, target.high, steps)
    colours = ramp_colours(numbers, target.low, target.high)
    unit = f" {target.unit}" if target.unit else ""
    texts = [f"{number:.0f}{unit}" if 100 <= abs(number) < 1e6 else f"{number:.3g}{unit}" for number in numbers]
    texts = [f"{texts[0]} or less", *texts[1:-1], f"{texts[-1]} or more"]
    return [("#" + bytes(colour.tolist()).hex(), text) for colour, text in zip(colours, texts, strict=True)]


@cache
def _table() -> np.ndarray:
    from matplotlib import colormaps  # half a second to import

    colours = np.round(colormaps["viridis"](np.linspace(0, 1, STEPS))[:, :3] * 255)
    return np.vstack([colours, BLANK]).astype(np.uint8)
