"""Train with Ray Train: the loop of `pipeline/training` in one worker or many, taken up where it stopped."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.environment import Node
from cluster.session import await_node, await_room
from pipeline.errors import Refused, Unreadable
from pipeline.training.fit import Training, fit
from pipeline.training.loop import Epoch, State, Trainer, best_epoch

STATE = "state.pt"
KEPT = 2  # checkpoints
RETRIES = 5  # of a worker or node that dies
POLL_S = 0.5
STEP_EVERY_S = 1.0


@dataclass
class News:
    """How far a training is: the last step, the epochs since the last look, and how it ended."""

    step: tuple[int, int, int, float] | None = None  # epoch, step, steps of an epoch, loss
    epochs: list[tuple[Epoch, bool]] = field(default_factory=list)  # and whether it is the best so far
    refused: str | None = None
    scores: dict[str, Any] | None = None


@ray.remote(num_cpus=0)
class Board:
    """Where workers write the news, and the driver reads them."""

    def __init__(self) -> None:
        self.news = News()

    def write(self, **news: Any) -> None:
        self.news = replace(self.news, **news)

    def add(self, epoch: Epoch, best: bool) -> None:
        self.news.epochs.append((epoch, best))

    def read(self) -> News:
        news, self.news = self.news, replace(self.news, epochs=[], step=None)
        return news


class RayHooks:
    """The hooks of a training in one of Ray Train's workers."""

    def __init__(self, board: Any):
        self.board, self.told = board, 0.0
        self.first = ray.train.get_context().get_world_rank() == 0

    def resumed(self) -> State | None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return torch.load(Path(folder, STATE), map_location="cpu", weights_only=True)

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        if self.first and (time.monotonic() - self.told > STEP_EVERY_S):
            self.told = time.monotonic()
            self.board.write.remote(step=(epoch, step, steps, loss))

    def epoch(self, epoch: Epoch, trainer: Trainer) -> None:
        metrics = {"epoch": epoch.number, "loss": epoch.loss, "score": epoch.score}
        with tempfile.TemporaryDirectory() as folder:
            if self.first:
                torch.save(trainer.state(), Path(folder, STATE))
                self.board.add.remote(epoch, best_epoch(trainer.epochs) is epoch)
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder) if self.first else None)


def _work(config: dict[str, Any]) -> None:
    """What each worker does. What is wrong with the data is told to the driver, and not tried again."""
    board = config["board"]
    os.environ.update(config["access"])
    try:
        scores = fit(config["training"], get_device(), RayHooks(board))
        if scores is not None:
            ray.get(board.write.remote(scores=scores))
    except (Refused, Unreadable) as error:
        ray.get(board.write.remote(refused=str(error)))


def await_workers(workers: int, nodes: Sequence[Node]) -> Sequence[Node]:
    """The nodes, when there are enough of them for so many workers. Raises Refused."""
    nodes = await_node(nodes)
    on_gpu, slots = _slots(nodes)
    if workers <= sum(slots):
        return nodes
    missing = f"--workers {workers}: Ray has {sum(slots)} {'GPUs' if on_gpu else 'CPU cores'}"
    return await_room(workers, {"CPU": 1} | ({"GPU": 1} if on_gpu else {}), missing)


def _slots(nodes: Sequence[Node]) -> tuple[bool, list[int]]:
    """Whether workers have a GPU each, which they do where there are any, and how many of them each node has room for."""
    on_gpu = any(node.gpus for node in nodes)
    return on_gpu, [node.gpus if on_gpu else node.cpus for node in nodes]


def train_on_ray(
    training: Training, nodes: Sequence[Node], *, workers: int, storage: str, name: str, tell: Callable[[News], None],
    access: Mapping[str, str],
) -> dict[str, Any] | None:  # fmt: skip
    """Train on `workers` of Ray's workers, for which these nodes have room; `tell` hears how far it is. Returns the scores on the test set.

    The same `name` in the same `storage`, a folder or s3:// URI that all nodes see, goes on after the last epoch that was
    finished there; `access` says where s3:// is. A worker or node that dies is replaced up to 5 times. Raises Refused where
    the data cannot be trained on, RuntimeError where workers go on dying.
    """
    on_gpu, slots = _slots(nodes)
    used = [node for node, room in zip(nodes, slots, strict=True) if room]  # not a head without work of its own
    cpus = max(1, min(node.cpus for node in used) // -(-workers // len(used)))
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # another node may die
    board = Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    trainer = TorchTrainer(
        _work,
        train_loop_config={"training": training, "board": board, "access": access},
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=on_gpu, resources_per_worker={"CPU": cpus, "GPU": int(on_gpu)}),
        run_config=RunConfig(
            name=name, storage_path=storage,
            failure_config=FailureConfig(max_failures=RETRIES), checkpoint_config=CheckpointConfig(num_to_keep=KEPT),
        ),
    )  # fmt: skip
    ended = threading.Event()
    teller = threading.Thread(target=_listen, args=(board, tell, ended), daemon=True)
    teller.start()
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[-1]
        raise RuntimeError(f"training failed {RETRIES + 1} times, the last time: {reason[:300]}") from error
    finally:
        ended.set()
        teller.join(timeout=10)
    news: News = ray.get(board.read.remote())
    tell(news)
    if news.refused:
        raise Refused(news.refused)
    return news.scores


def _listen(board: Any, tell: Callable[[News], None], ended: threading.Event) -> None:
    while not ended.wait(POLL_S):
        tell(ray.get(board.read.remote()))
