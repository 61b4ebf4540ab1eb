"""Statistics equal numpy's on the training pixels, all together, and on no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import Refused, Unreadable
from pipeline.geometry.windows import Window
from pipeline.training import datasets, statistics
from pipeline.training.classes import table_of
from pipeline.training.datasets import LabelledScene, open_labelled
from pipeline.training.statistics import class_weights, count_labels, measure
from tests.toys import write_scene

TABLE = table_of(range(4), coloured=False)
NODATA = -999.0


def scene(folder: Path, seed: int, height: int, width: int, dtype: str = "float32") -> LabelledScene:
    """Two bands with holes of nodata, and labels with holes of their own, all by chance; half of it is left out."""
    random = np.random.default_rng(seed)
    values_CHW = random.normal([[[100 * seed]], [[5000]]], [[[10]], [[300]]], (2, height, width)).astype(dtype)
    values_CHW[random.random(values_CHW.shape) < 0.05] = NODATA
    labels_HW = random.choice([0, 1, 1, 2, 255], (height, width)).astype(np.uint8)
    image = write_scene(folder / f"{seed}.tif", values_CHW, nodata=NODATA, descriptions=["a", "b"])
    labels = write_scene(folder / f"{seed}-labels.tif", labels_HW[None], nodata=255)
    (item,) = open_labelled(str(image), labels=str(labels), classes=TABLE)
    return replace(item, areas=(Window(0, 0, height, width // 2), Window(3, width // 2, height // 2, 7)), excluded=(Window(4, 2, 5, 5),))


def pixels(items: Sequence[LabelledScene]) -> tuple[np.ndarray, np.ndarray]:
    """All training pixels, N x C float64, and their classes: every area read whole, and put together."""
    found = []
    for item in items:
        block = item.read(item.scene.grid.window)
        known_HW = block.labels_HW != 255
        found.append((block.physical_CHW[:, known_HW].T.astype(float), block.labels_HW[known_HW]))
    return np.concatenate([values for values, _ in found]), np.concatenate([ids for _, ids in found])


@pytest.mark.parametrize("piece", [16, 1024])
@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_statistics_equal_numpys_on_all_training_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, piece: int) -> None:
    monkeypatch.setattr(datasets, "PIECE", piece)
    items = [scene(tmp_path, 1, 40, 50, dtype), scene(tmp_path, 2, 61, 33, dtype), scene(tmp_path, 3, 9, 90, dtype)]
    found = measure(items, items[0].bands)
    values_NC, ids_N = pixels(items)
    assert [band.name for band in found.bands] == ["a", "b"]
    np.testing.assert_allclose([band.mean for band in found.bands], values_NC.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose([band.std for band in found.bands], values_NC.std(axis=0), rtol=1e-5)
    np.testing.assert_allclose([band.range for band in found.bands], np.percentile(values_NC, (0.1, 99.9), axis=0).T, rtol=1e-4)
    assert (found.counts == np.bincount(ids_N, minlength=4)).all() and found.counts[3] == 0
    assert (found.counts_SK == [np.bincount(pixels([item])[1], minlength=4) for item in items]).all()


def test_a_large_mean_does_not_drown_a_small_spread(tmp_path: Path) -> None:
    """A sum of squares in fp32 would give nonsense."""
    values_HW = np.random.default_rng(0).normal(30_000, 2, (70, 70)).astype(np.float32)
    image = write_scene(tmp_path / "a.tif", values_HW[None])
    labels = write_scene(tmp_path / "b.tif", np.zeros((1, 70, 70), np.uint8))
    (band,) = measure(items := open_labelled(str(image), labels=str(labels), classes=TABLE), items[0].bands).bands
    assert band.std == pytest.approx(values_HW.astype(float).std(), rel=1e-4)


def test_positions_are_pixels_of_their_class(tmp_path: Path) -> None:
    items = [scene(tmp_path, 1, 40, 50), scene(tmp_path, 2, 30, 20)]
    for item, positions in zip(items, measure(items, items[0].bands).positions, strict=True):
        labels_HW = item.read(item.scene.grid.window).labels_HW
        for number, places in enumerate(positions):
            assert {tuple(place) for place in places.tolist()} == set(
                zip(*map(np.ndarray.tolist, np.nonzero(labels_HW == number)), strict=True)
            )


def test_what_is_kept_of_many_pixels_is_an_even_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However unevenly a class lies in the pieces that are read: each pixel is as likely, and none is kept twice."""
    monkeypatch.setattr(datasets, "PIECE", 20)
    monkeypatch.setattr(statistics, "POSITIONS_KEPT", 4 * 60)
    labels_HW = np.zeros((20, 100), np.uint8)
    labels_HW[:, 20:] = (np.arange(80) % 20 == 0) * 1  # class 1: 20 pixels in each of four pieces; in the first piece all 400
    labels_HW[:, :20] = 1
    image = write_scene(tmp_path / "a.tif", np.random.default_rng(0).integers(0, 9, (1, 20, 100)).astype(np.uint8))
    labels = write_scene(tmp_path / "b.tif", labels_HW[None])
    items = open_labelled(str(image), labels=str(labels), classes=TABLE)
    seen = np.zeros((20, 100))
    for seed in range(60):
        places = measure(items, items[0].bands, seed).positions[0][1]
        assert len(places) == 60 == len(np.unique(places, axis=0))
        seen[tuple(places.T)] += 1
    kept = 60 * 60
    assert seen[:, :20].sum() == pytest.approx(kept * 400 / 480, abs=4 * np.sqrt(kept * (400 / 480) * (80 / 480)))
    assert seen[labels_HW == 0].sum() == 0


