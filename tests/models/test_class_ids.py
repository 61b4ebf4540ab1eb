"""Classes from coarse logits: the same as from interpolated ones, but for ties within rounding."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from pipeline.geometry.windows import Window
from pipeline.models.class_ids import around, class_ids, upsampled
from pipeline.models.networks import build_network
from pipeline.models.program import Coarse


def coarse_logits(classes: int, height: int, width: int, smooth: int, seed: int = 0) -> torch.Tensor:
    """Logits that vary over `smooth` px, K x height x width."""
    rough = torch.randn(1, classes, height // smooth + 2, width // smooth + 2, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(rough, size=(height, width), mode="bicubic")[0]


@pytest.mark.parametrize("factor", [2, 4, 8, 16, 32])
@pytest.mark.parametrize(("classes", "smooth"), [(2, 8), (5, 1), (21, 3)])
def test_cells_give_what_interpolation_gives(factor: int, classes: int, smooth: int):
    logits_Khw = coarse_logits(classes, 23, 17, smooth)
    height, width = 23 * factor, 17 * factor
    expected_HW = upsampled(logits_Khw[None], height, width)[0].max(dim=0).indices
    assert (expected_HW.unique().numel() > 1) and torch.equal(
        class_ids(logits_Khw, Window(0, 0, height, width), height, width).long(), expected_HW
    )


@pytest.mark.parametrize("core", [Window(0, 0, 1, 1), Window(5, 9, 60, 40), Window(40, 100, 144, 36), Window(183, 135, 1, 1)])
def test_only_the_core_comes_back(core: Window):
    logits_Khw = coarse_logits(6, 23, 17, 2)
    expected_HW = upsampled(logits_Khw[None], 184, 136)[0].max(dim=0).indices
    assert torch.equal(class_ids(logits_Khw, core, 184, 136).long(), expected_HW[core.slices()])


def test_a_class_that_is_second_at_every_corner_can_win_between_them():
    logits_Khw = torch.tensor([[[10.0, 0.0], [10.0, 0.0]], [[0.0, 10.0], [0.0, 10.0]], [[9.0, 9.0], [9.0, 9.0]]])
    assert (class_ids(logits_Khw, Window(0, 0, 16, 16), 16, 16) == 2).any()


@pytest.mark.parametrize(("height", "width"), [(23, 17), (46, 51), (69, 68)])
def test_other_factors_and_full_size_are_interpolated(height: int, width: int):
    logits_Khw = coarse_logits(4, 23, 17, 3)
    expected_HW = functional.interpolate(logits_Khw[None], size=(height, width), mode="bilinear")[0].argmax(0)
    assert torch.equal(class_ids(logits_Khw, Window(0, 0, height, width), height, width).long(), expected_HW)


def test_what_a_core_depends_on_is_all_that_is_looked_at():
    """A value that is not finite fails the tiles that need it, and no other."""
    logits_Khw = coarse_logits(3, 16, 16, 2)
    core = Window(32, 32, 64, 64)
    inside, outside = logits_Khw.clone(), logits_Khw.clone()
    inside[0, 6, 6], outside[0, 1, 1] = torch.nan, torch.nan
    assert not around(inside, core, 128, 128).isfinite().all() and around(outside, core, 128, 128).isfinite().all()
    near = around(logits_Khw, core, 128, 128)
    assert near.shape == (3, 10, 10) and around(logits_Khw, Window(2, 3, 4, 5), 16, 16).shape == (3, 4, 5)


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
@torch.inference_mode()
def test_torchvisions_networks_give_their_coarse_logits(name: str):
    """And their own forward pass is that of torchvision."""
    network = build_network(name, bands=3, classes=4)
    batch_BCHW = torch.randn(1, 3, 64, 96)
    coarse_BKhw = Coarse(network)(batch_BCHW)
    assert coarse_BKhw.shape[-2:] in ((8, 12), (4, 6))
    torch.testing.assert_close(network(batch_BCHW), upsampled(coarse_BKhw, 64, 96))
    torch.testing.assert_close(network(batch_BCHW), network.network(batch_BCHW)["out"])
