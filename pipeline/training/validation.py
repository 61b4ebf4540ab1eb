"""How good a network in memory is on held-out areas: in tiles with its exact halo, so as it would be deployed in fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.geometry.windows import Span, Window, ceil_to, spans
from pipeline.imagery.bands import Band
from pipeline.models.bundle import INEXACT_HALO
from pipeline.models.metrics import Scores, confusion_matrix
from pipeline.models.receptive import Reach
from pipeline.models.value_scores import SUMS, ValueScores, error_sums
from pipeline.training.datasets import LabelledScene
from pipeline.training.distributed import rank, summed, world
from pipeline.training.unknown import known

CORE = 512  # px: the cores in which an area is classified

Answer = Callable[[torch.Tensor], np.ndarray]  # of logits_KHW, as labels are: H x W


def to_classes(logits_KHW: torch.Tensor) -> np.ndarray:
    """The class of each pixel, uint8 H x W."""
    return logits_KHW.max(dim=0).indices.to(torch.uint8).cpu().numpy()


def context_px(reach: Reach) -> int:
    """The pixels around an area that its classes depend on: the exact halo, or what stands in for it."""
    return ceil_to(INEXACT_HALO, reach.stride) if reach.exact_halo is None else reach.exact_halo


def cores(scenes: Sequence[LabelledScene]) -> list[tuple[LabelledScene, Window]]:
    """The areas of the scenes, cut into windows of at most 512 px a side."""
    return [(item, core) for item in scenes for core in item.pieces(CORE)]


def some_cores(scenes: Sequence[LabelledScene], most: int) -> list[tuple[LabelledScene, Window]]:
    """Up to `most` of the cores to be looked at, evenly chosen: no slivers, and such that have labels where they are easily found."""
    found = cores(scenes)
    largest = max((core.pixels for _, core in found), default=0)
    tried = _evenly([(item, core) for item, core in found if 2 * core.pixels >= largest], 4 * most)
    return _evenly([(item, core) for item, core in tried if known(item.read_labels(core)).any()] or tried, most)


def _evenly(things: list[Any], most: int) -> list[Any]:
    return [things[number] for number in np.unique(np.linspace(0, len(things) - 1, most).astype(int))] if things else []


@torch.inference_mode()
def logits_of(
    network: nn.Module, item: LabelledScene, core: Window, bands: Sequence[Band], reach: Reach
) -> tuple[torch.Tensor, np.ndarray]:
    """The logits, K x H x W fp32 on the network's device, and the labels, H x W, of a window of a scene."""
    read = around(core, item.scene.grid.window, reach)
    block = item.read(read)
    device = next(chain(network.parameters(), network.buffers())).device
    batch_BCHW = block.normalised(bands)[None].to(device, memory_format=torch.channels_last)
    inner = core.relative_to(read).slices()
    return network(batch_BCHW)[0][:, *inner].float(), block.labels_HW[inner]


def around(core: Window, grid: Window, reach: Reach) -> Window:
    """The window that a network has to see for the classes in `core`: on its stride, in the grid padded to the stride."""
    context, stride = context_px(reach), reach.stride
    row, col = (max(0, start - context) // stride * stride for start in (core.row, core.col))
    bottom = min(ceil_to(core.rows.stop + context, stride), ceil_to(grid.height, stride))
    right = min(ceil_to(core.cols.stop + context, stride), ceil_to(grid.width, stride))
    return Window(row, col, bottom - row, right - col)


def answered(
    network: nn.Module, scenes: Sequence[LabelledScene], bands: Sequence[Band], reach: Reach, answer: Answer = to_classes
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Labels and what the network says, H x W, of each window of the scenes; with several processes, of this one's share."""
    for item, core in cores(scenes)[rank() :: world()]:
        logits_KHW, labels_HW = logits_of(network, item, core, bands, reach)
        yield labels_HW, answer(logits_KHW)


def score(network: nn.Module, scenes: Sequence[LabelledScene], bands: Sequence[Band], reach: Reach) -> Scores:
    """The scores of a network in eval mode where the scenes have labels, computed by all processes together."""
    classes = len(scenes[0].classes)
    confusion = np.zeros((classes, classes), np.int64)
    for labels_HW, ids_HW in answered(network, scenes, bands, reach):
        confusion += confusion_matrix(labels_HW, ids_HW, classes)
    return Scores(_of_all(confusion, network))


def score_values(
    network: nn.Module, scenes: Sequence[LabelledScene], bands: Sequence[Band], reach: Reach, answer: Answer, origin: float
) -> ValueScores:
    """As `score`, of a network whose answers and labels are numbers; `origin` as of `error_sums`."""
    sums = np.zeros(SUMS)
    for labels_HW, values_HW in answered(network, scenes, bands, reach, answer):
        sums += error_sums(labels_HW, values_HW, origin)
    return ValueScores(_of_all(sums, network))


def _of_all(counts: np.ndarray, network: nn.Module) -> np.ndarray:
    """The counts of all processes together."""
    device = next(chain(network.parameters(), network.buffers())).device
    return summed(torch.from_numpy(counts).to(device)).cpu().numpy()


@torch.inference_mode()
def classify(network: nn.Module, image_CHW: torch.Tensor, reach: Reach, answer: Answer = to_classes) -> np.ndarray:
    """The class of each pixel of a normalised image, or what `answer` makes of logits, H x W, computed in tiles with an exact halo.

    Height and width must be multiples of the network's stride.
    """
    _, height, width = image_CHW.shape
    device = next(chain(network.parameters(), network.buffers())).device
    halo, answer_HW = context_px(reach), np.empty((height, width), answer(torch.zeros(1, 1, 1)).dtype)
    tile = ceil_to(CORE + 2 * halo, reach.stride)
    for read_rows, core_rows in spans(Span(0, height), height, tile, halo):
        for read_cols, core_cols in spans(Span(0, width), width, tile, halo):
            read, core = Window.of(read_rows, read_cols), Window.of(core_rows, core_cols)
            tile_BCHW = image_CHW[None, :, *read.slices()].to(device, memory_format=torch.channels_last)
            answer_HW[core.slices()] = answer(network(tile_BCHW)[0])[core.relative_to(read).slices()]
    return answer_HW
