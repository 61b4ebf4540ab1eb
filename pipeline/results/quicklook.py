"""A picture a person can read: the scene, the mask over it or the values beside it, a legend with shares or with the colours' values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from rasterio.errors import RasterioError

from pipeline.errors import Refused, Unreadable, one_line
from pipeline.geometry.windows import Window
from pipeline.imagery import storage
from pipeline.imagery.bands import Band
from pipeline.imagery.raster import Scene, opened_dataset
from pipeline.imagery.reader import preview
from pipeline.imagery.storage import Place
from pipeline.inference.plan import Plan
from pipeline.models.bundle import NODATA, Bundle, Target
from pipeline.models.ramp import BLANK, ramp_colours
from pipeline.results.summary import short

SHORTEST, LONGEST = 320, 900  # px: the longer side of each of the two pictures; a small scene is enlarged up to 4 times
MARGIN, LINE = 24, 30
LONGEST_TEXT = 300  # characters: a name out of a catalogue has any length
TICKS = 5
PAPER, INK, FAINT = (255, 255, 255), (32, 32, 32), (110, 110, 110)


class Legend(NamedTuple):
    """What stands below the pictures: how high it is, and what draws it at a corner, in a width, with a font."""

    height: int
    draw: Callable[[ImageDraw.ImageDraw, tuple[int, int], int, Any], None]


def draw_quicklook(plan: Plan, bundle: Bundle, raster: Place, rows: Sequence[dict[str, Any]], target: Path, input_id: str) -> None:
    """Draw a PNG from the scene and its finished mask or values; `rows` are those of the scene's table."""
    pixels_HW = _preview(raster)
    scene_HWC = scene_picture(plan.scene, bundle.bands, plan.region.window, pixels_HW.shape)
    height, width = pixels_HW.shape
    two = max(2 * width + 3 * MARGIN, 640)
    if bundle.target:
        over_HWC, missing = ramp_colours(pixels_HW, bundle.target.low, bundle.target.high), np.isnan(pixels_HW).any()
        legend = Legend(3 * LINE, partial(_draw_ramp, rows[0], bundle.target))
    else:
        over_HWC, missing = _overlay(scene_HWC, pixels_HW, bundle), (pixels_HW == NODATA).any()
        legend = Legend(LINE * -(-len(rows) // 2), partial(_draw_legend, rows, bundle))
    page = Image.new("RGB", (two, height + 3 * LINE + 2 * MARGIN + legend.height + LINE), PAPER)
    draw, font, small = ImageDraw.Draw(page), ImageFont.load_default(20), ImageFont.load_default(16)
    when = f", {plan.scene.datetime[:10]}" if plan.scene.datetime else ""
    draw.text((MARGIN, MARGIN // 2), _fit(f"{plan.scene.scene_id}{when}", two - 2 * MARGIN, font), fill=INK, font=font)
    model = f"{bundle.architecture} {bundle.model_id[:8]}, {plan.precision}"
    size = f"{plan.region.window.width} x {plan.region.window.height} px"
    draw.text((MARGIN, MARGIN // 2 + LINE), _fit(f"{size}; {model}", two - 2 * MARGIN, small), fill=FAINT, font=small)
    top = MARGIN + 2 * LINE
    page.paste(Image.fromarray(scene_HWC), (MARGIN, top))
    page.paste(Image.fromarray(over_HWC), (2 * MARGIN + width, top))
    legend.draw(draw, (MARGIN, top + height + MARGIN), two - 2 * MARGIN, small)
    note = "grey: no data" if missing else ""
    draw.text((MARGIN, top + height + MARGIN + legend.height), note, fill=FAINT, font=small)
    about = PngInfo()
    about.add_text("input_id", input_id)
    page.save(target, format="PNG", pnginfo=about, compress_level=4)


def quicklook_input_id(path: Place) -> str | None:
    """The input that a quicklook was made from; None where there is none."""
    try:
        with storage.opened(path) as file, Image.open(file) as picture:
            return picture.info.get("input_id")
    except OSError:
        return None


def _preview(raster: Place) -> np.ndarray:
    with opened_dataset(raster) as dataset:
        longest = max(dataset.shape)
        scale = min(max(longest, min(SHORTEST, 4 * longest)), LONGEST) / longest
        height, width = (max(1, round(length * scale)) for length in dataset.shape)
        return dataset.read(1, out_shape=(height, width))


def scene_picture(scene: Scene, wanted: Sequence[Band], window: Window, shape: tuple[int, int]) -> np.ndarray:
    """A window of a scene as RGB, H x W x 3 of `shape`, stretched between the 2nd and the 98th percentile of each band.

    `wanted` are the bands that the scene was opened with. What cannot be read is grey.
    """
    names = [(band.common_name or band.name).lower() for band in wanted]
    colours = [names.index(name) for name in ("red", "green", "blue") if name in names]
    bands = colours if len(colours) == 3 else [0, 1, 2] if len(names) >= 3 else [0, 0, 0]
    picture_HWC = np.full((*shape, 3), BLANK, np.uint8)
    try:
        shown = replace(scene, bands=tuple(scene.bands[number] for number in bands))
        values_CHW, valid_CHW = preview(shown, window, shape)
    except (Refused, Unreadable, RasterioError):
        return picture_HWC
    shown_HW = valid_CHW.all(axis=0)
    for channel, values_HW in enumerate(values_CHW):
        values = values_HW.astype(np.float32)
        if shown_HW.any():
            low, high = np.percentile(values[shown_HW], (2, 98))
            stretched = np.clip((values - low) / max(high - low, 1e-9), 0, 1) * 255
            picture_HWC[..., channel] = np.where(shown_HW, stretched.astype(np.uint8), picture_HWC[..., channel])
    return picture_HWC


def painted(ids_HW: np.ndarray, colours: Mapping[int, tuple[int, int, int]]) -> np.ndarray:
    """Class ids in their colours, uint8 H x W x 3; what has none is grey."""
    table = np.full((256, 3), BLANK, np.uint8)
    for value, colour in colours.items():
        table[value] = colour
    return table[ids_HW]


def _overlay(scene_HWC: np.ndarray, ids_HW: np.ndarray, bundle: Bundle) -> np.ndarray:
    colours_HWC = painted(ids_HW, bundle.colours).astype(np.float32)
    shade = scene_HWC.mean(axis=2, keepdims=True, dtype=np.float32)
    mixed = np.float32(0.65) * colours_HWC + np.float32(0.35) * shade
    return np.where((ids_HW == NODATA)[..., None], colours_HWC, mixed).astype(np.uint8)


def _draw_legend(
    rows: Sequence[dict[str, Any]], bundle: Bundle, draw: ImageDraw.ImageDraw, corner: tuple[int, int], width: int, font: Any
) -> None:
    column = width // 2
    for number, row in enumerate(rows):
        x, y = corner[0] + number % 2 * column, corner[1] + number // 2 * LINE
        draw.rectangle((x, y + 3, x + 26, y + 20), fill=bundle.colours[row["class_id"]], outline=INK)
        share = "none" if row["share"] is None else f"{row['share']:.1%}"
        extent = f"{row['pixel_count']:,} px" if row["area_m2"] is None else _ground(row["area_m2"])
        facts = f"  {share}, {extent}"
        name = _fit(row["class_name"], column - 52 - font.getlength(facts), font)
        draw.text((x + 36, y + 1), name + facts, fill=INK, font=font)


def _draw_ramp(row: Mapping[str, Any], target: Target, draw: ImageDraw.ImageDraw, corner: tuple[int, int], width: int, font: Any) -> None:
    """The target's name and its mean, a bar of the ramp, and what the colours at its ends and between stand for."""
    (x, y), unit = corner, f" {_fit(target.unit, width / (2 * TICKS), font)}".rstrip()
    extent = f"{row['valid_pixel_count']:,} px" if row["area_m2"] is None else _ground(row["area_m2"])
    spread = "" if row["mean"] is None else f"mean {short(row['mean'])}, {short(row['minimum'])} to {short(row['maximum'])}{unit}, "
    facts = f"  {spread}{extent}"
    draw.text((x, y + 1), _fit(target.name, width - font.getlength(facts), font) + facts, fill=INK, font=font)
    colours_WC = ramp_colours(np.linspace(target.low, target.high, width)[None], target.low, target.high)[0]
    for step, colour in enumerate(colours_WC.tolist()):
        draw.line((x + step, y + LINE, x + step, y + LINE + 18), fill=tuple(colour))
    for tick in range(TICKS):
        share = tick / (TICKS - 1)
        text = ("or less", "", "or more")[(share > 0) + (share == 1)]
        text = f"{short(target.low + share * (target.high - target.low))}{unit} {text}".rstrip()
        at = x + share * (width - 1)
        draw.line((at, y + LINE + 18, at, y + LINE + 23), fill=INK)
        draw.text((at - share * font.getlength(text), y + LINE + 24), text, fill=INK, font=font)


def _ground(area_m2: float) -> str:
    """An area in a unit in which it can be read."""
    for unit, square_metres in (("km2", 1e6), ("ha", 1e4)):
        if area_m2 >= square_metres:
            return f"{area_m2 / square_metres:,.1f} {unit}"
    return f"{area_m2:,.0f} m2"


def _fit(text: str, width: float, font: Any) -> str:
    """The text, shortened where it is wider than `width` px."""
    text = one_line(" ".join(text[:LONGEST_TEXT].split()))
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
