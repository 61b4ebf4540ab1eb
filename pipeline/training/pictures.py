"""Pictures of training data and of what a network makes of them: images with masks over them, and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.imagery import storage
from pipeline.imagery.storage import Place
from pipeline.models.bundle import Target
from pipeline.models.ramp import BLANK, ramp_colours, ramp_legend
from pipeline.training.classes import IGNORE, ClassTable

LONGEST = 300  # px: of one picture on a sheet
MARGIN, GAP, LINE, LEGEND, WIDEST = 16, 4, 24, 180, 1400  # px
PAPER, INK, FAINT = (255, 255, 255), (32, 32, 32), (110, 110, 110)
OVER = 0.55  # how much of a mask's colour covers the image
STRETCH = 2.0  # standard deviations of a band that are shown, to either side of its mean


class Example(NamedTuple):
    """An image, normalised fp32 C x H x W, its labels and, where there is one, a prediction, H x W."""

    name: str
    image_CHW: np.ndarray
    labels_HW: np.ndarray
    predicted_HW: np.ndarray | None = None


class Paint(Protocol):
    """How labels are shown."""

    def over(self, rgb_HWC: np.ndarray, labels_HW: np.ndarray) -> np.ndarray:
        """Labels over an image, uint8 H x W x 3."""

    def legend(self) -> list[tuple[str, str]]:
        """Colours, #RRGGBB, and what they mean."""


@dataclass(frozen=True)
class ClassPaint:
    """Class ids in the classes' colours."""

    table: ClassTable

    def over(self, rgb_HWC: np.ndarray, labels_HW: np.ndarray) -> np.ndarray:
        return over(rgb_HWC, labels_HW, self.table)

    def legend(self) -> list[tuple[str, str]]:
        return [(label.entry.color, label.entry.name) for label in self.table.classes]


@dataclass(frozen=True)
class RampPaint:
    """Numbers in the colours of a ramp; the image does not show through, where it would change them."""

    target: Target

    def over(self, rgb_HWC: np.ndarray, labels_HW: np.ndarray) -> np.ndarray:
        return ramp_colours(labels_HW, self.target.low, self.target.high)

    def legend(self) -> list[tuple[str, str]]:
        return ramp_legend(self.target)


def draw_samples(target: Place, examples: Sequence[Example], paint: Paint) -> None:
    """Write a PNG sheet: of each example the image, the labels over it and the prediction over it; and a legend."""
    rows, font = [_pictures(item, paint) for item in examples], ImageFont.load_default(14)
    legend = paint.legend()
    cell = max(sum(picture.width + GAP for picture in row) for row in rows) + MARGIN
    across = min(len(rows), max(1, WIDEST // cell))
    heights = [max(row[0].height for row in rows[first : first + across]) + LINE + MARGIN for first in range(0, len(rows), across)]
    width = max(across * cell + MARGIN, 480)
    named = max(1, width // LEGEND)
    below = LINE + sum(heights)
    page = Image.new("RGB", (width, below + LINE * -(-len(legend) // named) + MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    titles = "image, labels, prediction" if any(item.predicted_HW is not None for item in examples) else "image, labels"
    draw.text((MARGIN, 4), f"{titles}; grey: ignored", fill=FAINT, font=font)
    for number, (item, row) in enumerate(zip(examples, rows, strict=True)):
        left, top = MARGIN + number % across * cell, LINE + sum(heights[: number // across])
        draw.text((left, top), item.name[-cell // 8 :], fill=INK, font=font)
        for picture in row:
            page.paste(picture, (left, top + LINE - 4))
            left += picture.width + GAP
    for number, (colour, name) in enumerate(legend):
        left, line = MARGIN + number % named * LEGEND, below + number // named * LINE
        draw.rectangle((left, line + 3, left + 14, line + 17), fill=colour, outline=FAINT)
        draw.text((left + 20, line), name[:20], fill=INK, font=font)
    temporary = storage.temporary(target.parent, target.name)
    page.save(temporary, format="PNG")
    storage.publish(temporary, target)


def _rgb(item: Example) -> np.ndarray:
    bands = (0, 1, 2) if len(item.image_CHW) >= 3 else (0, 0, 0)
    return np.clip((item.image_CHW[list(bands)] / STRETCH + 1) * 127.5, 0, 255).astype(np.uint8).transpose(1, 2, 0)


def _pictures(item: Example, paint: Paint) -> list[Image.Image]:
    layers = [paint.over(_rgb(item), labels_HW) for labels_HW in (item.labels_HW, item.predicted_HW) if labels_HW is not None]
    return [_sized(layer) for layer in (_rgb(item), *layers)]


def _sized(rgb_HWC: np.ndarray) -> Image.Image:
    height, width = rgb_HWC.shape[:2]
    scale = LONGEST / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Image.fromarray(rgb_HWC).resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR)


def over(rgb_HWC: np.ndarray, ids_HW: np.ndarray, table: ClassTable) -> np.ndarray:
    """The colours of classes over an image, uint8 H x W x 3; grey where ignored."""
    colours = np.full((256, 3), BLANK, np.float32)
    for label in table.classes:
        colours[label.entry.id] = tuple(bytes.fromhex(label.entry.color[1:]))
    mixed = (1 - OVER) * rgb_HWC + OVER * colours[ids_HW]
    return np.where((ids_HW == IGNORE)[..., None], (0.5 * rgb_HWC + 0.5 * np.array(BLANK)), mixed).astype(np.uint8)


class Panel(NamedTuple):
    """Curves that share an axis: what it is called, the curves by name, and from where to where it goes."""

    title: str
    curves: Mapping[str, Sequence[float]]
    limits: tuple[float, float] | None = None


def draw_curves(target: Place, epochs: Sequence[int], loss: Sequence[float], panels: Sequence[Panel]) -> None:
    """Write a PNG of the loss and of scores against the epoch."""
    from matplotlib.figure import Figure  # half a second to import

    figure = Figure(figsize=(5 * (1 + len(panels)), 4), layout="constrained")
    losses, *others = figure.subplots(1, 1 + len(panels))
    losses.plot(epochs, loss, color="black")
    losses.set(xlabel="epoch", ylabel="training loss")
    for axis, panel in zip(others, panels, strict=True):
        for name, values in panel.curves.items():
            strong = not name.startswith("IoU ")
            axis.plot(epochs, values, label=name, linewidth=2 if strong else 1, alpha=1 if strong else 0.6)
        axis.set(xlabel="epoch", ylabel=panel.title, ylim=panel.limits)
    figure.legend(loc="outside lower center", ncols=6, fontsize=7)
    temporary = storage.temporary(target.parent, target.name)
    figure.savefig(temporary, format="png", dpi=110)
    storage.publish(temporary, target)
