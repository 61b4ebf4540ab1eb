"""Bundles with random weights, for benchmarks and tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import Refused
from pipeline.models.bundle import load_bundle
from pipeline.models.engine import Engine, Execution
from pipeline.models.random_bundle import distinct_colour, save_random_bundle

UNET = {"width": 4, "depth": 2}


def test_it_is_a_bundle_with_the_exact_halo_that_passes_its_own_test(tmp_path: Path) -> None:
    save_random_bundle(tmp_path / "bundle", architecture="unet", arguments=UNET, bands=3, classes=7, provenance={"command": "this"})
    bundle = load_bundle(tmp_path / "bundle")
    assert [band.name for band in bundle.bands] == ["band_1", "band_2", "band_3"]
    assert [(entry.id, entry.name) for entry in bundle.classes] == [(number, f"class_{number}") for number in range(7)]
    assert bundle.halo == bundle.reach.exact_halo and bundle.provenance == {"command": "this"}
    Engine(bundle, "cpu", Execution())


def test_weights_follow_from_the_seed(tmp_path: Path) -> None:
    made = [
        save_random_bundle(tmp_path / str(place), architecture="unet", arguments=UNET, bands=3, classes=2, seed=seed)
        for place, seed in enumerate((1, 1, 2))
    ]
    assert made[0].model_id == made[1].model_id != made[2].model_id


def test_colours_are_distinct() -> None:
    assert len({distinct_colour(number) for number in range(255)}) == 255


@pytest.mark.parametrize(("bands", "classes"), [(0, 2), (1, 0), (1, 256)])
def test_numbers_that_cannot_be_are_refused(tmp_path: Path, bands: int, classes: int) -> None:
    with pytest.raises(Refused, match=f"--bands {bands} --classes {classes}"):
        save_random_bundle(tmp_path / "bundle", architecture="unet", arguments=UNET, bands=bands, classes=classes)
    assert not list(tmp_path.iterdir())
