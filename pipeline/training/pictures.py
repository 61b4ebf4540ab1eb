"""Pictures of training data and of what a network makes of them: images with masks over them, and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.imagery import storage
from pipeline.training.classes import IGNORE, ClassTable

LONGEST = 300  # px: of one picture on a sheet
MARGIN, LINE = 12, 24
PAPER, INK, FAINT, BLANK = (255, 255, 255), (32, 32, 32), (110, 110, 110), (214, 214, 214)
OVER = 0.55  # how much of a mask's colour covers the image
STRETCH = 2.0  # standard deviations of a band that are shown, to either side of its mean


class Example(NamedTuple):
    """An image, normalised fp32 C x H x W, its labels and, where there is one, a prediction, uint8 H x W."""

    name: str
    image_CHW: np.ndarray
    labels_HW: np.ndarray
    predicted_HW: np.ndarray | None = None


def draw_samples(target: Path, examples: Sequence[Example], table: ClassTable, shown: Sequence[int] | None = None) -> None:
    """Write a PNG sheet: for each example the image, the labels over it and the prediction over it, and a legend."""
    across = 3 if any(item.predicted_HW is not None for item in examples) else 2
    rows = [_row(item, table, shown) for item in examples]
    width = max(sum(picture.width + MARGIN for picture in row) + MARGIN for row in rows)
    heights = [row[0].height + LINE for row in rows]
    legend = LINE * -(-len(table.classes) // max(1, width // 180))
    page = Image.new("RGB", (max(width, 480), sum(heights) + len(rows) * MARGIN + LINE + legend + MARGIN), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    titles = ("image", "labels", "prediction")[:across]
    draw.text((MARGIN, 4), ", ".join(titles), fill=FAINT, font=font)
    top = LINE
    for item, row, height in zip(examples, rows, heights, strict=True):
        draw.text((MARGIN, top), item.name[-60:], fill=INK, font=font)
        left = MARGIN
        for picture in row:
            page.paste(picture, (left, top + LINE - 4))
            left += picture.width + MARGIN
        top += height + MARGIN
    for number, label in enumerate(table.classes):
        left, line = MARGIN + number % max(1, width // 180) * 180, top + number // max(1, width // 180) * LINE
        draw.rectangle((left, line + 3, left + 14, line + 17), fill=label.entry.color, outline=FAINT)
        draw.text((left + 20, line), label.entry.name[:20], fill=INK, font=font)
    temporary = storage.temporary(target.parent, target.name)
    page.save(temporary, format="PNG")
    storage.publish(temporary, target)


def _row(item: Example, table: ClassTable, shown: Sequence[int] | None) -> list[Image.Image]:
    bands = shown or ((0, 1, 2) if len(item.image_CHW) >= 3 else (0, 0, 0))
    rgb_HWC = np.clip((item.image_CHW[list(bands)] / STRETCH + 1) * 127.5, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    layers = [rgb_HWC, *(over(rgb_HWC, ids_HW, table) for ids_HW in (item.labels_HW, item.predicted_HW) if ids_HW is not None)]
    height, width = rgb_HWC.shape[:2]
    scale = LONGEST / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return [Image.fromarray(layer).resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR) for layer in layers]


def over(rgb_HWC: np.ndarray, ids_HW: np.ndarray, table: ClassTable) -> np.ndarray:
    """The colours of classes over an image, uint8 H x W x 3; grey where ignored."""
    colours = np.full((256, 3), BLANK, np.float32)
    for label in table.classes:
        colours[label.entry.id] = tuple(bytes.fromhex(label.entry.color[1:]))
    mixed = (1 - OVER) * rgb_HWC + OVER * colours[ids_HW]
    return np.where((ids_HW == IGNORE)[..., None], (0.5 * rgb_HWC + 0.5 * np.array(BLANK)), mixed).astype(np.uint8)


def draw_curves(target: Path, columns: Mapping[str, Sequence[float]]) -> None:
    """Write a PNG of the loss and of the scores against the epoch; `columns` holds `epoch`, `loss` and scores 0..1."""
    from matplotlib.figure import Figure  # half a second to import

    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    losses.plot(columns["epoch"], columns["loss"], color="black")
    losses.set(xlabel="epoch", ylabel="training loss")
    for name, values in columns.items():
        if name not in ("epoch", "loss"):
            strong = not name.startswith("IoU ")
            scores.plot(columns["epoch"], values, label=name, linewidth=2 if strong else 1, alpha=1 if strong else 0.6)
    scores.set(xlabel="epoch", ylabel="on the validation set", ylim=(0, 1))
    scores.legend(fontsize=7, ncols=2)
    temporary = storage.temporary(target.parent, target.name)
    figure.savefig(temporary, format="png", dpi=110)
    storage.publish(temporary, target)
