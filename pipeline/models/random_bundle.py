"""A bundle with random weights: it segments nothing, and is all that a benchmark or a test needs."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from typing import Any

import torch

from pipeline.errors import Refused
from pipeline.imagery.bands import Band
from pipeline.imagery.storage import Place
from pipeline.models.bundle import NODATA, Bundle, ClassEntry, save_bundle
from pipeline.models.networks import build_network

GOLDEN_TURN = 0.618033988749895  # of the colour circle: successive hues stay apart, however many there are
SAMPLE_SIDE = 1024  # px: two of the largest strides that blocks can align with


def save_random_bundle(
    folder: Place, *, architecture: str, arguments: Mapping[str, Any], bands: int, classes: int, seed: int = 0, **about: Any
) -> Bundle:
    """Write a bundle of a network as it is before any training; its weights follow from `seed`.

    Bands are called band_1, band_2 ... and are not scaled; classes class_0, class_1 ... in distinct colours. The halo is
    the exact one. Raises Refused for an architecture or a number that cannot be.
    """
    if bands < 1 or not 1 <= classes <= NODATA:
        raise Refused(f"--bands {bands} --classes {classes}: need at least 1 band and 1 to {NODATA} classes")
    torch.manual_seed(seed)
    network = build_network(architecture, bands, classes, **arguments)
    sample_CHW = torch.randn(bands, SAMPLE_SIDE, SAMPLE_SIDE)
    return save_bundle(
        folder, network, architecture=architecture, arguments=arguments,
        bands=[Band(f"band_{number}") for number in range(1, bands + 1)],
        classes=[ClassEntry(number, f"class_{number}", distinct_colour(number)) for number in range(classes)],
        sample_CHW=sample_CHW, **about,
    )  # fmt: skip


def distinct_colour(number: int) -> str:
    """The colour of class `number`, as #RRGGBB: hues a golden turn apart, in three brightnesses."""
    red, green, blue = colorsys.hsv_to_rgb(number * GOLDEN_TURN % 1, 0.75, (0.95, 0.7, 0.5)[number % 3])
    return f"#{round(255 * red):02X}{round(255 * green):02X}{round(255 * blue):02X}"
