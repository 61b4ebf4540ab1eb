"""What was trained on is not what a bundle is scored on, unless somebody asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import Refused
from pipeline.geometry.windows import Span, Window
from pipeline.training.splits import HeldOut, held_out_of, split
from tests.training.labelled import HEIGHT, TEST, VALIDATION, WIDTH, open_pair, write_pair


def test_of_a_scene_that_a_bundle_knows_only_the_test_area_is_left(tmp_path: Path) -> None:
    write_pair(tmp_path)
    scenes = open_pair(tmp_path)
    parts = split(scenes, HeldOut(columns=VALIDATION), HeldOut(columns=TEST), gap=8).to_json()
    found = held_out_of(open_pair(tmp_path), {"model": parts, "from elsewhere": None})
    assert [item.areas for item in found] == [(Window(0, TEST.start, HEIGHT, TEST.length),)]


def test_without_a_test_set_the_validation_set_is_left(tmp_path: Path) -> None:
    write_pair(tmp_path)
    parts = split(open_pair(tmp_path), HeldOut(columns=VALIDATION), HeldOut(), gap=8).to_json()
    found = held_out_of(open_pair(tmp_path), {"model": parts})
    assert [item.areas for item in found] == [(Window(0, VALIDATION.start, HEIGHT, VALIDATION.length),)]


def test_a_scene_is_known_by_its_content_and_others_are_scored_whole(tmp_path: Path) -> None:
    write_pair(tmp_path)
    scenes = open_pair(tmp_path)
    parts = split(scenes, HeldOut(columns=VALIDATION), HeldOut(), gap=8).to_json()
    other = tmp_path / "other"
    write_pair(other)
    with open(other / "scene.tif", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    found = held_out_of(open_pair(other), {"model": parts})
    assert found[0].areas == (Window(0, 0, HEIGHT, WIDTH),)


def test_data_that_were_all_trained_on_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_pair(tmp_path / name)
        with open(tmp_path / name / "scene.tif", "r+b") as file:
            file.seek(-1, 2)
            file.write(name.encode())
    first, second = open_pair(tmp_path / "a"), open_pair(tmp_path / "b")
    parts = split(first, HeldOut(scenes=tuple(second)), HeldOut(), gap=8).to_json()
    with pytest.raises(Refused, match="model was trained on all of this data"):
        held_out_of(first, {"model": parts})
    assert [item.name for item in held_out_of(second, {"model": parts})] == [item.name for item in second]


def test_bundles_that_held_out_different_areas_are_not_compared_there(tmp_path: Path) -> None:
    write_pair(tmp_path)
    scenes = open_pair(tmp_path)
    splits = {
        name: split(scenes, HeldOut(columns=span), HeldOut(), gap=8).to_json() for name, span in (("a", VALIDATION), ("b", Span(20, 40)))
    }
    assert len(held_out_of(scenes, {"a": splits["a"], "same": splits["a"]})) == 1
    with pytest.raises(Refused, match="b held out other areas"):
        held_out_of(scenes, splits)
