"""Scores on held-out areas: in tiles with the exact halo, so those of a pass over the whole scene."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.geometry.windows import Window
from pipeline.models.bundle import normalise
from pipeline.models.metrics import confusion_matrix
from pipeline.models.networks import build_network
from pipeline.models.receptive import Reach, find_reach
from pipeline.training import validation
from pipeline.training.statistics import measure
from pipeline.training.validation import around, classify, context_px, score
from tests.toys import wide_logits
from tests.training.labelled import HEIGHT, WIDTH, open_pair, write_pair


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(2)
    return wide_logits(build_network("unet", 2, 2, width=4, depth=3), 2, seed=2)


@pytest.mark.parametrize("areas", [(Window(0, 0, HEIGHT, WIDTH),), (Window(3, 90, 50, 21), Window(40, 5, 24, 30))])
def test_scores_of_areas_are_those_of_the_whole_scene_cut_to_them(
    tmp_path: Path, network: nn.Module, areas: tuple[Window, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pair(tmp_path)
    item = replace(open_pair(tmp_path)[0], areas=areas)
    bands = measure([item], item.bands).bands
    block = item.read(Window(0, 0, HEIGHT, WIDTH))
    with torch.inference_mode():
        logits_BKHW = network(normalise(torch.from_numpy(block.physical_CHW)[None], bands))
    expected = confusion_matrix(block.labels_HW, logits_BKHW[0].argmax(0).numpy().astype(np.uint8), 2)
    assert expected.sum() == sum(area.pixels for area in areas) and (expected > 0).all()
    for core in (16, 40, 512):
        monkeypatch.setattr(validation, "CORE", core)
        assert (score(network, [item], bands, find_reach(network, 2)).confusion == expected).all()


def test_classifying_in_tiles_is_classifying_the_whole(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    reach = find_reach(network, 2)
    image_CHW = torch.randn(2, 152, 208)
    with torch.inference_mode():
        whole_HW = network(image_CHW[None])[0].argmax(0).numpy()
    assert len(np.unique(whole_HW)) > 1
    for core in (32, 64, 512):
        monkeypatch.setattr(validation, "CORE", core)
        assert (classify(network, image_CHW, reach) == whole_HW).all()


def test_context_is_the_exact_halo_or_what_stands_for_it() -> None:
    assert context_px(Reach(8, 48, None)) == 48
    assert context_px(Reach(48, None, "global pooling")) == 144


def test_what_a_core_needs_ends_where_the_padded_scene_ends() -> None:
    reach = Reach(8, 16, None)
    assert around(Window(0, 30, 10, 10), Window(0, 0, 21, 100), reach) == Window(0, 8, 24, 48)
    assert around(Window(40, 90, 10, 10), Window(0, 0, 200, 100), reach) == Window(24, 72, 48, 32)
