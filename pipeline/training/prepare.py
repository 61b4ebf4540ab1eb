"""From what a person asks for to a training: data opened, split and measured, checked, described and drawn before any of it begins."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from pipeline.errors import Refused
from pipeline.geometry.windows import Span
from pipeline.imagery import storage
from pipeline.imagery.storage import Place
from pipeline.models.networks import build_network
from pipeline.models.receptive import find_reach
from pipeline.training.classes import ClassTable, colour_value, read_classes
from pipeline.training.datasets import LabelledScene, open_labelled
from pipeline.training.fit import Training, check_window
from pipeline.training.loop import Recipe
from pipeline.training.pictures import Example, draw_samples
from pipeline.training.splits import HeldOut, Split, split
from pipeline.training.statistics import Statistics, class_weights, count_labels, measure
from pipeline.training.targets import Numbers
from pipeline.training.validation import context_px, some_cores

ON_SHEET = 12  # samples on each sheet of `draw_check`


@dataclass(frozen=True)
class Request:
    """What is asked for. `validation` and `test` are a share, columns A:B, or sources; without `augment` it depends on the data."""

    architecture: str
    data: Sequence[str]
    output: Place
    recipe: Recipe
    arguments: dict[str, Any] = field(default_factory=dict)
    labels: str | None = None
    classes: str | None = None
    class_column: str | None = None
    ignored: Sequence[str] = ()  # label values, or colours #RRGGBB
    bands: Sequence[str] | None = None
    validation: Sequence[str] = ("0.2",)
    test: Sequence[str] = ("0",)
    block: int | None = None
    augment: str | None = None
    encoder: str | None = None
    trusted: bool = False
    licences: dict[str, str] = field(default_factory=dict)
    command: str = ""

    @property
    def run(self) -> Place:
        """The folder beside the bundle for what is kept of its training."""
        return self.output.with_name(f"{self.output.name}.run")


def prepare(request: Request) -> Training:
    """Open, split and measure the data, and look at the network. Raises Refused and Unreadable."""
    recipe = request.recipe
    held = {called: held_out(words) for called, words in (("validation", request.validation), ("test", request.test))}
    scenes = open_all(request, request.data)
    sets = {called: replace(one, scenes=tuple(open_all(request, places, scenes[0]))) for called, (one, places) in held.items()}
    bands, outputs = scenes[0].bands, scenes[0].table.outputs
    torch.manual_seed(recipe.seed)
    reach = find_reach(build_network(request.architecture, len(bands), outputs, **request.arguments), len(bands))
    check_window(recipe, reach)
    parts = split(scenes, sets["validation"], sets["test"], gap=context_px(reach), seed=recipe.seed, block=request.block)
    statistics = measure(parts.train, bands, recipe.seed)
    class_weights(statistics.counts, recipe.class_weights)
    augment = request.augment or ("turn" if scenes[0].scene.grid.crs else "flip")
    return Training(
        architecture=request.architecture, arguments=request.arguments, split=parts, statistics=statistics,
        recipe=replace(recipe, augment=augment), reach=reach, output=request.output, command=request.command,
        licences=request.licences, run=request.run, encoder=request.encoder, warnings=tuple(warnings_of(parts, statistics)),
    )  # fmt: skip


def open_all(request: Request, places: Sequence[str], like: LabelledScene | None = None) -> list[LabelledScene]:
    """The labelled scenes of several sources, with the bands and classes of one that is open, or as they are asked for."""
    if not places:
        return []
    meaning = like.table if like else meaning_of(request)
    return open_labelled(
        places, labels=request.labels, classes=meaning, bands=like.bands if like else request.bands,
        class_column=request.class_column, ignored=() if meaning else label_values(request.ignored), trusted=request.trusted,
    )  # fmt: skip


def meaning_of(request: Request) -> ClassTable | Numbers | None:
    """What labels mean, as it is asked for; None: each of their values is a class."""
    if not request.recipe.of_numbers:
        return read_classes(storage.place_of(request.classes), label_values(request.ignored)) if request.classes else None
    if request.classes:
        raise Refused(f"--classes {request.classes}: with --loss {request.recipe.loss} labels are numbers, not classes: leave it out")
    return Numbers(ignored=label_numbers(request.ignored, request.recipe.loss))


def label_values(words: Sequence[str]) -> list[int]:
    """Whole numbers and colours of --ignore. Raises Refused for others."""
    try:
        return [colour_value(word) for word in words]
    except ValueError as error:
        raise Refused(f"--ignore {' '.join(words)}: labels of classes are whole numbers or colours #RRGGBB ({error})") from None


def label_numbers(words: Sequence[str], loss: str) -> tuple[float, ...]:
    """Numbers of --ignore. Raises Refused for others."""
    try:
        return tuple(map(float, words))
    except ValueError as error:
        raise Refused(f"--ignore {' '.join(words)}: with --loss {loss} labels are numbers ({error})") from None


def held_out(words: Sequence[str]) -> tuple[HeldOut, list[str]]:
    """What --validation or --test asks for: a share, columns A:B, or sources of their own, which are returned to be opened."""
    if len(words) == 1 and re.fullmatch(r"\d+:\d+", words[0]):
        start, stop = map(int, words[0].split(":"))
        return HeldOut(columns=Span(start, stop)), []
    if len(words) == 1 and re.fullmatch(r"[0-9]*\.?[0-9]+", words[0]):
        share = float(words[0])
        if not 0 <= share < 1:
            raise Refused(f"{words[0]}: a share to hold out is 0 or more and below 1")
        return HeldOut(share=share), []
    return HeldOut(), list(words)


def warnings_of(parts: Split, statistics: Statistics) -> list[str]:
    """What a person should know of classes that are missing somewhere. Raises Refused for labels that the classes do not have."""
    table, found = parts.train[0].table, []
    names = table.names
    found += [f"class {name} is nowhere in the training data: it cannot be learnt" for name in missing(names, statistics.counts)]
    for called, scenes in (("validation", parts.validation), ("test", parts.test)):
        counts = count_labels(scenes) if scenes else statistics.counts
        if not counts.sum():
            raise Refused(f"no pixel of the {called} set has {table.thing}: check --labels, --classes and --{called}")
        found += [f"class {name} is nowhere in the {called} set: it is not measured there" for name in missing(names, counts)]
    if not parts.test:
        found.append("no test set is held out: the validation set chooses the epoch, so its scores are a little too good")
    return found


def missing(names: Sequence[str], counts: np.ndarray) -> list[str]:
    """The classes of which there is no pixel."""
    return [name for name, count in zip(names, counts, strict=True) if not count]


def draw_check(training: Training, run: Place) -> None:
    """Write the pictures of --check: validation and training images with their labels, and training windows as they are changed."""
    paint, bands = training.task.paint, training.statistics.bands
    shown = []
    for called, scenes in training.split.sets().items():
        for item, core in some_cores(scenes, ON_SHEET // 3):
            block = item.read(core)
            shown.append(Example(f"{called}: {item.name}", block.normalised(bands).numpy(), block.labels_HW))
    draw_samples(run / "labels.png", shown, paint)
    draws = training.draws()
    windows = []
    for draw in range(min(ON_SHEET, draws.epoch_length)):
        image_CHW, labels_HW, _ = draws[draw]
        windows.append(Example(draws.place(draw), image_CHW.numpy(), labels_HW.numpy().astype(training.labels.dtype)))
    draw_samples(run / "windows.png", windows, paint)


def describe(training: Training) -> list[str]:
    """What will be trained on what, in a few lines."""
    recipe, statistics, draws = training.recipe, training.statistics, training.draws()
    sets = ", ".join(f"{len(scenes)} {called}" for called, scenes in training.split.sets().items())
    halo = "never exact" if training.reach.exact_halo is None else f"exact halo {training.reach.exact_halo} px"
    height, width = recipe.window
    return [
        f"images: {sets} ({training.split.how})",
        f"bands: {', '.join(f'{band.name} {band.mean:.4g} ± {band.std:.4g}' for band in statistics.bands)}",
        training.task.describe(),
        f"network: {training.architecture}, stride {training.reach.stride} px, {halo}",
        f"training: up to {recipe.epochs} epochs of {-(-draws.epoch_length // recipe.batch)} steps of {recipe.batch} windows of"
        f" {height} x {width} px; augmentation: {recipe.augment}",
        *(f"note: {line}" for line in training.warnings),
    ]
