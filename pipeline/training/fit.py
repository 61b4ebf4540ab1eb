"""From labelled scenes to a bundle: measure, train, keep the best epoch, score it beside two baselines, write it down."""

from __future__ import annotations

import hashlib
import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import PurePath
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from pipeline.errors import Refused
from pipeline.geometry.windows import Window, ceil_to
from pipeline.imagery import storage
from pipeline.imagery.storage import Place
from pipeline.models.allocator import keep_freed_memory
from pipeline.models.bundle import save_bundle
from pipeline.models.engine import choose_device, describe_device
from pipeline.models.networks import build_network
from pipeline.models.networks.pretrained import Loaded, load_encoder
from pipeline.models.receptive import Reach, measure_halo
from pipeline.software import software
from pipeline.training.augmentation import Augmentation
from pipeline.training.classes import ClassTable
from pipeline.training.datasets import file_sha256
from pipeline.training.distributed import rank, world
from pipeline.training.journal import write_epoch
from pipeline.training.loop import Epoch, Recipe, State, Trainer, best_epoch
from pipeline.training.pictures import Example, draw_samples
from pipeline.training.sampling import Draws
from pipeline.training.splits import Split
from pipeline.training.statistics import Statistics
from pipeline.training.targets import Numbers
from pipeline.training.task import Task, task_of
from pipeline.training.validation import classify, logits_of, some_cores

MEGAPIXEL = 1_000_000  # what `--halo auto` is measured on, at least
MEGAPIXEL_SIDE = 1_000  # px
SAMPLE_SIDE = 1024  # px: of a training image, for the self-test
NETWORK = "network"


@dataclass(frozen=True)
class Training:
    """All that a training follows from; it goes to every process that takes part."""

    architecture: str
    arguments: dict[str, Any]
    split: Split
    statistics: Statistics
    recipe: Recipe
    reach: Reach
    output: Place  # the bundle
    command: str
    licences: dict[str, str]
    run: Place | None = None  # where metrics and pictures of the training go
    encoder: str | None = None  # pretrained weights of it
    warnings: tuple[str, ...] = ()

    @property
    def labels(self) -> ClassTable | Numbers:
        """What labels mean."""
        return self.split.train[0].table

    @property
    def task(self) -> Task:
        """How they are learnt."""
        return task_of(self.labels, self.statistics, self.recipe)

    def draws(self) -> Draws:
        """The training windows."""
        augmentation = Augmentation.parse(self.recipe.augment)
        return Draws(
            self.split.train, self.statistics, self.recipe.window, augmentation, balanced=self.recipe.balanced, seed=self.recipe.seed
        )

    def plain(self) -> Draws:
        """Training windows as they are."""
        return Draws(self.split.train, self.statistics, self.recipe.window, Augmentation(), seed=self.recipe.seed)


class Hooks(Protocol):
    """What a training tells those who run it, and gets from them."""

    def resumed(self) -> State | None:
        """Where an earlier start of this training got to; None: nowhere."""

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """A step is done."""

    def epoch(self, epoch: Epoch, trainer: Trainer) -> None:
        """An epoch is done, and what it brought is in the trainer's state."""


class Quiet:
    """Hooks that do nothing."""

    def resumed(self) -> State | None:
        return None

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        pass

    def epoch(self, epoch: Epoch, trainer: Trainer) -> None:
        pass


def check_window(recipe: Recipe, reach: Reach) -> None:
    """Raise Refused where windows do not fit the network's stride."""
    if any(side % reach.stride for side in recipe.window):
        height, width = recipe.window
        raise Refused(f"--window {height}x{width}: must be a multiple of the network's stride, {reach.stride} px")


