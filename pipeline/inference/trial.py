"""Try engines and precisions on windows spread over the scenes of a run, before work on them begins."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from pipeline.errors import Refused, Unreadable
from pipeline.geometry.windows import Window, ceil_to
from pipeline.imagery.raster import Scene
from pipeline.imagery.reader import SceneReader
from pipeline.imagery.region import Region
from pipeline.imagery.storage import Place
from pipeline.models.bundle import Bundle
from pipeline.models.choice import Sample, Trial
from pipeline.models.engine import Scaling

SIDE = 256  # px of a window
MOST, SHARE = 24, 8  # windows: fewer leave out values that int8 then cuts off; and no more than one pixel in 8
GOLDEN = 0.6180339887498949  # its multiples, modulo 1, are spread evenly


def prepare_trial(
    bundle: Bundle, device: str, asked: str, scenes: Sequence[tuple[Scene, Region]], *, workers: int, kept: Place | None = None
) -> Trial:
    """A trial of engines for the new scenes of a run with that many workers; `kept` is where OUT keeps its int8 network."""
    pixels = sum(region.window.pixels for _, region in scenes)

    def samples() -> list[Sample]:
        return list(_samples(bundle, scenes, pixels))

    return Trial(bundle, device, asked, samples, work_px=pixels / workers, kept=kept, threads=len(os.sched_getaffinity(0)))


def _samples(bundle: Bundle, scenes: Sequence[tuple[Scene, Region]], pixels: int) -> Iterator[Sample]:
    """Windows at even steps through the pixels of all scenes; those that cannot be read or hold nothing are left out."""
    side, count = ceil_to(SIDE, bundle.reach.stride), min(MOST, max(1, pixels // (SHARE * SIDE**2)))
    steps = [(number + 0.5) / count * pixels for number in range(count)]
    before = 0
    for scene, region in scenes:
        size = region.window.pixels
        mine = [(step - before) / size for step in steps if before <= step < before + size]
        before += size
        if not mine:
            continue
        try:
            with SceneReader(scene) as reader:
                scaling = Scaling.of(scene.bands, bundle.bands)
                for number, down in enumerate(mine):
                    pixels_CHW = reader.read(_window(scene, region.window, bundle.reach.stride, side, down, number * GOLDEN % 1))
                    if pixels_CHW.valid_CHW is None or pixels_CHW.valid_CHW.all(axis=0).any():
                        yield Sample(pixels_CHW, scaling)
        except (Unreadable, Refused):
            continue  # it is named when its shards fail


def _window(scene: Scene, region: Window, stride: int, side: int, down: float, across: float) -> Window:
    """A window on the stride, `down` and `across` (0..1) the region, inside the scene padded to the stride."""

    def place(start: int, length: int, share: float, whole: int) -> tuple[int, int]:
        size = min(side, ceil_to(whole, stride))
        first = int(start + max(0, length - size) * share) // stride * stride
        return min(first, ceil_to(whole, stride) - size), size

    row, height = place(region.row, region.height, down, scene.grid.height)
    col, width = place(region.col, region.width, across, scene.grid.width)
    return Window(row, col, height, width)
