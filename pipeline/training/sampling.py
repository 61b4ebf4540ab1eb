"""Draw training windows from labelled scenes where they lie: nothing is cut to disk beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.geometry.windows import Window
from pipeline.training.augmentation import Augmentation
from pipeline.training.datasets import LabelledScene
from pipeline.training.statistics import Statistics
from pipeline.training.unknown import are_numbers

Sample = tuple[torch.Tensor, torch.Tensor, int]  # image_CHW fp32, labels_HW int64 (of numbers fp32), the draw


class Draws(Dataset[Sample]):
    """Windows of `size` (height, width) px by the number of their draw: a draw follows from the seed and its number alone.

    So every worker can draw any of them, and a resumed run draws those that an uninterrupted one would have. An epoch
    has as many draws as windows fit into the labelled pixels, at least one a scene. A window lies where a labelled pixel
    is; `balanced` draws that pixel's class first, each as often as the others, else a scene is drawn as often as it has
    pixels. A scene that is smaller than a window is padded with missing values that are ignored.
    """

    def __init__(
        self, scenes: Sequence[LabelledScene], statistics: Statistics, size: tuple[int, int], augmentation: Augmentation, *,
        balanced: bool = False, seed: int = 0,
    ):  # fmt: skip
        self.scenes, self.statistics, self.size = tuple(scenes), statistics, size
        self.augmentation, self.balanced, self.seed = augmentation, balanced, seed
        labelled_S = statistics.counts_SK.sum(axis=1)
        windows_S = np.maximum(1, np.rint(labelled_S / (size[0] * size[1]))).astype(int) * (labelled_S > 0)
        self.slots = np.repeat(np.arange(len(self.scenes)), windows_S)
        self._shuffled = lru_cache(2)(self._shuffle)

    @property
    def epoch_length(self) -> int:
        """Draws in an epoch."""
        return len(self.slots)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_shuffled"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__ |= state
        self._shuffled = lru_cache(2)(self._shuffle)

    def _shuffle(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.slots)

    def __getitem__(self, draw: int) -> Sample:
        """Normalised image_CHW fp32, labels_HW int64 (255 ignored) or of numbers fp32 (NaN), and the draw. Raises Unreadable."""
        random = np.random.default_rng([self.seed, 1, draw])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(random.integers(2**62)))
            zoom = self.augmentation.zoom()
            item, window = self._window(draw, random, zoom)
            block = item.read(window)
            image_CHW = block.normalised(self.statistics.bands)
            image_CHW, labels_HW = self.augmentation(image_CHW, torch.from_numpy(block.labels_HW), self.size)
        return image_CHW.contiguous(), labels_HW if are_numbers(labels_HW) else labels_HW.long(), draw

    def place(self, draw: int) -> str:
        """Where a draw's window lies, for messages."""
        random = np.random.default_rng([self.seed, 1, draw])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(random.integers(2**62)))
            item, window = self._window(draw, random, self.augmentation.zoom())
        return f"{item.name} (row {window.row}, column {window.col})"

    def _window(self, draw: int, random: np.random.Generator, zoom: float) -> tuple[LabelledScene, Window]:
        number, kind = self._class_and_scene(draw, random)
        item, places = self.scenes[number], self.statistics.positions[number][kind]
        row, col = places[random.integers(len(places))].tolist()
        height, width = (max(1, round(side / zoom)) for side in self.size)
        grid = item.scene.grid
        top, left = _start(random, row, height, grid.height), _start(random, col, width, grid.width)
        return item, Window(top, left, height, width)

    def _class_and_scene(self, draw: int, random: np.random.Generator) -> tuple[int, int]:
        """Which scene, and which class of pixel in it."""
        counts_SK = self.statistics.counts_SK
        if self.balanced:
            kind = int(random.choice(np.flatnonzero(counts_SK.sum(axis=0))))
            return int(random.choice(len(counts_SK), p=counts_SK[:, kind] / counts_SK[:, kind].sum())), kind
        number = int(self._shuffled(draw // self.epoch_length)[draw % self.epoch_length])
        return number, int(random.choice(counts_SK.shape[1], p=counts_SK[number] / counts_SK[number].sum()))


def _start(random: np.random.Generator, pixel: int, window: int, length: int) -> int:
    """Where a window starts that holds `pixel` and lies inside the axis, every place as likely; 0 where it does not fit."""
    low, high = max(0, pixel - window + 1), min(pixel, length - window)
    return int(random.integers(low, high + 1)) if length > window else 0


def collate(samples: Sequence[Sample]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """batch_BCHW, labels_BHW and the draws."""
    images, labels, draws = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(labels), list(draws)