def fit(training: Training, device: torch.device, hooks: Hooks = Quiet()) -> dict[str, Any] | None:
    """Train in this process, together with the others of its group where there are any, and write the bundle.

    The best network so far is in `training.output` after every epoch that brought one. Returns the scores on the test
    set, the network's and the baselines', in the first process; None in the others and where there is no test set.
    """
    began = time.monotonic()
    split, bands, reach, recipe, task = training.split, training.statistics.bands, training.reach, training.recipe, training.task
    if device.type == "cpu":
        keep_freed_memory()  # a tenth of a step's time
    torch.manual_seed(recipe.seed)
    network = build_network(training.architecture, len(bands), training.labels.outputs, **training.arguments)
    loaded = load_encoder(network, training.encoder) if training.encoder else None
    trainer = Trainer(network, training.draws(), recipe, task.loss(), device)
    state = hooks.resumed()
    if state is not None:
        trainer.load(state)
    said = provenance(training, trainer, loaded) if rank() == 0 else {}
    while not trainer.finished:
        epoch = trainer.run_epoch(lambda candidate: task.score(candidate, split.validation, bands, reach), hooks.step)
        if rank() == 0 and best_epoch(trainer.epochs) is epoch:
            summary = {name: epoch.scores[name] for _, name, _ in task.columns}
            so_far = {"interrupted_after_epoch": epoch.number, "validation": summary}
            write_bundle(training, trainer.result, said | {"best_epoch": epoch.to_json()}, so_far)
        if rank() == 0 and training.run:
            write_epoch(training.run, trainer.epochs, training.labels.names, recipe.metric, task.panels)
            draw_samples(training.run / "samples.png", examples(training, trainer.result), task.paint)
        hooks.epoch(epoch, trainer)
    best = trainer.result
    best.load_state_dict(trainer.best)
    best.eval()
    validation = task.score(best, split.validation, bands, reach)
    tested = task.score(best, split.test, bands, reach) if split.test else None
    scores = {NETWORK: tested, **task.baselines(training.plain(), split.test, tested, device)} if tested else {}
    if rank():
        return None
    halo, tried = auto_halo(best, largest_image(training), reach, task)
    metrics = describe_scores(training, scores, validation, tried)
    seconds = said["seconds"] + time.monotonic() - began
    said |= {"best_epoch": best_epoch(trainer.epochs).to_json(), "epochs": len(trainer.epochs), "seconds": round(seconds, 1)}
    write_bundle(training, best, said, metrics, halo)
    return scores or None


def examples(training: Training, network: nn.Module, most: int = 6) -> list[Example]:
    """Validation samples, evenly chosen, with what the network makes of them."""
    bands, shown = training.statistics.bands, []
    for item, core in some_cores(training.split.validation, most):
        logits_KHW, labels_HW = logits_of(network, item, core, bands, training.reach)
        image_CHW = item.read(core).normalised(bands).numpy()
        shown.append(Example(item.name, image_CHW, labels_HW, training.task.answer(logits_KHW)))
    return shown


def auto_halo(network: nn.Module, image_CHW: torch.Tensor, reach: Reach, task: Task) -> tuple[int | None, dict[int, float]]:
    """What `--halo auto` means for a network, measured on a megapixel of its normalised training data.

    Returns the halo in px and the share of changed pixels at each halo that was tried; None and nothing for a network
    that is never exact.
    """
    if reach.exact_halo is None:
        return None, {}
    pixels_CHW = megapixel(image_CHW, reach.stride).numpy()
    classes = partial(classify, network, reach=reach, answer=task.answer)
    return measure_halo(lambda tile_CHW: classes(torch.from_numpy(tile_CHW)), pixels_CHW, reach, differ=task.differ)


