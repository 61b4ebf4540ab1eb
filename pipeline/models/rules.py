"""A bundle made of rules over indices in place of training: what a region is watched with where nothing is trained yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pipeline.errors import Refused
from pipeline.imagery.bands import Band
from pipeline.imagery.expressions import Expression
from pipeline.imagery.storage import Place
from pipeline.models.bundle import Bundle, ClassEntry, is_name, save_bundle
from pipeline.models.networks import build_network
from pipeline.models.random_bundle import distinct_colour

ARCHITECTURE = "index_rules"
SAMPLE_SIDE = 1024  # px


def save_rules(folder: Place, classes: Sequence[Mapping[str, Any]], resolution_m: float | None = None) -> Bundle:
    """Write a bundle of rules: each class has a `name`, perhaps a `color`, and a condition `when` over band names; the last has none.

    Raises Refused for what is no such list.
    """
    if (
        not isinstance(classes, Sequence)
        or len(classes) < 2
        or not all(isinstance(entry, Mapping) and entry.get("name") for entry in classes)
    ):
        raise Refused("rules: need at least two classes, each with a name, and all but the last with a condition `when`")
    for number, entry in enumerate(classes):
        if ("when" in entry) == (number == len(classes) - 1):
            raise Refused(f"rules: class {entry['name']}: all classes but the last have a condition `when`; the last is what is left")
        if not is_name(str(entry["name"])):
            raise Refused("rules: a class's name is no valid text, or too long")
    conditions = [str(entry["when"]) for entry in classes[:-1]]
    names = sorted({name for text in conditions for name in Expression.parse(text).names})
    arguments = {"names": names, "conditions": conditions}
    network = build_network(ARCHITECTURE, len(names), len(classes), **arguments)
    generator = torch.Generator().manual_seed(0)
    return save_bundle(
        folder, network, architecture=ARCHITECTURE, arguments=arguments, bands=[Band(name) for name in names],
        classes=[ClassEntry(n, str(entry["name"]), str(entry.get("color") or distinct_colour(n))) for n, entry in enumerate(classes)],
        sample_CHW=torch.rand(len(names), SAMPLE_SIDE, SAMPLE_SIDE, generator=generator), resolution_m=resolution_m,
        provenance={"rules": [dict(entry) for entry in classes]},
    )  # fmt: skip
