"""From a labelled scene to a bundle: read its blocks, train, compare with the baselines, measure the halo, save."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.errors import Refused
from pipeline.geometry.windows import Span, ceil_to
from pipeline.imagery import storage
from pipeline.imagery.bands import Band
from pipeline.inference.plan import software
from pipeline.models.bundle import Bundle, save_bundle
from pipeline.models.engine import choose_device, describe_device
from pipeline.models.metrics import Scores
from pipeline.models.networks import build_network
from pipeline.models.receptive import Reach, find_reach, measure_halo
from pipeline.training.classes import IGNORE
from pipeline.training.datasets import Block, LabelledScene, Split, measure_bands
from pipeline.training.evaluation import classify, context_px, evaluate, fit_logistic_regression, majority_scores
from pipeline.training.loop import Epoch, Recipe, best_epoch, train

MEGAPIXEL = 1_000_000  # what `--halo auto` is measured on, at least
MEGAPIXEL_SIDE = 1_000  # px
SAMPLE_SIDE = 1024  # px: of the training block, for the self-test
NETWORK, LOGISTIC, MAJORITY = "network", "logistic_regression", "majority_class"


@dataclass(frozen=True)
class Columns:
    """The columns of a scene that were asked for; without `train` the widest run that is left."""

    validation: Span
    test: Span
    train: Span | None = None


@dataclass(frozen=True)
class Fitted:
    """A trained network and what was measured of it. `scores` are those on the test block, the network's and the baselines'."""

    network: nn.Module
    architecture: str
    arguments: dict[str, Any]
    labelled: LabelledScene
    bands: tuple[Band, ...]
    recipe: Recipe
    split: Split
    blocks: dict[str, Block]
    epochs: list[Epoch]
    validation: Scores
    scores: dict[str, Scores]
    halo: int | None
    halo_tried: dict[int, float]

    @property
    def class_names(self) -> list[str]:
        return [item.entry.name for item in self.labelled.classes]


def fit(
    labelled: LabelledScene, architecture: str, arguments: Mapping[str, Any], columns: Columns, recipe: Recipe,
    report: Callable[[Epoch], None] = lambda epoch: None,
) -> Fitted:  # fmt: skip
    """Train a network on one block of a labelled scene, choose its epoch on a second, and measure it on a third.

    Band statistics and class weights come from the training block alone, and nothing is decided by the test block.
    """
    classes = len(labelled.classes)
    torch.manual_seed(recipe.seed)
    network = build_network(architecture, len(labelled.bands), classes, **arguments)
    reach = find_reach(network, len(labelled.bands))
    context = context_px(reach)
    width = labelled.scene.grid.width
    split = Split.around(columns.validation, columns.test, width=width, gap=context, train=columns.train)
    block = labelled.read(split.train)
    held_out = {
        name: labelled.read(span, context=context, stride=reach.stride)
        for name, span in (("validation", split.validation), ("test", split.test))
    }
    _check_labelled({"train": block, **held_out}, recipe, reach)
    bands = measure_bands(block, labelled.bands)
    image_CHW = block.normalised(bands)
    seen = {name: (each.normalised(bands), each.labels_HW) for name, each in held_out.items()}
    network.to(choose_device())

    def validate(candidate: nn.Module) -> float:
        return evaluate(candidate, *seen["validation"], reach, classes).mean_iou

    epochs = train(network, image_CHW, block.labels_HW, recipe, classes=classes, score=validate, report=report)
    logistic = fit_logistic_regression(image_CHW, block.labels_HW, classes=classes, balance=recipe.balance, seed=recipe.seed)
    scores = {
        NETWORK: evaluate(network, *seen["test"], reach, classes),
        LOGISTIC: evaluate(logistic, *seen["test"], Reach(1, 0, None), classes),
        MAJORITY: majority_scores(block.labels_HW, seen["test"][1], classes),
    }
    halo, tried = auto_halo(network, image_CHW, reach)
    return Fitted(
        network=network, architecture=architecture, arguments=dict(arguments), labelled=labelled, bands=bands, recipe=recipe,
        split=split, blocks={"train": block, **held_out}, epochs=epochs,
        validation=evaluate(network, *seen["validation"], reach, classes), scores=scores, halo=halo, halo_tried=tried,
    )  # fmt: skip


def _check_labelled(blocks: Mapping[str, Block], recipe: Recipe, reach: Reach) -> None:
    for name, block in blocks.items():
        if (block.labels_HW == IGNORE).all():
            raise Refused(f"--{name}-columns: no pixel there has a class and all its bands: check --labels, --classes and the columns")
    if recipe.window % reach.stride:
        raise Refused(f"--window {recipe.window}: must be a multiple of the network's stride, {reach.stride} px")


def auto_halo(network: nn.Module, image_CHW: torch.Tensor, reach: Reach) -> tuple[int | None, dict[int, float]]:
    """What `--halo auto` means for a network, measured on a megapixel of its normalised training block.

    Returns the halo in px and the share of changed pixels at each halo that was tried; None and nothing for a network
    that is never exact.
    """
    if reach.exact_halo is None:
        return None, {}
    pixels_CHW = megapixel(image_CHW, reach.stride).numpy()
    return measure_halo(lambda tile_CHW: classify(network, torch.from_numpy(tile_CHW), reach), pixels_CHW, reach)


def megapixel(image_CHW: torch.Tensor, stride: int) -> torch.Tensor:
    """At least a million pixels of an image, height and width multiples of `stride`.

    A larger image gives its upper rows; a smaller one is mirrored at its edges until it is large enough.
    """
    _, height, width = image_CHW.shape
    if height // stride * stride * (width // stride * stride) < MEGAPIXEL:
        side = ceil_to(MEGAPIXEL_SIDE, stride)
        missing = ((0, 0), (0, max(0, side - height)), (0, max(0, side - width)))
        image_CHW = torch.from_numpy(np.pad(image_CHW.numpy(), missing, mode="symmetric"))
        _, height, width = image_CHW.shape
    width = width // stride * stride
    height = min(height // stride * stride, ceil_to(-(-MEGAPIXEL // width), stride))
    return image_CHW[:, :height, :width].contiguous()


def save_fitted(fitted: Fitted, folder: Path, *, command: str, licences: Mapping[str, str], began: float) -> Bundle:
    """Write the bundle, with the scores, what they were measured on, and all that it takes to make it again."""
    return save_bundle(
        folder, fitted.network, architecture=fitted.architecture, arguments=fitted.arguments, bands=fitted.bands,
        classes=[item.entry for item in fitted.labelled.classes],
        sample_CHW=_sample(fitted.blocks["train"], fitted.bands), halo=fitted.halo,
        resolution_m=_rounded(fitted.labelled.scene.resolution_m),
        metrics=_metrics(fitted), provenance=_provenance(fitted, command, began), licences=dict(licences),
    )  # fmt: skip


def _sample(block: Block, bands: tuple[Band, ...]) -> torch.Tensor:
    """Physical values from the middle of the training block, missing ones as their band's mean, for the self-test."""
    means = np.array([band.mean for band in bands], np.float32)[:, None, None]
    filled_CHW = np.where(block.valid_CHW, block.physical_CHW, means)
    _, height, width = filled_CHW.shape
    missing = ((0, 0), (0, max(0, SAMPLE_SIDE - height)), (0, max(0, SAMPLE_SIDE - width)))
    padded_CHW = np.pad(filled_CHW, missing, mode="symmetric")
    row, col = ((length - SAMPLE_SIDE) // 2 for length in padded_CHW.shape[1:])
    return torch.from_numpy(padded_CHW[:, row : row + SAMPLE_SIDE, col : col + SAMPLE_SIDE])


def _metrics(fitted: Fitted) -> dict[str, Any]:
    names, scene = fitted.class_names, fitted.labelled.scene
    test = fitted.split.test
    pixels = int(fitted.scores[NETWORK].confusion.sum())
    return {
        "measured_on": f"columns {test.start} to {test.stop} of scene {scene.scene_id}: {pixels} labelled pixels, never trained on",
        "computed_in": "fp32, exact halo",
        "test": {model: scores.to_json(names) for model, scores in fitted.scores.items()},
        "validation": {NETWORK: fitted.validation.to_json(names)},
        "halo": {
            "changed_share_against_exact": {str(halo): share for halo, share in sorted(fitted.halo_tried.items())},
            "measured_on": f"{MEGAPIXEL} px or more of the training block, cores of 256 px",
        },
    }


def _provenance(fitted: Fitted, command: str, began: float) -> dict[str, Any]:
    scene, classes = fitted.labelled.scene, fitted.labelled.classes
    labels = scene.bands[-1]
    best = best_epoch(fitted.epochs)
    return {
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "scene": {
            "id": scene.scene_id,
            "datetime": scene.datetime,
            "bands": [
                {"name": band.name, "file": Path(band.path).name, "index": band.index, "scale": band.scale, "offset": band.offset,
                 "sha256": storage.sha256(Path(band.path))}
                for band in scene.bands[:-1]
            ],
        },
        "labels": {
            "file": Path(labels.path).name,
            "sha256": storage.sha256(Path(labels.path)),
            "values": {item.entry.name: list(item.values) for item in classes},
        },
        "columns": {name: list(span) for name, span in asdict(fitted.split).items()},
        "labelled_pixels": {
            name: dict(zip(fitted.class_names, block.class_counts(len(classes)).tolist(), strict=True))
            for name, block in fitted.blocks.items()
        },
        "recipe": asdict(fitted.recipe),
        "best_epoch": asdict(best),
        "seconds": round(time.monotonic() - began, 1),
        "device": describe_device(choose_device()),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "software": software(),
    }  # fmt: skip


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
