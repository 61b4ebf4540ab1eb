"""The layers that are saved of a scene: how their pixels are stored, and what their overviews are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.errors import Refused
from pipeline.geometry.pyramid import Reduce, average, mean, mode
from pipeline.models.bundle import Bundle


class Layer(NamedTuple):
    """A layer has one band, or one a class."""

    dtype: type[np.generic]
    reduce: Reduce
    of_each_class: bool = False


LAYERS = {
    "mask": Layer(np.uint8, mode),  # class ids
    "confidence": Layer(np.uint8, average),  # 0..100
    "probabilities": Layer(np.uint8, average, of_each_class=True),  # 0..100
    "value": Layer(np.float32, mean),  # of a bundle's target, alone
}


def layers_of(bundle: Bundle, asked: Sequence[str] = ()) -> tuple[str, ...]:
    """The layers to save: the bundle's own, mask or value, and what was asked for beside it. Raises Refused for what it cannot give."""
    others = () if bundle.target else ("confidence", "probabilities")
    for layer in sorted({*asked} - {bundle.layer, *others}):
        if bundle.target:
            raise Refused(f"--save {layer}: the model predicts {bundle.target.name}, a number a pixel: only value can be saved")
        raise Refused(f"--save {layer}: unknown; use mask,confidence,probabilities,polygons")
    return (bundle.layer, *(layer for layer in others if layer in asked))


def bands_of(layers: Sequence[str], classes: int) -> list[str]:
    """The layer of each band, in order: one for mask, confidence and value, one a class for probabilities.

    >>> bands_of(("mask", "probabilities"), 3)
    ['mask', 'probabilities', 'probabilities', 'probabilities']
    """
    return [layer for layer in layers for _ in range(classes if LAYERS[layer].of_each_class else 1)]


def layer_count(layers: Sequence[str], classes: int) -> int:
    """How many bands there are."""
    return len(bands_of(layers, classes))
