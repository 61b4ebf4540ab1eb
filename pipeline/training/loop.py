"""The epoch loop: one network, one process or several, every draw and every random number following from the seed."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from pipeline.errors import Refused
from pipeline.models.networks.pretrained import parameter_groups
from pipeline.models.value_scores import LOWER_IS_BETTER
from pipeline.training.augmentation import Augmentation
from pipeline.training.distributed import gathered, normalise_over_all, rank, summed, world
from pipeline.training.losses import SQUARED_ERROR, parse_loss
from pipeline.training.sampling import Draws, collate

OPTIMISERS = ("adamw", "adam", "sgd")
SCHEDULES = ("cosine", "poly", "one-cycle", "constant")
PRECISIONS = ("auto", "fp32", "bf16")
CLASS_METRICS, VALUE_METRICS = ("mean_iou", "mean_f1", "accuracy"), ("rmse", "mae", "r2")  # the first is the usual one
OF_CLASSES = {"class_weights": "none", "label_smoothing": 0.0, "balanced": False}  # what else says nothing where labels are numbers
MOMENTUM = 0.9  # of SGD
POLY_POWER = 0.9  # Chen et al. 2017, arXiv 1606.00915
ONE_CYCLE_RISE, ONE_CYCLE_START = 0.3, 1 / 25  # Smith and Topin 2018, arXiv 1708.07120, as torch has it

State = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. `batch` is that of all processes together; each computes its share in `accumulate` pieces."""

    epochs: int = 60
    batch: int = 8
    window: tuple[int, int] = (128, 128)  # px: height, width
    optimiser: str = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    schedule: str = "cosine"
    warm_up: float = 0.0  # epochs
    loss: str = "cross_entropy"
    class_weights: str | tuple[float, ...] = "none"
    label_smoothing: float = 0.0
    balanced: bool = False
    augment: str = "none"
    ema: float = 0.0  # decay a step of the average that is kept of the weights; 0: none
    clip: float = 0.0  # the largest norm of a step's gradients; 0: any
    accumulate: int = 1
    precision: str = "auto"  # bf16 on GPUs, fp32 on CPUs
    encoder_rate: float = 1.0  # times the learning rate; 0: frozen
    compile: bool = False
    patience: int = 0  # epochs without a better score after which training stops; 0: never
    metric: str = ""  # by which the best epoch is chosen: mean_iou, or of numbers rmse, unless said otherwise
    seed: int = 0

    @property
    def of_numbers(self) -> bool:
        """Whether labels are numbers, not classes."""
        return parse_loss(self.loss)[0].name == SQUARED_ERROR

    def __post_init__(self) -> None:
        ours, others = (VALUE_METRICS, CLASS_METRICS) if self.of_numbers else (CLASS_METRICS, VALUE_METRICS)
        object.__setattr__(self, "metric", self.metric or ours[0])
        for name, allowed in (
            ("epochs", self.epochs >= 1),
            ("batch", self.batch >= 1),
            ("window", min(self.window) >= 1),
            ("optimiser", self.optimiser in OPTIMISERS),
            ("learning_rate", 0 < self.learning_rate < math.inf),
            ("weight_decay", 0 <= self.weight_decay < math.inf),
            ("schedule", self.schedule in SCHEDULES),
            ("warm_up", 0 <= self.warm_up < self.epochs),
            ("label_smoothing", 0 <= self.label_smoothing < 1),
            ("ema", 0 <= self.ema < 1),
            ("clip", 0 <= self.clip < math.inf),
            ("accumulate", self.accumulate >= 1),
            ("precision", self.precision in PRECISIONS),
            ("encoder_rate", 0 <= self.encoder_rate <= 1),
            ("patience", self.patience >= 0),
            ("metric", self.metric in (*ours, *others)),
            ("seed", self.seed >= 0),
        ):
            if not allowed:
                raise Refused(f"--{name.replace('_', '-')} {getattr(self, name)}: out of range")
        if self.metric in others:
            raise Refused(f"--metric {self.metric}: with --loss {self.loss} there are {', '.join(ours)}")
        said = next((name for name, usual in OF_CLASSES.items() if self.of_numbers and getattr(self, name) != usual), None)
        if said:
            raise Refused(f"--{said.replace('_', '-')}: is of classes, and with --loss {self.loss} there are none: leave it out")
        Augmentation.parse(self.augment)

    def on(self, device: torch.device) -> Recipe:
        """With the precision that is used on a device."""
        auto = "bf16" if device.type == "cuda" else "fp32"
        return replace(self, precision=auto) if self.precision == "auto" else self


@dataclass(frozen=True)
class Epoch:
    """What came of an epoch: the mean training loss and the scores on the validation set."""

    number: int  # from 1
    loss: float
    score: float  # by the recipe's metric; more is better, so an error has a minus
    scores: dict[str, Any]  # by name: a number, or one for each class
    learning_rate: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        content = asdict(self)
        return content | content.pop("scores")

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Epoch:
        own = {item.name for item in fields(cls)}
        scores = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items() if name not in own}
        return cls(**{name: value for name, value in content.items() if name in own}, scores=scores)


