"""Stride and exact halo as found by perturbation, against what is known of the networks and against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.models.networks import build_network
from pipeline.models.receptive import Reach, find_reach, measure_halo
from tests.toys import smooth_noise, wide_logits


@pytest.mark.parametrize(
    ("architecture", "arguments", "expected"),
    [
        ("identity", {}, Reach(1, 0, None)),
        ("logistic_regression", {}, Reach(1, 0, None)),
        ("unet", {"width": 4, "depth": 2}, Reach(4, 24, None)),
        ("unet", {"width": 4, "depth": 4}, Reach(16, 96, None)),
        ("fcn_resnet50", {}, Reach(8, 232, None)),  # 224 is too little and 228 off the stride: ../shared/research/performance.md
        ("lraspp_mobilenet_v3_large", {}, Reach(16, None, "global pooling")),
        ("deeplabv3_mobilenet_v3_large", {}, Reach(16, None, "global pooling")),
        ("deeplabv3plus_resnet18", {}, Reach(16, None, "global pooling")),
        ("fpn_resnet18", {}, Reach(32, None, "group normalisation")),
        ("segformer_b0", {}, Reach(32, None, "attention")),
        ("segnet", {"width": 2}, Reach(32, 192, None)),
        ("fcn8s_vgg16", {"width": 2, "hidden": 8}, Reach(32, 224, None)),
        ("fcn32s_alexnet", {"width": 2, "hidden": 8}, Reach(32, 224, None)),
    ],
)
def test_reach_of_the_zoo(architecture: str, arguments: dict[str, int], expected: Reach):
    assert find_reach(build_network(architecture, 2, 3, **arguments), 2) == expected


TILED = {
    "segnet": {"width": 4},
    "fcn8s_vgg16": {"width": 4, "hidden": 16},
    "fcn32s_alexnet": {"width": 4, "hidden": 16},
    "fc_densenet56": {"first": 4, "growth": 2},
    "unet_resnet18": {},
    "fpn_resnet18": {"norm": "batch"},
}


@pytest.mark.parametrize("architecture", TILED)
def test_a_tile_with_the_exact_halo_equals_the_whole(architecture: str):
    """Inside the scene and at its edge, by the network itself; SegNet's pooling indices included."""
    torch.manual_seed(0)
    network = wide_logits(build_network(architecture, 3, 4, **TILED[architecture]), 3, 1)
    stride, halo, _ = find_reach(network, 3)
    core, size = 64, 2 * halo + 64
    values_CHW = torch.from_numpy(smooth_noise(2, (3, 128, size + 4 * stride)).astype(np.float32))
    batch_BCHW = (values_CHW - 128)[None] / 50
    with torch.inference_mode():
        whole_BKHW = network(batch_BCHW)
        inside_BKHW = network(batch_BCHW[..., 2 * stride : 2 * stride + size])[..., halo : halo + core]
        edge_BKHW = network(batch_BCHW[..., : core + halo])[..., :core]
    assert whole_BKHW.argmax(1).unique().numel() > 1
    torch.testing.assert_close(inside_BKHW, whole_BKHW[..., 2 * stride + halo : 2 * stride + halo + core], rtol=0, atol=1e-3)
    torch.testing.assert_close(edge_BKHW, whole_BKHW[..., :core], rtol=0, atol=1e-3)


def test_normalisation_over_channels_is_exact_and_attention_is_not():
    class Tokens(nn.Module):
        def __init__(self, attends: bool):
            super().__init__()
            self.norm = nn.LayerNorm(4)
            self.attention = nn.MultiheadAttention(4, 1, batch_first=True) if attends else None
            self.first = nn.Conv2d(1, 4, 3, padding=1)

        def forward(self, batch_BCHW: torch.Tensor) -> torch.Tensor:
            maps = self.first(batch_BCHW)
            tokens = self.norm(maps.flatten(2).transpose(1, 2))
            if self.attention is not None:
                tokens = self.attention(tokens, tokens, tokens, need_weights=False)[0]
            return tokens.transpose(1, 2).reshape(maps.shape)

    assert find_reach(Tokens(attends=False), 1) == Reach(1, 1, None)
    assert find_reach(Tokens(attends=True), 1) == Reach(1, None, "attention")


def test_a_period_is_found_where_what_is_touched_comes_near_an_end():
    """252 px to each side of a stride of 32: in a probe of 512 px a moved perturbation would be cut off."""
    network = nn.Sequential(nn.MaxPool2d(32), nn.Conv2d(1, 1, 15, padding=7), nn.Upsample(scale_factor=32))
    assert find_reach(network, 1) == Reach(32, 224, None)


@pytest.mark.parametrize(("kernel", "dilation", "layers"), [(3, 1, 1), (5, 1, 2), (3, 4, 3), (7, 2, 1)])
def test_plain_convolutions_reach_as_far_as_their_kernels(kernel: int, dilation: int, layers: int):
    padding = dilation * (kernel - 1) // 2
    network = nn.Sequential(*(nn.Conv2d(1, 1, kernel, padding=padding, dilation=dilation) for _ in range(layers)))
    assert find_reach(network, 1) == Reach(1, padding * layers, None)


def test_the_longer_axis_counts():
    network = nn.Conv2d(1, 2, (1, 9), padding=(0, 4))
    assert find_reach(network, 1) == Reach(1, 4, None)


@pytest.mark.parametrize("layer", [nn.GroupNorm(1, 2), nn.InstanceNorm2d(2)])
def test_normalisation_over_the_tile_is_never_exact(layer: nn.Module):
    reach = find_reach(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), layer), 1)
    assert reach.exact_halo is None and "normalisation" in str(reach.why_not)


def test_a_stride_that_is_no_power_of_two_is_an_error():
    network = nn.Sequential(nn.AvgPool2d(3, ceil_mode=True), nn.Upsample(scale_factor=3))
    with pytest.raises(ValueError, match="512"):
        find_reach(network, 1)


def test_beyond_the_exact_halo_nothing_matters_and_within_it_something_does():
    """Brute force: change the pixels at a distance and look whether the output changes."""
    torch.manual_seed(0)
    network = wide_logits(build_network("unet", 1, 3, width=4, depth=2), 1, 0)
    halo = find_reach(network, 1).exact_halo
    batch_BCHW = torch.randn(1, 1, 128, 128)
    with torch.inference_mode():
        before = network(batch_BCHW)[..., 64:68]
        for distance, same in ((halo, True), (halo - 8, False)):
            changed = batch_BCHW.clone()
            changed[..., 68 + distance :] += 100
            changed[..., : 64 - distance] -= 100
            assert bool((network(changed)[..., 64:68] == before).all()) == same


def test_measured_halo_is_the_smallest_that_keeps_the_share():
    torch.manual_seed(0)
    network = wide_logits(build_network("unet", 3, 5, width=8, depth=3), 3, 5)
    reach = find_reach(network, 3)

    @torch.inference_mode()
    def classify(image_CHW: np.ndarray) -> np.ndarray:
        return network((torch.from_numpy(image_CHW).float()[None] - 128) / 50)[0].argmax(0).numpy()

    image_CHW = smooth_noise(5, (3, 512, 520))
    halo, tried = measure_halo(classify, image_CHW, reach, core=128, share=1e-3)
    assert halo % reach.stride == 0 and 0 < halo <= reach.exact_halo
    assert tried[halo] <= 1e-3 < tried.get(halo - reach.stride, 1.0)
    assert measure_halo(classify, image_CHW, reach, core=128, share=1.0)[0] == 0
