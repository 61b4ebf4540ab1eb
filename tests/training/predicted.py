"""Bundles that predict a number, a labelled scene for them, and what comes of it, that tests of several rooms share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pipeline.imagery.bands import Band
from pipeline.models.bundle import Bundle, Target, save_bundle
from pipeline.models.networks import build_network
from pipeline.training.datasets import LabelledScene, open_labelled
from pipeline.training.targets import Numbers
from pipeline.training.value_scoring import ValueEvaluation, evaluate_values
from tests.toys import smooth_noise, wide_logits, write_scene

HEIGHT, WIDTH = 150, 190
NASTY = "<b>height</b> & co"


def value_bundle(folder: Path, seed: int, unit: str = "m") -> Bundle:
    torch.manual_seed(seed)
    network = build_network("unet", 2, 1, width=4, depth=1).eval()
    with torch.inference_mode():
        wide_logits(network, 2, seed)
    values_CHW = torch.from_numpy(smooth_noise(3, (2, 64, 64)).astype(np.float32))
    return save_bundle(
        folder, network, architecture="unet", arguments={"width": 4, "depth": 1},
        bands=[Band(name, mean=128, std=50) for name in "ab"],
        classes=Target(NASTY, unit, 100.0, 2.0, 80.0, 120.0), sample_CHW=values_CHW,
    )  # fmt: skip


def labelled(folder: Path, bundle: Bundle, seed: int = 5) -> LabelledScene:
    """A scene with missing pixels, labels with holes."""
    values_CHW = smooth_noise(seed, (2, HEIGHT, WIDTH))
    values_CHW = np.maximum(values_CHW, 1)
    values_CHW[:, :20, :30] = 0
    truth_HW = (100 + 20 * np.random.default_rng(seed).normal(size=(HEIGHT, WIDTH))).astype(np.float32)
    truth_HW[60:70] = np.nan
    write_scene(folder / f"{seed}.tif", values_CHW, nodata=0, descriptions=["a", "b"])
    write_scene(folder / f"{seed}-truth.tif", truth_HW[None])
    (item,) = open_labelled(
        str(folder / f"{seed}.tif"), labels=str(folder / f"{seed}-truth.tif"), classes=Numbers(unit="m"), bands=bundle.bands
    )
    return item


def evaluated(bundles: dict[str, Bundle], items: list[LabelledScene], folder: Path) -> ValueEvaluation:
    return evaluate_values(bundles, lambda _: items, folder, data="toys", precision="fp32", workers=1)