def best_epoch(epochs: Sequence[Epoch]) -> Epoch:
    """The epoch whose weights are kept: the first with the highest score."""
    return max(epochs, key=lambda epoch: -math.inf if math.isnan(epoch.score) else epoch.score)


def nothing(*_: object) -> None:
    """A report that nobody reads."""


class Scored(Protocol):
    """Scores on the validation set, by name."""

    @property
    def summary(self) -> dict[str, Any]: ...


class Trainer:
    """A network under training. `state()` between two epochs holds all that the rest of the training depends on."""

    def __init__(self, network: nn.Module, draws: Draws, recipe: Recipe, loss: nn.Module, device: torch.device):
        if not any(True for _ in network.parameters()):
            raise Refused("this architecture has no weights to train; --epochs 0 writes it as it is")
        if recipe.batch % world():
            raise Refused(f"--batch {recipe.batch}: must be a multiple of the {world()} workers")
        self.recipe, self.draws, self.device = recipe.on(device), draws, device
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss: Any = loss.to(device)
        self.share = recipe.batch // world()
        self.steps = math.ceil(draws.epoch_length / recipe.batch)
        self.pieces = min(self._that_fit(recipe.accumulate), self.share)
        self.network = normalise_over_all(self.network)
        self.optimiser = _optimiser(parameter_groups(self.network, recipe.learning_rate, recipe.encoder_rate, recipe.weight_decay), recipe)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: rate(step, self.steps, recipe))
        self.average = AveragedModel(self.network, multi_avg_fn=_moving_average(recipe.ema), use_buffers=True) if recipe.ema else None
        self.epochs: list[Epoch] = []
        self.best: dict[str, torch.Tensor] = {}
        trained = any(parameter.requires_grad for parameter in self.network.parameters())
        self._parallel = DistributedDataParallel(self.network) if world() > 1 and trained else self.network
        self._run = torch.compile(self._parallel) if recipe.compile else self._parallel

    @property
    def result(self) -> nn.Module:
        """The network to be scored and kept: the average of the weights, where there is one."""
        return self.average.module if self.average else self.network

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or the last ones have brought nothing."""
        done = len(self.epochs)
        stale = done - best_epoch(self.epochs).number if self.epochs else 0
        return done >= self.recipe.epochs or (bool(self.recipe.patience) and stale >= self.recipe.patience)

    def run_epoch(self, score: Callable[[nn.Module], Scored], on_step: Callable[[int, int, int, float], None] = nothing) -> Epoch:
        """Train for an epoch and score it; `on_step` is told the epoch, the step, the steps of an epoch, and the step's loss.

        Raises Refused, naming the windows, where the loss is not finite.
        """
        number, began, total = len(self.epochs) + 1, time.monotonic(), 0.0
        torch.manual_seed(hash((self.recipe.seed, number, rank())) % 2**63)  # dropout
        self.network.train()
        learning_rate = self.optimiser.param_groups[-1]["lr"]
        for step, (batch_BCHW, labels_BHW, numbers) in enumerate(self._batches(number), 1):
            loss = self._step(batch_BCHW, labels_BHW)
            if not math.isfinite(loss):
                places = [place for some in gathered([self.draws.place(one) for one in numbers]) for place in some]
                raise Refused(
                    f"the loss is {loss} in epoch {number}, step {step}, on {', '.join(places[:4])}{' and more' * (len(places) > 4)}:"
                    " choose a smaller --learning-rate, or --clip 1"
                )
            total += loss
            on_step(number, step, self.steps, loss)
        self.result.eval()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            scores = score(self.result).summary
        better = -1 if self.recipe.metric in LOWER_IS_BETTER else 1
        epoch = Epoch(number, total / self.steps, better * scores[self.recipe.metric], scores, learning_rate, time.monotonic() - began)
        self.epochs.append(epoch)
        if best_epoch(self.epochs) is epoch:
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.result.state_dict().items()}
        return epoch

    def _step(self, batch_BCHW: torch.Tensor, labels_BHW: torch.Tensor) -> float:
        """One step of the optimiser; returns the loss over the batch of all processes."""
        pieces = list(zip(batch_BCHW.chunk(self.pieces), labels_BHW.chunk(self.pieces), strict=True))
        denominators = summed(self.loss.denominators(labels_BHW.to(self.device)))
        self.optimiser.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for place, (some_BCHW, some_BHW) in enumerate(pieces, 1):
            last = place == len(pieces) or not isinstance(self._parallel, DistributedDataParallel)
            with nullcontext() if last else self._parallel.no_sync():  # type: ignore[union-attr, operator]
                loss = self._loss(self._run, some_BCHW, some_BHW, denominators)
                (loss * world()).backward()  # which DDP divides by
            total += loss.detach()
        total = summed(total)
        value = float(total)
        if math.isfinite(value):
            if self.recipe.clip:
                nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
            self.optimiser.step()
            self.schedule.step()
            if self.average:
                self.average.update_parameters(self.network)
        return value

    def _loss(self, network: Any, batch_BCHW: torch.Tensor, labels_BHW: torch.Tensor, denominators: torch.Tensor) -> torch.Tensor:
        batch_BCHW = batch_BCHW.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
                logits_BKHW = network(batch_BCHW)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            size = len(batch_BCHW)
            raise Refused(
                f"this network pools globally, and cannot learn from {size} window at a time: a larger --batch, or fewer pieces"
            ) from None
        return self.loss(logits_BKHW, labels_BHW.to(self.device, non_blocking=True), denominators)

    def _batches(self, number: int) -> Iterator[Any]:
        """The batches of an epoch: of this process, its part of each."""
        length, batch = self.draws.epoch_length, self.recipe.batch
        first = (number - 1) * length
        mine = range(rank() * self.share, (rank() + 1) * self.share)
        chosen = [[first + (step * batch + place) % length for place in mine] for step in range(self.steps)]
        on_gpu = self.device.type == "cuda"
        return iter(DataLoader(
            self.draws, batch_sampler=chosen, collate_fn=collate, num_workers=_readers() if on_gpu else 0, pin_memory=on_gpu
        ))  # fmt: skip

    def _that_fit(self, pieces: int) -> int:
        """In how many pieces this process's share of a batch fits in memory: tried once, with blank values, since sizes stay."""
        if not _tells_when_memory_is_out(self.device):
            return pieces
        bands = len(self.draws.statistics.bands)
        while True:
            size = math.ceil(self.share / pieces)
            try:
                self.network.train()
                before = copy.deepcopy(self.network.state_dict())
                labels_BHW = torch.zeros(size, *self.draws.size, dtype=self.loss.labels)
                blank_BCHW = torch.zeros(size, bands, *self.draws.size)
                self._loss(self.network, blank_BCHW, labels_BHW, self.loss.denominators(labels_BHW.to(self.device))).backward()
                self.network.load_state_dict(before)
                self.network.zero_grad(set_to_none=True)
                break
            except torch.OutOfMemoryError:
                if size == 1:
                    raise Refused("one window does not fit in memory: choose a smaller --window") from None
                pieces *= 2
                self.network.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
        return max(gathered(pieces))

    def state(self) -> State:
        """Tensors, numbers and lists of them: `load` makes a new trainer go on from here."""
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimiser": self.optimiser.state_dict(),
            "schedule": {"last_epoch": self.schedule.last_epoch},
            "epochs": [epoch.to_json() for epoch in self.epochs],
            "best": self.best,
        }

    def load(self, state: State) -> None:
        self.network.load_state_dict(state["network"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.schedule.last_epoch = state["schedule"]["last_epoch"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.epochs = [Epoch.from_json(epoch) for epoch in state["epochs"]]
        self.best = dict(state["best"])


def _tells_when_memory_is_out(device: torch.device) -> bool:
    """A GPU says so; on a CPU the kernel ends the process."""
    return device.type == "cuda"


def _readers() -> int:
    return min(8, max(1, len(os.sched_getaffinity(0)) // world()))


def _moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """An exponential moving average that is short at first, so that it soon forgets the weights of the beginning."""

    @torch.no_grad()
    def average(kept: Sequence[torch.Tensor], new: Sequence[torch.Tensor], steps: torch.Tensor) -> None:
        now = min(decay, (1 + int(steps)) / (10 + int(steps)))
        for one, other in zip(kept, new, strict=True):
            if one.is_floating_point():
                one.lerp_(other, 1 - now)
            else:  # how many batches a BatchNorm has seen
                one.copy_(other)

    return average


def _optimiser(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=MOMENTUM)
    kind = torch.optim.AdamW if recipe.optimiser == "adamw" else torch.optim.Adam
    return kind(groups, lr=recipe.learning_rate)


def rate(step: int, steps: int, recipe: Recipe) -> float:
    """The factor of the learning rate at a step: up in a straight line while it warms up, then as the schedule says."""
    last = recipe.epochs * steps
    if recipe.schedule == "one-cycle":
        rise = ONE_CYCLE_RISE * last
        if step < rise:
            return ONE_CYCLE_START + (1 - ONE_CYCLE_START) * (1 - math.cos(math.pi * step / rise)) / 2
        return (1 + math.cos(math.pi * min(1.0, (step - rise) / max(last - rise, 1)))) / 2
    warm = recipe.warm_up * steps
    if step < warm:
        return (step + 1) / (warm + 1)
    done = min(1.0, (step - warm) / max(last - warm, 1))
    if recipe.schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return (1 - done) ** POLY_POWER if recipe.schedule == "poly" else 1.0