def largest_image(training: Training) -> torch.Tensor:
    """The upper rows of the largest training image, normalised, fp32 C x H x W: a megapixel or all of it."""
    item = max(training.split.train, key=lambda item: item.scene.grid.window.pixels)
    grid = item.scene.grid
    rows = min(grid.height, -(-MEGAPIXEL // min(grid.width, MEGAPIXEL)) + training.reach.stride)
    return item.read(Window(0, 0, rows, min(grid.width, MEGAPIXEL))).normalised(training.statistics.bands)


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


def write_bundle(
    training: Training, network: nn.Module, said: Mapping[str, Any], metrics: Mapping[str, Any], halo: int | None = None
) -> None:
    """Put a bundle of the network where the training's output goes, in place of one that this training put there before."""
    folder = training.output
    fresh = storage.workshop(folder.parent) / f".{folder.name}.next"
    shutil.rmtree(fresh, ignore_errors=True)
    copied = build_network(training.architecture, len(training.statistics.bands), training.labels.outputs, **training.arguments)
    copied.load_state_dict(network.state_dict())
    resolutions = [item.scene.resolution_m for item in training.split.train if item.scene.resolution_m is not None]
    save_bundle(
        fresh, copied, architecture=training.architecture, arguments=training.arguments, bands=training.statistics.bands,
        classes=training.task.described, sample_CHW=_sample(training), halo=halo, reach=training.reach,
        resolution_m=round(float(np.median(resolutions)), 3) if resolutions else None,
        metrics=dict(metrics), provenance=dict(said), licences=training.licences,
    )  # fmt: skip
    storage.publish_folder(fresh, folder, last="model.json")


def _sample(training: Training) -> torch.Tensor:
    """Physical values from the middle of the first training image, missing ones as their band's mean, for the self-test."""
    item, bands = training.split.train[0], training.statistics.bands
    grid = item.scene.grid
    row, col = (max(0, (length - SAMPLE_SIDE) // 2) for length in (grid.height, grid.width))
    block = item.read(Window(row, col, min(SAMPLE_SIDE, grid.height), min(SAMPLE_SIDE, grid.width)))
    means = np.array([band.mean for band in bands], np.float32)[:, None, None]
    filled_CHW = np.where(block.valid_CHW, block.physical_CHW, means)
    missing = ((0, 0), *((0, SAMPLE_SIDE - length) for length in filled_CHW.shape[1:]))
    return torch.from_numpy(np.pad(filled_CHW, missing, mode="symmetric"))


def describe_scores(training: Training, scores: Mapping[str, Any], validation: Any, tried: Mapping[int, float]) -> dict[str, Any]:
    """What a bundle says of its own quality."""
    told = training.task.told
    tested = f"{scores[NETWORK].pixels} labelled pixels" if scores else "nothing: no test set was held out"
    return {
        "measured_on": f"test set ({training.split.how}): {tested}, never trained on",
        "computed_in": "fp32, exact halo",
        "test": {model: told(each) for model, each in scores.items()},
        "validation": {NETWORK: told(validation)},
        "halo": {
            "changed_share_against_exact": {str(halo): share for halo, share in sorted(tried.items())},
            "measured_on": f"{MEGAPIXEL} px or more of the training data, cores of 256 px",
        },
    }


def provenance(training: Training, trainer: Trainer, loaded: Loaded | None) -> dict[str, Any]:
    """What a bundle says of how it was made."""
    return {
        "command": training.command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": {"files": _files(training), "split": training.split.to_json()},
        **training.task.provenance(training.split.train),
        "encoder": loaded._asdict() if loaded else None,
        "recipe": asdict(trainer.recipe),
        "workers": world(),
        "pieces_of_a_batch": trainer.pieces,
        "seconds": sum(epoch.seconds for epoch in trainer.epochs),
        "device": describe_device(choose_device()),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "software": software(),
        "warnings": list(training.warnings),
    }


def _files(training: Training) -> dict[str, Any]:
    """How many files were used, and one SHA-256 over theirs, in order of their paths; of a few files each."""
    scenes = [item for some in training.split.sets().values() for item in some]
    paths = sorted({band.path for item in scenes for band in item.scene.bands} | {item.labels.place for item in scenes})
    hashes = {path: file_sha256(storage.place_of(path)) for path in paths}
    total = hashlib.sha256("".join(hashes.values()).encode()).hexdigest()
    each = {PurePath(path).name: found for path, found in hashes.items()} if len(paths) <= 20 else {}
    return {"count": len(paths), "sha256_of_all": total, "sha256": each}
