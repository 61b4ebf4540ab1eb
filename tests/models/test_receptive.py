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
    ],
)
def test_reach_of_the_zoo(architecture: str, arguments: dict[str, int], expected: Reach):
    assert find_reach(build_network(architecture, 2, 3, **arguments), 2) == expected


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
