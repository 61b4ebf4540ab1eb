"""No label that is held out, or lies near one that is, is ever trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import Refused
from pipeline.geometry.windows import Span
from pipeline.training.classes import table_of
from pipeline.training.datasets import LabelledScene, open_labelled
from pipeline.training.splits import HeldOut, Split, split
from tests.toys import write_scene


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("split")


def scenes_of(folder: Path, *shapes: tuple[int, int], labelled: float = 1.0) -> list[LabelledScene]:
    """Scenes of these sizes, with labels in the leftmost share of their columns."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    found = []
    for number, (height, width) in enumerate(shapes):
        labels_HW = (np.indices((height, width)).sum(axis=0) % 2).astype(np.uint8)
        labels_HW[:, math.ceil(labelled * width) :] = 255
        image = write_scene(folder / "images" / f"{number}-{height}-{width}.tif", np.ones((1, height, width), np.uint8))
        labels = write_scene(folder / "labels" / f"{number}-{height}-{width}-{labelled}.tif", labels_HW[None], nodata=255)
        found += open_labelled(str(image), labels=str(labels), classes=table_of([0, 1], coloured=False))
    return found


def seen(scenes: Sequence[LabelledScene]) -> dict[str, np.ndarray]:
    """Which pixels of each image have a label in a set, by the image's file."""
    found: dict[str, np.ndarray] = {}
    for item in scenes:
        known_HW = item.read_labels(item.scene.grid.window) != 255
        assert item.source.uri not in found  # a set has a scene once
        found[item.source.uri] = known_HW
    return found


def near(held_HW: np.ndarray, distance: int) -> np.ndarray:
    """The pixels at most `distance` from a held-out one, along rows and columns; one step at a time."""
    for _ in range(distance):
        grown_HW = np.pad(held_HW, 1)
        held_HW = np.logical_or.reduce(
            [
                grown_HW[1 + down : 1 + down + held_HW.shape[0], 1 + right : 1 + right + held_HW.shape[1]]
                for down in (-1, 0, 1)
                for right in (-1, 0, 1)
            ]
        )
    return held_HW


def assert_apart(parts: Split, gap: int) -> None:
    """The law: no training label is within `gap` px of a held-out one, and no label is held out twice."""
    train, validation, test = (seen(scenes) for scenes in parts.sets().values())
    for uri in train.keys() | validation.keys() | test.keys():
        shape = next(some[uri] for some in (train, validation, test) if uri in some).shape
        learnt_HW, first_HW, second_HW = (some.get(uri, np.zeros(shape, bool)) for some in (train, validation, test))
        assert not (first_HW & second_HW).any()
        assert not (near(first_HW | second_HW, gap) & learnt_HW).any()


def total(scenes: Sequence[LabelledScene]) -> int:
    return sum(int(known.sum()) for known in seen(scenes).values())


