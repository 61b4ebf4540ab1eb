"""A small scene whose labels are numbers and a training on it, that the tests of several rooms share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter, uniform_filter

from pipeline.geometry.windows import Span
from pipeline.training.datasets import LabelledScene, open_labelled
from pipeline.training.fit import Training
from pipeline.training.loop import Recipe
from pipeline.training.targets import Numbers
from tests.toys import write_scene
from tests.training.labelled import training_on

HEIGHT, WIDTH = 64, 192
VALIDATION, TEST = Span(120, 140), Span(156, 192)
RECIPE = Recipe(epochs=2, batch=2, window=(16, 16), seed=3, augment="turn", loss="mse")
LEARNS = Recipe(epochs=45, batch=2, window=(32, 32), learning_rate=1e-2, augment="turn", loss="mse", seed=1)
UNET: dict[str, Any] = {"width": 8, "depth": 1}
UNKNOWN = -9999.0


def write_heights(folder: Path, dtype: str = "float32") -> tuple[Path, Path]:
    """A scene of two bands and heights in m: how far one is from its mean, and how far a neighbourhood of the other is; so neither
    linear nor of a pixel alone. Image and labels have holes."""
    smooth_CHW = np.stack([gaussian_filter(np.random.default_rng(seed).normal(size=(HEIGHT, WIDTH)), 1.5) for seed in (1, 2)])
    z_CHW = smooth_CHW / smooth_CHW.std(axis=(1, 2), keepdims=True)
    values_CHW = np.clip(128 + 36 * z_CHW, 1, 255).astype(np.uint8)
    around_HW = uniform_filter(z_CHW[1], 5, mode="nearest")
    heights_HW = (100 + 5 * np.abs(z_CHW[0]) + 5 * np.abs(around_HW)).astype(dtype)
    heights_HW[5:12, 20:30] = UNKNOWN
    heights_HW[30:33, 160:170] = UNKNOWN
    values_CHW[:, 50:, :10] = 0
    image = write_scene(folder / "scene.tif", values_CHW, nodata=0, descriptions=["a", "b"])
    return image, write_scene(folder / "height.tif", heights_HW[None], nodata=UNKNOWN)


def open_heights(folder: Path) -> list[LabelledScene]:
    return open_labelled(str(folder / "scene.tif"), labels=str(folder / "height.tif"), classes=Numbers(unit="m"))


def value_training(folder: Path, recipe: Recipe = RECIPE, arguments: dict[str, Any] = UNET, **more: Any) -> Training:
    """What trains a small U-Net on the pair in `folder`, into `folder/bundle`."""
    return training_on(open_heights(folder), folder, (VALIDATION, TEST), recipe, arguments, **more)
