"""Two models on the same masks: what agrees, and what moved, against a count by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.results.comparison import cross
from tests.results.scenes import class_bundle
from tests.toys import write_scene


def test_areas_move_between_classes_by_name(tmp_path: Path):
    one, other = class_bundle(tmp_path / "one", ("a", "b")), class_bundle(tmp_path / "other", ("b", "c", "a"))
    random = np.random.default_rng(4)
    masks = {name: random.choice([*range(count), 255], (1, 700, 40)).astype(np.uint8) for name, count in (("one", 2), ("other", 3))}
    pair = tuple(write_scene(tmp_path / f"{name}.tif", mask, nodata=255) for name, mask in masks.items())
    crossed = cross([pair, pair], one, other)  # type: ignore[list-item]
    mine, its = masks["one"][0], masks["other"][0]
    pixels = np.array([[((mine == a) & (its == b)).sum() for b in range(3)] for a in range(2)])
    assert np.allclose(crossed.area_m2, 2 * 900 * pixels, rtol=3e-3)
    told = crossed.to_json()
    assert told["agreement"] == pytest.approx((pixels[0, 2] + pixels[1, 0]) / pixels.sum(), rel=1e-3)
    areas = {row["class_name"]: (row["before_m2"], row["after_m2"]) for row in told["classes"]}
    assert areas["c"] == (0, pytest.approx(2 * 900 * pixels[:, 1].sum(), rel=3e-3)) and set(areas) == {"a", "b", "c"}
    assert {(row["from"], row["to"]) for row in told["moved"]} == {("a", "b"), ("a", "c"), ("b", "c"), ("b", "a")}


def test_masks_of_different_grids_are_never_compared(tmp_path: Path):
    bundle = class_bundle(tmp_path / "one", ("a", "b"))
    pair = [write_scene(tmp_path / f"{size}.tif", np.zeros((1, size, 5), np.uint8)) for size in (5, 6)]
    with pytest.raises(ValueError, match="different grids"):
        cross([(pair[0], pair[1])], bundle, bundle)
    assert cross([], bundle, bundle).agreement is None
