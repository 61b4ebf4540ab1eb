"""Blocks of labelled scenes, of which scores are known one by one: what a bootstrap draws anew, and what adds up to scenes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.training.block_counts import Unit

ENOUGH_SCENES = 10  # from here on scenes are drawn, not blocks of them


@dataclass(frozen=True)
class Units:
    """Blocks of `block` px a side of so many scenes, and the scored pixels of each, int64 U."""

    units: tuple[Unit, ...]
    block: int
    scenes: int
    pixels_U: np.ndarray

    @property
    def draws_scenes(self) -> bool:
        """Whether intervals come from drawing scenes anew, or blocks of scenes."""
        return self.scenes >= ENOUGH_SCENES

    @property
    def count(self) -> int:
        """How many there are to draw from."""
        return sum(1 for _ in self.scene_members()) if self.draws_scenes else len(self.scored)

    @property
    def drawn(self) -> str:
        """What is drawn anew for intervals, in words."""
        return f"{self.count} scenes" if self.draws_scenes else f"{self.count} blocks of {self.block} px"

    @property
    def scored(self) -> np.ndarray:
        """The units that have a scored pixel: the others would be drawn for nothing."""
        return np.flatnonzero(self.pixels_U)

    def drawable(self, counts_U: np.ndarray) -> np.ndarray:
        """Counts of units as a bootstrap draws them: of scored blocks, or summed over each scene."""
        if not self.draws_scenes:
            return counts_U[self.scored]
        return np.stack([counts_U[members].sum(axis=0) for _, members in self.scene_members()])

    def scene_members(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each scene that has a scored pixel, and its units."""
        of_scene: dict[str, list[int]] = {}
        for number, unit in enumerate(self.units):
            of_scene.setdefault(unit.scene, []).append(number)
        scored = set(self.scored.tolist())
        return ((name, np.array(members)) for name, members in of_scene.items() if scored & set(members))