def test_the_same_seed_keeps_the_same_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "POSITIONS_KEPT", 100)
    items = [scene(tmp_path, 1, 40, 50), scene(tmp_path, 2, 30, 20)]
    one, again, other = (measure(items, items[0].bands, seed).positions[0][1] for seed in (1, 1, 2))
    assert (one == again).all() and not np.array_equal(one, other)


def test_labels_are_counted_where_they_are_held_out(tmp_path: Path) -> None:
    items = [scene(tmp_path, 1, 40, 50), scene(tmp_path, 2, 30, 20)]
    expected = sum(np.bincount(item.read_labels(item.scene.grid.window).ravel(), minlength=256)[:4] for item in items)
    assert (count_labels(items) == expected).all() and expected.any()


@pytest.mark.parametrize("value", [0.1, 1e6, -7.3, 0.0, NODATA])
def test_a_band_that_says_nothing_is_refused(tmp_path: Path, value: float) -> None:
    """Also a value that binary fractions do not have, whose sums might be rounded."""
    image = write_scene(tmp_path / "flat.tif", np.full((1, 61, 83), value, np.float32), nodata=NODATA, descriptions=["flat"])
    labels = write_scene(tmp_path / "labels.tif", np.zeros((1, 61, 83), np.uint8))
    items = open_labelled(str(image), labels=str(labels), classes=TABLE)
    with pytest.raises(
        Refused, match="no training pixel has a class" if value == NODATA else "band flat holds one value only .* leave it out"
    ):
        measure(items, items[0].bands)


def test_without_any_label_nothing_is_measured(tmp_path: Path) -> None:
    item = replace(scene(tmp_path, 1, 20, 20), areas=(Window(4, 2, 5, 5),))
    with pytest.raises(Refused, match="no training pixel has a class: check --labels"):
        measure([item], item.bands)


def test_unknown_labels_and_damaged_files_are_named(tmp_path: Path) -> None:
    item = replace(scene(tmp_path, 1, 20, 20), table=table_of([0, 1], coloured=False))
    with pytest.raises(Refused, match=r"1-labels\.tif: holds 2, which"):
        measure([item], item.bands)
    item = scene(tmp_path, 2, 400, 400)
    path = tmp_path / "2.tif"
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises((Unreadable, Refused), match=r"2\.tif"):
        measure([item], item.bands)


@pytest.mark.parametrize("how", ["none", "median-frequency", "inverse-root", (1.0, 0.5, 2.0, 3.0)])
@pytest.mark.parametrize("counts", [[10, 500, 3, 90], [10, 500, 0, 90], [1, 0, 0, 0]])
def test_a_labelled_pixel_weighs_1_on_average_and_a_missing_class_0(how: str | tuple[float, ...], counts: list[int]) -> None:
    weights = class_weights(np.array(counts), how)
    assert weights.dtype == np.float32 and (weights * counts).sum() == pytest.approx(sum(counts), rel=1e-5)
    assert ((weights == 0) == (np.array(counts) == 0)).all()


def test_weights_follow_the_shares() -> None:
    """median-frequency: as the inverse of the share; inverse-root: of its root."""
    counts = np.array([100, 400, 1600])
    for how, expected in (("none", [1, 1, 1]), ("median-frequency", [16, 4, 1]), ("inverse-root", [4, 2, 1]), ((3, 2, 1), [3, 2, 1])):
        weights = class_weights(counts, how)
        np.testing.assert_allclose(weights / weights[-1], expected, rtol=1e-6)


@pytest.mark.parametrize("how", [(1.0,), (1.0, -1.0, 1.0), (0.0, 0.0, 1.0)])
def test_weights_that_do_not_fit_are_refused(how: tuple[float, ...]) -> None:
    with pytest.raises(Refused, match="--class-weights"):
        class_weights(np.array([5, 5, 0]), how)