@pytest.mark.parametrize("seed", range(25))
def test_blocks_of_one_or_several_scenes_keep_the_gap(folder: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    shapes = [tuple(random.integers(90, 260, 2).tolist()) for _ in range(int(random.integers(1, 4)))]
    scenes = scenes_of(folder, *shapes, labelled=float(random.choice([1.0, 0.6])))
    block, gap = int(random.integers(16, 40)), int(random.integers(0, 14))
    validation, test = random.uniform(0.05, 0.3, 2).tolist()
    parts = split(scenes, HeldOut(validation), HeldOut(test), gap=gap, seed=seed, block=block)
    assert_apart(parts, min(gap, block // 4))
    assert total(parts.train) and total(parts.validation) and total(parts.test)
    assert "spatial blocks" in parts.how


def test_blocks_hold_out_the_share_that_was_asked_for(folder: Path) -> None:
    """20 x 20 blocks of the same size: 80 and 40."""
    scenes = scenes_of(folder, (320, 320))
    parts = split(scenes, HeldOut(0.2), HeldOut(0.1), gap=0, block=16)
    assert (total(parts.validation), total(parts.test)) == (80 * 256, 40 * 256)
    assert total(parts.train) == 280 * 256  # without a gap nothing is lost


def test_many_blocks_are_taken_of_every_scene(folder: Path) -> None:
    parts = split(scenes_of(folder, (160, 160), (160, 80), (80, 240)), HeldOut(0.2), HeldOut(0.2), gap=4, block=16)
    assert [len(scenes) for scenes in parts.sets().values()] == [3, 3, 3]


@pytest.mark.parametrize("seed", range(5))
def test_a_few_small_images_are_held_out_whole(folder: Path, seed: int) -> None:
    """Each is one block: of five, one goes to each held-out set, and none is in two."""
    scenes = scenes_of(folder, *[(40, 50)] * 5)
    parts = split(scenes, HeldOut(0.2), HeldOut(0.2), gap=16, seed=seed)
    assert [len(some) for some in parts.sets().values()] == [3, 1, 1]
    assert len({item.source.uri for some in parts.sets().values() for item in some}) == 5
    assert_apart(parts, 16)


def test_seeds_choose_and_repeat(folder: Path) -> None:
    scenes = scenes_of(folder, (200, 200), (100, 300))
    areas = [split(scenes, HeldOut(0.2), HeldOut(0.1), gap=8, seed=seed, block=32).to_json() for seed in (1, 1, 2)]
    assert areas[0] == areas[1] and areas[0]["validation"] != areas[2]["validation"]


def test_a_scene_without_labels_takes_no_part(folder: Path) -> None:
    bare, full = scenes_of(folder, (70, 70), labelled=0.0), scenes_of(folder, (128, 130))
    parts = split([*bare, *full], HeldOut(0.2), HeldOut(0.2), gap=4, block=32)
    assert_apart(parts, 4)
    assert {item.source.uri for item in (*parts.validation, *parts.test)} == {full[0].source.uri}


def test_too_few_blocks_are_refused(folder: Path) -> None:
    with pytest.raises(Refused, match=r"1 blocks of 64 px have labels, too few .* choose a smaller --block"):
        split(scenes_of(folder, (60, 60)), HeldOut(0.2), HeldOut(), gap=0)
    with pytest.raises(Refused, match="0 blocks of 64 px have labels"):
        split(scenes_of(folder, (200, 200), labelled=0.0), HeldOut(0.2), HeldOut(), gap=0)
    with pytest.raises(Refused, match="--block 0: must be 1 px or more"):
        split(scenes_of(folder, (200, 200)), HeldOut(0.2), HeldOut(), gap=0, block=0)


@pytest.mark.parametrize("count", [10, 11, 23])
@pytest.mark.parametrize(("validation", "test"), [(0.2, 0.0), (0.2, 0.3), (0.01, 0.01), (0.7, 0.1)])
def test_a_share_of_many_files_is_of_files(folder: Path, count: int, validation: float, test: float) -> None:
    scenes = scenes_of(folder, *[(5, 6)] * count)
    parts = split(scenes, HeldOut(validation), HeldOut(test), gap=99, seed=3)
    held = [math.ceil(count * validation - 1e-9), math.ceil(count * test - 1e-9)]
    assert [len(some) for some in parts.sets().values()] == [count - sum(held), *held]
    assert sorted(item.name for some in parts.sets().values() for item in some) == sorted(item.name for item in scenes)
    assert "files drawn with seed 3" in parts.how
    again, other = (split(scenes, HeldOut(validation), HeldOut(test), gap=99, seed=seed) for seed in (3, 4))
    assert again.to_json() == parts.to_json()
    assert count < 23 or other.to_json()["validation"] != parts.to_json()["validation"]


def test_a_share_is_not_rounded_up_for_a_rounding_error(folder: Path) -> None:
    """0.07 * 100 is 7.000000000000001."""
    scenes = scenes_of(folder, *[(2, 2)] * 100)
    assert len(split(scenes, HeldOut(0.07), HeldOut(), gap=0).validation) == 7


def test_a_block_size_asks_for_blocks_of_many_files(folder: Path) -> None:
    parts = split(scenes_of(folder, *[(64, 64)] * 12), HeldOut(0.25), HeldOut(), gap=2, block=16)
    assert "spatial blocks" in parts.how and len(parts.train) == len(parts.validation) == 12
    assert_apart(parts, 2)


@pytest.mark.parametrize("seed", range(25))
def test_columns_keep_the_whole_gap(folder: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    gap = int(random.integers(0, 30))
    a, b, c, d = np.sort(random.choice(120, 4, replace=False)).tolist()
    spans = [Span(a, b), Span(c, d)]
    validation, test = (spans[index] for index in random.permutation(2))
    near_held = {column for start, stop in spans for column in range(start - gap, stop + gap)}
    scenes = scenes_of(folder, (20, 120))
    if near_held >= set(range(120)):
        with pytest.raises(Refused, match="hold out fewer"):
            split(scenes, HeldOut(columns=validation), HeldOut(columns=test), gap=gap)
        return
    parts = split(scenes, HeldOut(columns=validation), HeldOut(columns=test), gap=gap)
    assert_apart(parts, gap)
    assert total(parts.train) == 20 * len(set(range(120)) - near_held)
    assert (total(parts.validation), total(parts.test)) == (20 * validation.length, 20 * test.length)


@pytest.mark.parametrize("seed", range(10))
def test_columns_to_test_on_and_blocks_to_validate_on(folder: Path, seed: int) -> None:
    """As `--test 150:200` with the default of `--validation`."""
    parts = split(scenes_of(folder, (150, 200)), HeldOut(0.2), HeldOut(columns=Span(150, 200)), gap=6, seed=seed, block=32)
    assert_apart(parts, 6)
    assert total(parts.test) == 150 * 50 and total(parts.validation)
    assert parts.how == f"columns, 6 px apart; spatial blocks drawn with seed {seed}"


def test_scenes_of_their_own_are_held_out_whole(folder: Path) -> None:
    first, second, third = scenes_of(folder, (30, 30), (31, 30), (32, 30))
    parts = split([first], HeldOut(scenes=(second,)), HeldOut(scenes=(third,)), gap=8)
    assert parts.sets() == {"train": (first,), "validation": (second,), "test": (third,)}
    assert parts.how == "lists of files"
    told = parts.to_json()
    assert [list(told[called]) for called in ("train", "validation", "test")] == [[first.name], [second.name], [third.name]]


def test_a_file_in_two_sets_is_refused_by_name(folder: Path) -> None:
    first, second = scenes_of(folder, (30, 30), (31, 30))
    with pytest.raises(Refused, match=r"1-31-30\.tif: is in --data and in --test"):
        split([first, second], HeldOut(0.2), HeldOut(scenes=(second,)), gap=0)
    with pytest.raises(Refused, match=r"0-30-30\.tif: is in --validation and in --test"):
        split([second], HeldOut(scenes=(first,)), HeldOut(scenes=(first,)), gap=0)
    with pytest.raises(Refused, match=r"0-30-30\.tif: is 2 times in --data"):
        split([first, second, first], HeldOut(0.2), HeldOut(), gap=0)


def test_a_split_says_which_areas_are_whose(folder: Path) -> None:
    (item,) = scenes_of(folder, (100, 100))
    told = split([item], HeldOut(columns=Span(10, 30)), HeldOut(), gap=5).to_json()
    assert told["how"] == "columns, 5 px apart" and told["test"] == {}
    assert told["train"][item.name]["areas"] == [] and told["validation"][item.name]["areas"] == [[0, 10, 100, 20]]


@pytest.mark.parametrize(
    ("validation", "test", "message"),
    [
        (HeldOut(), HeldOut(0.2), "nothing is held out to choose the best epoch by"),
        (HeldOut(0.5), HeldOut(0.5), "leave something to train on"),
        (HeldOut(columns=Span(50, 101)), HeldOut(), r"--validation 50:101: the scene has columns 0:100"),
        (HeldOut(columns=Span(50, 50)), HeldOut(), r"--validation 50:50"),
        (HeldOut(columns=Span(50, 81)), HeldOut(columns=Span(80, 100)), r"--validation 50:81 overlap --test 80:100"),
        (HeldOut(columns=Span(0, 100)), HeldOut(), "hold out fewer"),
    ],
)
def test_a_split_that_cannot_be_is_refused(folder: Path, validation: HeldOut, test: HeldOut, message: str) -> None:
    with pytest.raises(Refused, match=message):
        split(scenes_of(folder, (100, 100)), validation, test, gap=8, block=16)


def test_columns_of_several_scenes_are_refused(folder: Path) -> None:
    with pytest.raises(Refused, match="columns are held out of one scene, and there are 2"):
        split(scenes_of(folder, (30, 30), (31, 30)), HeldOut(columns=Span(0, 9)), HeldOut(), gap=0)


def test_nothing_left_to_train_on_is_refused(folder: Path) -> None:
    with pytest.raises(Refused, match="nothing is left to train on"):
        split(scenes_of(folder, *[(5, 6)] * 10), HeldOut(0.5), HeldOut(0.49), gap=0)
