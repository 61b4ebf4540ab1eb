"""Which part of the labelled data is learnt from, which chooses the best epoch, and which is only measured on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.errors import Refused
from pipeline.geometry.windows import Span, Window
from pipeline.training.datasets import LabelledScene, as_pairs
from pipeline.training.sources import check_apart
from pipeline.training.unknown import known

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
            called: {
                item.name: {
                    "sha256": item.fingerprint,
                    "areas": [list(area) for area in item.areas if area != item.scene.grid.window],
                }
                for item in scenes
            }
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
    """Of the blocks of all scenes, as far as they go of each scene's own; blocks without labels do not count."""
    sides = [block or _block(item) for item in scenes]
    blocks = [_labelled_blocks(item, side) for item, side in zip(scenes, sides, strict=True)]
    held: list[list[tuple[Window, ...]]] = [[() for _ in shares] for _ in scenes]
    seen, taken = 0, [0 for _ in shares]
    for number in np.random.default_rng(seed).permutation(len(scenes)).tolist():
        order = np.random.default_rng([seed, number]).permutation(len(blocks[number])).tolist()
        seen += len(order)
        for place, share in enumerate(shares):
            count = min(_ceil(share * seen) - taken[place], len(order))
            held[number][place] = tuple(blocks[number][index] for index in sorted(order[:count]))
            order, taken[place] = order[count:], taken[place] + count
    if sum(taken) >= seen or taken != [_ceil(share * seen) for share in shares]:
        raise Refused(f"{scenes[0].name}: {seen} blocks of {sides[0]} px have labels, too few to hold any out: choose a smaller --block")
    train = []
    for item, side, labelled, areas in zip(scenes, sides, blocks, held, strict=True):
        drawn = [window for some in areas for window in some]
        if len(drawn) < max(len(labelled), 1):
            margin = min(gap, side // 4)
            train.append(replace(item, excluded=(*item.excluded, *(_grown(window, margin) for window in drawn))))
    return train, [
        [replace(item, areas=areas) for item, areas in zip(scenes, some, strict=True) if areas] for some in zip(*held, strict=True)
    ]


def _labelled_blocks(item: LabelledScene, side: int) -> list[Window]:
    return [window for window in item.pieces(side) if known(item.read_labels(window)).mean() >= LEAST_LABELLED]


def _ceil(count: float) -> int:
    """Rounded up, but for what is no more than a rounding error: 0.07 * 100 is 7."""
    return math.ceil(round(count, 9))


def _block(item: LabelledScene) -> int:
    """A side in px that cuts the scene into some 8 x 8 blocks."""
    shorter = min(item.scene.grid.height, item.scene.grid.width)
    return min(max(shorter // BLOCKS_ACROSS // SMALLEST_BLOCK * SMALLEST_BLOCK, SMALLEST_BLOCK), LARGEST_BLOCK)


def _grown(window: Window, margin: int) -> Window:
    row, col = max(0, window.row - margin), max(0, window.col - margin)
    return Window(row, col, window.rows.stop + margin - row, window.cols.stop + margin - col)


def held_out_of(scenes: Sequence[LabelledScene], known: Mapping[str, Mapping[str, Any] | None]) -> list[LabelledScene]:
    """Of scenes that bundles know, only what none of them was trained on or had its epoch chosen by; scenes are known by content.

    `known` holds what `Split.to_json` gave, by the bundle's name, or None. Where a bundle held out no test set at all, its
    validation set stands in. Raises Refused where nothing is left, or where two bundles held out different areas of one scene.
    """
    for name, parts in known.items():
        if not parts:
            continue
        called = "test" if parts.get("test") else "validation"
        used = {entry["sha256"] for other in ("train", "validation", "test") for entry in parts.get(other, {}).values()}
        areas = {entry["sha256"]: tuple(Window(*area) for area in entry["areas"]) for entry in parts.get(called, {}).values()}
        kept = []
        for item in scenes:
            if item.fingerprint not in used:
                kept.append(item)
            elif item.fingerprint in areas:
                own = areas[item.fingerprint] or item.areas
                whole = (item.scene.grid.window,)
                if whole not in (own, item.areas) and own != item.areas:
                    others = "held out other areas of it than the bundles before"
                    raise Refused(f"{item.name}: {name} {others}: evaluate them on other data, or with --all")
                kept.append(replace(item, areas=item.areas if own == whole else own))
        if not kept:
            raise Refused(f"{name} was trained on all of this data: evaluate it on other data; --all scores it nevertheless")
        scenes = kept
    return list(scenes)
