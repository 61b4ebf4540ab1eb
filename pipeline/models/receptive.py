"""How far a network looks: its output stride and its exact halo, found by perturbing it.

A NaN spreads through convolution, pooling, activation, addition and interpolation whatever the weights are, so the
outputs that turn NaN are exactly the outputs that depend on the inputs that were set to NaN. What depends on a pixel
outside a tile includes what would see the tile's zero padding in place of that pixel, so the exact halo bounds both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from pipeline.geometry.windows import BLOCK, Span, Window, ceil_to, spans

LONGEST = 4096  # px: a network that looks further than half of it counts as one that looks everywhere
NARROW = 64  # px: probes are strips, since rows and columns are probed one at a time
NEVER_EXACT: dict[type[nn.Module], str] = {
    nn.AdaptiveAvgPool2d: "global pooling",
    nn.AdaptiveMaxPool2d: "global pooling",
    nn.InstanceNorm2d: "instance normalisation",
    nn.GroupNorm: "group normalisation",
    nn.LayerNorm: "layer normalisation",
    nn.MultiheadAttention: "attention",
}


class Reach(NamedTuple):
    """What a network needs around a pixel: `exact_halo` in px, a multiple of `stride`, or None and the reason why not."""

    stride: int
    exact_halo: int | None
    why_not: str | None


def find_reach(network: nn.Module, bands: int) -> Reach:
    """Find the output stride and the exact halo of a network that takes batch_BCHW of `bands` channels.

    Raises ValueError where no power of two up to 512 is a period of the network, so that blocks cannot align with it.
    """
    probe = copy.deepcopy(network).eval()
    reason = next((why for module in probe.modules() if (why := sees_everything(module))), None)
    if reason:  # the stride does not depend on what sees everything
        _blind(probe)
    length = BLOCK
    while length <= LONGEST:
        reach = _probe(probe, bands, length)
        if reach is not None:
            stride, halo = reach
            return Reach(stride, None, reason) if reason else Reach(stride, halo, None)
        length *= 2
    raise ValueError(f"the network's output depends on pixels more than {LONGEST // 2} px away: it cannot be tiled")


def _probe(network: nn.Module, bands: int, length: int) -> tuple[int, int] | None:
    """Stride and exact halo, or None where what a perturbation touches reaches an end of `length` px."""
    middle = length // 2
    stride, halo = 1, 0
    for axis in (2, 3):
        before = _touched(network, bands, length, axis, Span(0, middle))
        after = _touched(network, bands, length, axis, Span(middle, length))
        if before.stop == length or after.start == 0:
            return None
        period = _period(network, bands, length, axis)
        if period is None:
            return None
        halo = max(halo, before.stop - middle, middle - after.start)
        stride = max(stride, period)
    return stride, ceil_to(halo, stride)


def _period(network: nn.Module, bands: int, length: int, axis: int) -> int | None:
    """The smallest shift, a power of two, by which a perturbation moves together with what it touches; None: `length` is too short."""
    middle = length // 2
    still = _touched(network, bands, length, axis, Span(middle, middle + 1))
    for shift in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        moved = _touched(network, bands, length, axis, Span(middle - shift, middle - shift + 1))
        if (moved.start + shift, moved.stop + shift) == still:
            return shift
        if moved.start == 0:
            return None
    raise ValueError("the network has no stride that divides 512 px, so its tiles cannot align with 512 px blocks")


@torch.inference_mode()
def _touched(network: nn.Module, bands: int, length: int, axis: int, perturbed: Span) -> Span:
    """The rows (axis 2) or columns (axis 3) of the output that depend on the `perturbed` ones of the input."""
    size = [1, bands, NARROW, NARROW]
    size[axis] = length
    batch_BCHW = torch.zeros(size)
    batch_BCHW.narrow(axis, perturbed.start, perturbed.length).fill_(torch.nan)
    touched = network(batch_BCHW)[0].isnan().any(dim=0).any(dim=3 - axis).nonzero()
    return Span(int(touched.min()), int(touched.max()) + 1) if len(touched) else Span(perturbed.start, perturbed.start)


def sees_everything(module: nn.Module) -> str | None:
    """Why each output of a module depends on all of its input: as the module says itself, or its kind; None where it does not.

    A module that says so, `sees_everything = "attention"`, gives what has the shape of its first argument.
    """
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return None  # over the channels of a position; over a row or a column it would be found by probing
    said = getattr(module, "sees_everything", None)
    return said or next((why for kind, why in NEVER_EXACT.items() if isinstance(module, kind)), None)


def _blind(network: nn.Module) -> None:
    """Let each module that sees everything, in place, pass on what it is given, or zeros where it would have pooled."""
    for module in network.modules():
        if sees_everything(module):
            pools = isinstance(module, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d))
            attends = isinstance(module, nn.MultiheadAttention)
            module.forward = _zeros_like_pooled if pools else _query_and_no_weights if attends else _as_given  # type: ignore[method-assign]


def _as_given(features: torch.Tensor, *_: object) -> torch.Tensor:
    return features


def _query_and_no_weights(query: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor, None]:
    return query, None


def _zeros_like_pooled(features: torch.Tensor) -> torch.Tensor:
    return features.new_zeros((*features.shape[:2], 1, 1))


def measure_halo(
    classify: Callable[[np.ndarray], np.ndarray], image_CHW: np.ndarray, reach: Reach, *, core: int = 256, share: float = 1e-4,
    differ: Callable[[np.ndarray, np.ndarray], np.ndarray] = np.not_equal,
) -> tuple[int, dict[int, float]]:  # fmt: skip
    """The smallest stride-aligned halo at which at most `share` of the pixels change against the exact halo.

    `classify` takes C x H x W and returns class ids, or numbers, H x W; `differ` says where two of these are not the same. The
    image is cut into cores of `core` px, so the share is that of tiles with that core. Returns the halo and the share of changed
    pixels at each halo that was tried.
    """
    assert reach.exact_halo is not None, "a network that is never exact has no exact halo to compare with"
    height, width = (length // reach.stride * reach.stride for length in image_CHW.shape[1:])
    image_CHW = image_CHW[:, :height, :width]
    whole_HW = classify(image_CHW)
    tried: dict[int, float] = {reach.exact_halo: 0.0}
    low, high = 0, reach.exact_halo // reach.stride  # the answer lies in low..high strides
    while low < high:
        halo = (low + high) // 2 * reach.stride
        tried[halo] = _changed(classify, image_CHW, whole_HW, core, halo, differ)
        low, high = (low, halo // reach.stride) if tried[halo] <= share else (halo // reach.stride + 1, high)
    return low * reach.stride, tried


def _changed(
    classify: Callable[[np.ndarray], np.ndarray], image_CHW: np.ndarray, whole_HW: np.ndarray, core: int, halo: int,
    differ: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> float:  # fmt: skip
    height, width = whole_HW.shape
    differing = 0
    for read_rows, core_rows in spans(Span(0, height), height, core + 2 * halo, halo):
        for read_cols, core_cols in spans(Span(0, width), width, core + 2 * halo, halo):
            read, own = Window.of(read_rows, read_cols), Window.of(core_rows, core_cols)
            tile_HW = classify(image_CHW[:, *read.slices()])[own.relative_to(read).slices()]
            differing += int(differ(tile_HW, whole_HW[own.slices()]).sum())
    return differing / whole_HW.size
