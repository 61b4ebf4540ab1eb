"""FC-DenseNet: sizes and counts that the paper gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.models.networks import build_network


@pytest.mark.parametrize(
    ("name", "millions", "layers"),
    [("fc_densenet56", 1.5, 56), ("fc_densenet67", 3.5, 67), ("fc_densenet103", 9.4, 103)],
)
def test_parameters_and_layers_are_as_published(name: str, millions: float, layers: int):
    """Table 3 of the paper; by its table 2 the smallest has 1.37 M, which it gives as 1.5."""
    with torch.device("meta"):
        network = build_network(name, 3, 11)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.1 if layers == 56 else 0.02)
    assert sum(isinstance(module, nn.Conv2d | nn.ConvTranspose2d) for module in network.modules()) == layers


def test_maps_grow_as_in_table_2_of_the_paper():
    """Of FC-DenseNet103: down, at the bottom, up; the third up is 160 enlarged + 304 of the skip + 7 x 16 new."""
    network = build_network("fc_densenet103", 3, 11)
    seen: list[int] = []
    for shrink in network.shrink:
        shrink.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    network.bottom.register_forward_hook(lambda _, inputs, new: seen.append(inputs[0].shape[1] + new.shape[1]))
    for block in network.up:
        block.register_forward_hook(lambda _, inputs, new: seen.append(inputs[0].shape[1] + new.shape[1]))
    with torch.inference_mode():
        network(torch.zeros(1, 3, 32, 32))
    assert seen == [112, 192, 304, 464, 656, 896, 1088, 816, 576, 384, 256]


def test_dropout_acts_in_training_only():
    network = build_network("fc_densenet56", 2, 3, first=4, growth=2, dropout=0.5)
    batch_BCHW = torch.randn(1, 2, 64, 64)
    with torch.no_grad():
        assert torch.equal(network(batch_BCHW), network(batch_BCHW))
        network.train()
        assert not torch.equal(network(batch_BCHW), network(batch_BCHW))
