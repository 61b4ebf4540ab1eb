"""Which part of the labelled data is learnt from, which chooses the best epoch, and which is only measured on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.errors import Refused
from pipeline.geometry.windows import Span, Window
from pipeline.training.classes import IGNORE
from pipeline.training.datasets import LabelledScene, as_pairs
from pipeline.training.sources import check_apart

FEWEST_FILES = 10  # with fewer, a share is taken of spatial blocks
BLOCKS_ACROSS = 8  # of a scene's shorter side, unless said otherwise
SMALLEST_BLOCK, LARGEST_BLOCK = 64, 512  # px
LEAST_LABELLED = 0.01  # of a block's pixels: one with less is in no set's count


@dataclass(frozen=True)
class HeldOut:
    """What is held out: a share 0..1, or columns of the one scene, or scenes of their own; nothing by default."""

    share: float = 0.0
    columns: Span | None = None
    scenes: tuple[LabelledScene, ...] = ()


@dataclass(frozen=True)
class Split:
    """Scenes, or areas of them, in three sets. `how` says in words how they were parted."""

    train: tuple[LabelledScene, ...]
    validation: tuple[LabelledScene, ...]
    test: tuple[LabelledScene, ...]
    how: str

    def sets(self) -> dict[str, tuple[LabelledScene, ...]]:
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def to_json(self) -> dict[str, Any]:
        """The scenes and areas of each set; an area is row, column, height and width, and none means all of the scene."""
        return {"how": self.how} | {
            called: {item.name: [list(area) for area in item.areas if area != item.scene.grid.window] for item in scenes}
            for called, scenes in self.sets().items()
        }


def split(
    scenes: Sequence[LabelledScene], validation: HeldOut, test: HeldOut, *, gap: int, seed: int = 0, block: int | None = None
) -> Split:
    """Part labelled scenes into training, validation and test.

    A share is taken of the files where there are ten or more, else of spatial blocks of `block` px, since neighbouring
    pixels are alike and random ones would leak. Law: no label of a held-out pixel, nor of one nearer to it than `gap` px
    (a quarter of a block at most), is trained on. Raises Refused where a file is in two sets, or a set would be empty.
    """
    held = {"--validation": validation, "--test": test}
    check_apart([("--data", as_pairs(scenes)), *((called, as_pairs(one.scenes)) for called, one in held.items())])
    if block is not None and block < 1:
        raise Refused(f"--block {block}: must be 1 px or more")
    if validation.share + test.share >= 1:
        raise Refused(f"--validation {validation.share:g} and --test {test.share:g}: leave something to train on")
    shares = [one.share for one in held.values()]
    parts: list[list[LabelledScene]] = [[], []]
    ways, train = [], list(scenes)
    if any(one.columns for one in held.values()):
        train, parts = _by_columns(train, held, gap)
        ways.append(f"columns, {gap} px apart")
    if any(shares):
        by_files = len(train) >= FEWEST_FILES and block is None
        train, drawn = _by_files(train, shares, seed) if by_files else _by_blocks(train, shares, seed, block, gap)
        parts = [[*before, *more] for before, more in zip(parts, drawn, strict=True)]
        ways.append(f"files drawn with seed {seed}" if by_files else f"spatial blocks drawn with seed {seed}")
    if any(one.scenes for one in held.values()):
        ways.append("lists of files")
    sets = [(*part, *one.scenes) for part, one in zip(parts, held.values(), strict=True)]
    if not train:
        raise Refused("nothing is left to train on: hold out less")
    if not sets[0]:
        raise Refused("nothing is held out to choose the best epoch by: give --validation, such as 0.2")
    return Split(tuple(train), sets[0], sets[1], "; ".join(ways))


def _by_columns(scenes: list[LabelledScene], held: dict[str, HeldOut], gap: int) -> tuple[list[LabelledScene], list[list[LabelledScene]]]:
    if len(scenes) != 1:
        raise Refused(f"columns are held out of one scene, and there are {len(scenes)}: hold out a share, or name files")
    whole = scenes[0]
    height, width = whole.scene.grid.height, whole.scene.grid.width
    spans = {called: one.columns for called, one in held.items() if one.columns}
    for called, span in spans.items():
        if not 0 <= span.start < span.stop <= width:
            raise Refused(f"{called} {span.start}:{span.stop}: the scene has columns 0:{width}")
    if len(spans) == 2:
        (one, first), (other, second) = spans.items()
        if first.start < second.stop and second.start < first.stop:
            raise Refused(f"{one} {first.start}:{first.stop} overlap {other} {second.start}:{second.stop}")
    windows = {called: Window(0, span.start, height, span.length) for called, span in spans.items()}
    left = np.ones(width, bool)
    for span in spans.values():
        left[max(0, span.start - gap) : span.stop + gap] = False
    if not left.any():
        raise Refused(f"no column is {gap} px (the network's halo) away from the held-out ones: hold out fewer")
    train = replace(whole, excluded=tuple(_grown(window, gap) for window in windows.values()))
    return [train], [[replace(whole, areas=(windows[called],))] if called in windows else [] for called in held]


def _by_files(scenes: list[LabelledScene], shares: Sequence[float], seed: int) -> tuple[list[LabelledScene], list[list[LabelledScene]]]:
    order = np.random.default_rng(seed).permutation(len(scenes)).tolist()
    drawn = []
    for share in shares:
        count = _ceil(share * len(scenes))
        drawn.append([scenes[number] for number in sorted(order[:count])])
        order = order[count:]
    return [scenes[number] for number in sorted(order)], drawn


def _by_blocks(
    scenes: list[LabelledScene], shares: Sequence[float], seed: int, block: int | None, gap: int
) -> tuple[list[LabelledScene], list[list[LabelledScene]]]:
    """Of each scene's own blocks, so that every scene is in every set; blocks without labels do not count."""
    train, drawn = [], [[] for _ in shares]  # type: ignore[var-annotated]
    for number, item in enumerate(scenes):
        side = block or _block(item)
        margin = min(gap, side // 4)
        windows = [window for area in item.areas for window in _cells(area, side)]
        labels = [item.read_labels(window) for window in windows]
        known = [window for window, ids_HW in zip(windows, labels, strict=True) if (ids_HW != IGNORE).mean() >= LEAST_LABELLED]
        counts = [round(share * len(known)) if len(scenes) > 1 else math.ceil(share * len(known)) for share in shares]
        if sum(counts) >= len(known):
            raise Refused(f"{item.name}: {len(known)} blocks of {side} px have labels, too few to hold any out: choose a smaller --block")
        order = np.random.default_rng([seed, number]).permutation(len(known)).tolist()
        excluded: list[Window] = []
        for place, count in enumerate(counts):
            areas = tuple(known[index] for index in sorted(order[:count]))
            order = order[count:]
            if areas:
                drawn[place].append(replace(item, areas=areas))
                excluded += [_grown(window, margin) for window in areas]
        train.append(replace(item, excluded=(*item.excluded, *excluded)))
    return train, drawn


def _block(item: LabelledScene) -> int:
    """A side in px that cuts the scene into some 8 x 8 blocks."""
    shorter = min(item.scene.grid.height, item.scene.grid.width)
    return min(max(shorter // BLOCKS_ACROSS // SMALLEST_BLOCK * SMALLEST_BLOCK, SMALLEST_BLOCK), LARGEST_BLOCK)


def _cells(area: Window, side: int) -> list[Window]:
    return [
        Window(row, col, min(side, area.rows.stop - row), min(side, area.cols.stop - col))
        for row in range(area.row, area.rows.stop, side)
        for col in range(area.col, area.cols.stop, side)
    ]


def _grown(window: Window, margin: int) -> Window:
    row, col = max(0, window.row - margin), max(0, window.col - margin)
    return Window(row, col, window.rows.stop + margin - row, window.cols.stop + margin - col)
