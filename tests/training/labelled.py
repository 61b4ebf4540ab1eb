"""A small labelled scene and a training on it, that the tests of the training room share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.geometry.windows import Span
from pipeline.models.bundle import ClassEntry
from pipeline.models.networks import build_network
from pipeline.models.receptive import find_reach
from pipeline.training import fit as fitting
from pipeline.training.classes import ClassTable, LabelClass
from pipeline.training.datasets import LabelledScene, open_labelled
from pipeline.training.fit import Training
from pipeline.training.loop import Recipe
from pipeline.training.splits import HeldOut, split
from pipeline.training.statistics import measure
from tests.toys import smooth_noise, write_scene

HEIGHT, WIDTH = 64, 160
VALIDATION, TEST = Span(90, 110), Span(130, 160)
TABLE = ClassTable((LabelClass(ClassEntry(0, "dark", "#000000"), (0,)), LabelClass(ClassEntry(1, "bright", "#FFFFFF"), (1, 2))))
RECIPE = Recipe(epochs=2, batch=2, window=(16, 16), seed=3, augment="turn")
UNET: dict[str, Any] = {"width": 4, "depth": 1}


def write_pair(folder: Path) -> tuple[Path, Path]:
    """A scene of two bands and its labels on the same grid: how many bands are above their middle."""
    values_CHW = smooth_noise(1, (2, HEIGHT, WIDTH))
    labels_HW = (values_CHW > 128).sum(axis=0).astype(np.uint8)
    return write_scene(folder / "scene.tif", values_CHW), write_scene(folder / "labels.tif", labels_HW[None])


def open_pair(folder: Path) -> list[LabelledScene]:
    return open_labelled(str(folder / "scene.tif"), labels=str(folder / "labels.tif"), classes=TABLE)


def training(folder: Path, recipe: Recipe = RECIPE, arguments: dict[str, Any] = UNET, **more: Any) -> Training:
    """What trains a small U-Net on the pair in `folder`, into `folder/bundle`."""
    return training_on(open_pair(folder), folder, (VALIDATION, TEST), recipe, arguments, **more)


def training_on(
    scenes: list[LabelledScene], folder: Path, held_out: tuple[Span, Span], recipe: Recipe, arguments: dict[str, Any], **more: Any
) -> Training:
    """What trains a U-Net on scenes of two bands; columns are held out for validation and test."""
    reach = find_reach(build_network("unet", 2, scenes[0].table.outputs, **arguments), 2)
    parts = split(scenes, *(HeldOut(columns=columns) for columns in held_out), gap=reach.exact_halo or 0, seed=recipe.seed)
    return Training(
        **{
            "architecture": "unet", "arguments": arguments, "split": parts, "statistics": measure(parts.train, scenes[0].bands),
            "recipe": recipe, "reach": reach, "output": folder / "bundle", "command": "python jobs/train_model.py ...",
            "licences": {"data": "CC0-1.0"}, **more,
        }
    )  # fmt: skip


@contextmanager
def small_halo() -> Iterator[None]:
    """A megapixel through the network for every test would be a minute of nothing new."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "MEGAPIXEL", 4_000)
        patch.setattr(fitting, "MEGAPIXEL_SIDE", 64)
        yield
