"""A draw follows from the seed and its number; windows are the scenes' own pixels with their own labels, and hold no held-out one."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.geometry.windows import Window
from pipeline.training.augmentation import Augmentation
from pipeline.training.classes import table_of
from pipeline.training.datasets import LabelledScene, open_labelled
from pipeline.training.sampling import Draws, collate
from pipeline.training.splits import HeldOut, split
from pipeline.training.statistics import measure
from tests.toys import write_scene

TABLE = table_of(range(4), coloured=False)


def scene(folder: Path, number: int, height: int, width: int, shares: tuple[float, ...] = (0.7, 0.2, 0.09, 0.01)) -> LabelledScene:
    """Bands that hold each pixel's scene, row and column, so that a window tells where it was taken."""
    rows, cols = np.mgrid[:height, :width]
    values_CHW = np.stack([np.full((height, width), number) + rows % 2, rows, cols]).astype(np.float32)
    labels_HW = np.random.default_rng(number).choice(4, (height, width), p=shares).astype(np.uint8)
    image = write_scene(folder / f"{number}.tif", values_CHW, descriptions=["scene", "row", "col"])
    labels = write_scene(folder / f"{number}-labels.tif", labels_HW[None])
    return open_labelled(str(image), labels=str(labels), classes=TABLE)[0]


def draws_of(*scenes: LabelledScene, size: tuple[int, int] = (16, 16), how: str = "none", balanced: bool = False, seed: int = 0) -> Draws:
    return Draws(scenes, measure(scenes, scenes[0].bands), size, Augmentation.parse(how), balanced=balanced, seed=seed)


def places(draws: Draws, image_CHW: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The rows and columns that a window without padding was taken from."""
    bands = draws.statistics.bands
    values = [np.rint(plane * band.std + band.mean).astype(int) for plane, band in zip(image_CHW.numpy().astype(float), bands, strict=True)]
    return values[1], values[2]


@pytest.mark.parametrize("how", ["none", "turn", "flip"])
@pytest.mark.parametrize("size", [(16, 16), (8, 24), (1, 1), (40, 50)])
def test_a_window_is_a_part_of_the_scene_with_its_own_labels(tmp_path: Path, size: tuple[int, int], how: str) -> None:
    item = scene(tmp_path, 1, 40, 50)
    draws = draws_of(item, size=size, how=how)
    labels_HW = item.read_labels(item.scene.grid.window)
    for draw in range(40):
        image_CHW, found_HW, number = draws[draw]
        assert number == draw and image_CHW.shape == (3, *size) and image_CHW.dtype == torch.float32 and found_HW.dtype == torch.int64
        rows, cols = places(draws, image_CHW)
        assert (found_HW.numpy() == labels_HW[rows, cols]).all()
        assert np.ptp(rows) * np.ptp(cols) == (size[0] - 1) * (size[1] - 1)
        assert len(np.unique(rows * 1000 + cols)) == size[0] * size[1]


@pytest.mark.parametrize("seed", range(6))
def test_no_window_shows_a_label_that_is_held_out_or_near_one(tmp_path: Path, seed: int) -> None:
    """The law of splits, at the end of the chain."""
    gap, block = 5, 20
    item = scene(tmp_path, 1, 120, 130)
    parts = split([item], HeldOut(0.2), HeldOut(0.2), gap=gap, seed=seed, block=block)
    held_HW = np.zeros((120, 130), bool)
    for some in (*parts.validation, *parts.test):
        for area in some.areas:
            held_HW[max(0, area.row - gap) : area.rows.stop + gap, max(0, area.col - gap) : area.cols.stop + gap] = True
    draws, shown_HW = draws_of(*parts.train, size=(32, 32), how="turn", balanced=seed % 2 == 0, seed=seed), np.zeros((120, 130), bool)
    for draw in range(60):
        image_CHW, labels_HW, _ = draws[draw]
        known_HW = labels_HW.numpy() != 255
        rows, cols = places(draws, image_CHW)
        shown_HW[rows[known_HW], cols[known_HW]] = True
        assert known_HW.any()
    assert shown_HW.any() and not (shown_HW & held_HW).any()


@pytest.mark.parametrize("size", [(64, 48), (16, 64), (64, 8)])
def test_a_smaller_scene_is_padded_with_ignored_means(tmp_path: Path, size: tuple[int, int]) -> None:
    item = scene(tmp_path, 1, 30, 20)
    draws = draws_of(item, size=size)
    for draw in range(5):
        image_CHW, labels_HW, _ = draws[draw]
        inside = (slice(0, min(30, size[0])), slice(0, min(20, size[1])))
        assert (labels_HW[inside] != 255).all()
        outside = torch.ones(size, dtype=torch.bool)
        outside[inside] = False
        assert (labels_HW[outside] == 255).all() and (image_CHW[:, outside] == 0).all()


@pytest.mark.parametrize("how", ["none", "turn,rotate=30,scale=0.5:2,brightness=0.3,contrast=0.3,blur=0.5,noise=0.1,band_dropout=0.2"])
def test_a_draw_follows_from_seed_and_number_alone(tmp_path: Path, how: str) -> None:
    """Whatever was drawn before, whatever the generators' state, and in another process."""
    scenes = [scene(tmp_path, 1, 60, 70), scene(tmp_path, 2, 40, 30)]
    draws = draws_of(*scenes, how=how, seed=7)
    kept = {draw: draws[draw] for draw in range(12)}
    torch.manual_seed(99)
    np.random.seed(99)
    state = torch.get_rng_state()
    for draw in (11, 3, 7, 0):
        assert all(torch.equal(one, other) for one, other in zip(draws[draw][:2], kept[draw][:2], strict=True))
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's draws are disturbed
    copied = pickle.loads(pickle.dumps(draws))
    loader = DataLoader(copied, sampler=[5, 2, 9, 1], batch_size=2, num_workers=2, collate_fn=collate)
    for images, labels, numbers in loader:
        for image_CHW, labels_HW, number in zip(images, labels, numbers, strict=True):
            assert torch.equal(image_CHW, kept[number][0]) and torch.equal(labels_HW, kept[number][1])
    others = draws_of(*scenes, how=how, seed=8)
    assert not torch.equal(others[0][0], kept[0][0]) and not torch.equal(kept[0][0], kept[1][0])


@pytest.mark.parametrize("balanced", [False, True])
def test_pixels_are_drawn_evenly_or_classes_are(tmp_path: Path, balanced: bool) -> None:
    """Windows of one pixel: within four standard deviations of what a fair draw gives, by class and by scene."""
    scenes = [scene(tmp_path, 1, 60, 50), scene(tmp_path, 2, 30, 20, (0.1, 0.0, 0.1, 0.8))]
    draws = draws_of(*scenes, size=(1, 1), balanced=balanced)
    count, counts_SK = 3000, draws.statistics.counts_SK
    found = np.array([int(draws[draw][1]) for draw in range(count)])
    shares = np.full(4, 0.25) if balanced else counts_SK.sum(axis=0) / counts_SK.sum()
    drawn = np.bincount(found, minlength=4)
    assert (np.abs(drawn - count * shares) <= 4 * np.sqrt(count * shares * (1 - shares))).all(), (drawn, count * shares)


def test_a_class_that_is_nowhere_is_never_asked_for(tmp_path: Path) -> None:
    draws = draws_of(scene(tmp_path, 1, 40, 40, (0.99, 0.0, 0.01, 0.0)), size=(1, 1), balanced=True)
    assert {int(draws[draw][1]) for draw in range(60)} == {0, 2}


def test_an_epoch_takes_every_scene_by_its_labelled_pixels(tmp_path: Path) -> None:
    """40 x 50 px hold 31 windows of 8 x 8; a scene with a single label is still drawn once, one with none never."""
    large, one, none = scene(tmp_path, 1, 40, 50), scene(tmp_path, 2, 9, 9), scene(tmp_path, 3, 20, 20)
    draws = draws_of(large, replace(one, areas=(Window(3, 4, 1, 1),)), replace(none, excluded=(Window(0, 0, 20, 20),)), size=(8, 8))
    assert draws.epoch_length == 31 + 1
    orders = []
    for epoch in range(3):
        names = [draws.place(epoch * 32 + draw).split(" ")[0] for draw in range(32)]
        assert (names.count("1"), names.count("2")) == (31, 1)
        orders.append(names.index("2"))
    assert len(set(orders)) > 1
    assert (draws[orders[0]][1] != 255).sum() == 1


def test_every_window_holds_a_labelled_pixel_wherever_it_is(tmp_path: Path) -> None:
    for row, col in ((0, 0), (39, 49), (0, 25), (17, 49)):
        item = replace(scene(tmp_path, 1, 40, 50), areas=(Window(row, col, 1, 1), Window(20, 20, 2, 2)))
        draws = draws_of(item, size=(12, 9))
        assert all((draws[draw][1] != 255).any() for draw in range(20))


def test_windows_reach_every_corner_and_never_leave_the_scene(tmp_path: Path) -> None:
    draws = draws_of(scene(tmp_path, 1, 40, 50), size=(16, 16))
    rows, cols = zip(*(places(draws, draws[draw][0]) for draw in range(300)), strict=True)
    assert (np.min(rows), np.max(rows), np.min(cols), np.max(cols)) == (0, 39, 0, 49)


def test_zoom_takes_windows_of_half_to_double_the_side(tmp_path: Path) -> None:
    """A window of 16 px shows 8 to 32 px of the scene, at every scale as likely on a logarithmic axis."""
    draws = draws_of(scene(tmp_path, 1, 90, 100), how="scale=0.5:2")
    sides = []
    for draw in range(200):
        image_CHW, labels_HW, _ = draws[draw]
        assert image_CHW.shape[1:] == labels_HW.shape == (16, 16)
        rows, cols = places(draws, image_CHW)
        assert set(np.unique(labels_HW)) <= {0, 1, 2, 3}
        sides.append((np.ptp(rows) + 1, np.ptp(cols) + 1))
        assert abs(sides[-1][0] - sides[-1][1]) <= 2
    spread = np.log2(np.array(sides).mean(axis=1) / 16)
    assert -1.2 < spread.min() < -0.75 and 0.75 < spread.max() < 1.1 and abs(spread.mean()) < 0.25


def test_a_draws_place_is_told(tmp_path: Path) -> None:
    draws = draws_of(scene(tmp_path, 5, 40, 50), how="scale=0.8:1.5", seed=3)
    for draw in range(5):
        assert draws.place(draw) == draws.place(draw) and draws.place(draw).startswith("5 (row ")
    plain = draws_of(scene(tmp_path, 5, 40, 50))
    rows, cols = places(plain, plain[0][0])
    assert plain.place(0) == f"5 (row {rows.min()}, column {cols.min()})"


def test_samples_are_collated_in_order(tmp_path: Path) -> None:
    draws = draws_of(scene(tmp_path, 1, 40, 50))
    images, labels, numbers = collate([draws[4], draws[2]])
    assert numbers == [4, 2] and images.shape == (2, 3, 16, 16) and labels.shape == (2, 16, 16)
    assert torch.equal(images[1], draws[2][0]) and torch.equal(labels[0], draws[4][1])
