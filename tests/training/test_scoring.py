"""Bundles scored on labelled scenes: counts against the masks of deployment, whatever the blocks, and what is skipped."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipeline.errors import Refused, Unreadable
from pipeline.geometry.windows import Window
from pipeline.imagery.catalogue import find_sources
from pipeline.imagery.raster import Scene, open_scene
from pipeline.inference.plan import Settings
from pipeline.inference.segment import segment_scene
from pipeline.models.boundary import boundary_counts
from pipeline.models.bundle import Bundle, ClassEntry
from pipeline.models.calibration import calibration_counts
from pipeline.models.metrics import confusion_matrix
from pipeline.training import block_counts
from pipeline.training.classes import LabelClass
from pipeline.training.scoring import Evaluation, evaluate_bundles
from tests.conftest import MakeBundle
from tests.toys import smooth_noise, write_scene


@dataclass(frozen=True)
class Fake:
    """Labels in memory."""

    name: str
    scene: Scene
    classes: tuple[LabelClass, ...]
    labels_HW: np.ndarray
    areas: tuple[Window, ...]
    excluded: tuple[Window, ...] = ()

    def read_labels(self, window: Window) -> np.ndarray:
        ids_HW = np.full(self.labels_HW.shape, 255, np.uint8)
        for area in self.areas:
            ids_HW[area.slices()] = self.labels_HW[area.slices()]
        for hole in self.excluded:
            ids_HW[hole.slices()] = 255
        return ids_HW[window.slices()]


def classes_of(bundle: Bundle) -> tuple[LabelClass, ...]:
    return tuple(LabelClass(entry, (entry.id,)) for entry in bundle.classes)


def labelled(path: Path, bundle: Bundle, seed: int = 1, shape: tuple[int, int] = (300, 420)) -> Fake:
    """A scene with random blobs for labels; a tenth is ignored, and a corner of the scene is nodata."""
    values_CHW = smooth_noise(seed, (3, *shape))
    values_CHW[:, :30, :40] = 0
    scene = write_scene(path, values_CHW, nodata=0)
    labels_HW = (smooth_noise(seed + 50, (1, *shape))[0] // 52).astype(np.uint8)
    labels_HW[np.random.default_rng(seed).random(shape) < 0.1] = 255
    opened = open_scene(find_sources([str(scene)])[0], bundle.bands)
    return Fake(path.stem, opened, classes_of(bundle), labels_HW, (opened.grid.window,))


@pytest.fixture(scope="module")
def two(make_bundle: MakeBundle) -> dict[str, Bundle]:
    return {"wide": make_bundle("unet", bands=3, classes=5, exact=True, width=8, depth=3), "narrow": make_bundle("unet", width=4, depth=2)}


def evaluated(two: dict[str, Bundle], scenes: list[Fake], folder: Path) -> Evaluation:
    return evaluate_bundles(two, lambda bundle: scenes, folder, data="toys", precision="fp32", workers=1)


@pytest.mark.parametrize("side", [64, 256])
def test_the_counts_are_those_of_the_masks_of_deployment(
    two: dict[str, Bundle], tmp_path: Path, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_counts, "BLOCK_SIDE", side)
    item = labelled(tmp_path / "scene.tif", two["wide"])
    evaluation = evaluated(two, [item], tmp_path / "work")
    masks = {}
    for name, bundle in two.items():
        segment_scene(
            item.scene, bundle.path, tmp_path / f"{name}.tif", settings=Settings(precision="fp32", layers=("mask", "confidence")), workers=1
        )
        masks[name] = rasterio.open(tmp_path / f"{name}.tif").read(1), rasterio.open(tmp_path / f"{name}.confidence.tif").read(1)
    predicted = np.logical_and.reduce([mask != 255 for mask, _ in masks.values()])
    truth_HW = np.where(predicted, item.labels_HW, 255).astype(np.uint8)
    whole = Window(0, 0, *truth_HW.shape)
    right = {name: (mask == truth_HW) & (truth_HW != 255) for name, (mask, _) in masks.items()}
    for counts in evaluation.bundles:
        mask_HW, percent_HW = masks[counts.name]
        assert (counts.confusion_UKK.sum(axis=0) == confusion_matrix(truth_HW, mask_HW, 5)).all()
        assert (counts.calibration_UP2.sum(axis=0) == calibration_counts(truth_HW, mask_HW, percent_HW)).all()
        assert (counts.boundary_UK4.sum(axis=0) == boundary_counts(truth_HW, mask_HW, 5, evaluation.tolerance, whole)).all()
        assert (counts.mapped_UK.sum(axis=0) == np.bincount(mask_HW[mask_HW != 255], minlength=5)).all()
        assert counts.area_m2_UK is not None
        np.testing.assert_allclose(counts.area_m2_UK.sum(axis=0), counts.mapped_UK.sum(axis=0) * 900, rtol=2e-3)
        assert counts.unpredicted == ((item.labels_HW != 255) & (mask_HW == 255)).sum() > 0
    only = evaluation.only_first_UBB.sum(axis=0)
    assert only.tolist() == [[0, (right["wide"] & ~right["narrow"]).sum()], [(right["narrow"] & ~right["wide"]).sum(), 0]]
    assert len(evaluation.units) == (35 if side == 64 else 4) and not evaluation.drawing.draws_scenes


def test_only_the_areas_count(two: dict[str, Bundle], tmp_path: Path) -> None:
    areas, hole = (Window(10, 20, 200, 90), Window(100, 300, 50, 60)), Window(40, 50, 100, 20)
    item = replace(labelled(tmp_path / "scene.tif", two["wide"]), areas=areas, excluded=(hole,))
    counts = evaluated({"wide": two["wide"]}, [item], tmp_path / "work").bundles[0]
    kept = item.read_labels(item.scene.grid.window) != 255
    nodata = np.zeros(kept.shape, bool)
    nodata[:30, :40] = True
    assert counts.confusion_UKK.sum() == (kept & ~nodata).sum()
    assert counts.mapped_UK.sum() == sum(area.pixels for area in areas) - hole.pixels - 20 * 20


def test_classes_are_matched_by_name(two: dict[str, Bundle], tmp_path: Path) -> None:
    item = labelled(tmp_path / "scene.tif", two["wide"])
    turned = tuple(LabelClass(replace(each.entry, id=4 - each.entry.id), (each.entry.id,)) for each in item.classes[::-1])
    other = replace(item, classes=turned, labels_HW=np.where(item.labels_HW == 255, 255, 4 - item.labels_HW).astype(np.uint8))
    plain, reverse = (evaluated(two, [each], tmp_path / str(n)).bundles[0] for n, each in enumerate((item, other)))
    assert (plain.confusion_UKK == reverse.confusion_UKK[:, ::-1, ::-1]).all()
    assert (plain.boundary_UK4 == reverse.boundary_UK4[:, ::-1]).all()


def test_other_classes_are_refused_by_name(two: dict[str, Bundle], tmp_path: Path) -> None:
    item = labelled(tmp_path / "scene.tif", two["wide"])
    classes = (*item.classes[:4], LabelClass(ClassEntry(4, "maize", "#FFFF00"), (4,)))
    with pytest.raises(
        Refused, match="wide: its classes are not those of the labels: only the bundle has class 4; only the labels have maize"
    ):
        evaluated(two, [replace(item, classes=classes)], tmp_path / "work")


def test_a_damaged_scene_costs_only_itself(two: dict[str, Bundle], tmp_path: Path) -> None:
    good, bad = (labelled(tmp_path / f"{name}.tif", two["wide"]) for name in ("good", "bad"))
    size = (tmp_path / "bad.tif").stat().st_size
    with open(tmp_path / "bad.tif", "r+b") as file:
        file.truncate(size * 2 // 3)
    bad = replace(bad, scene=open_scene(find_sources([str(tmp_path / "bad.tif")])[0], two["wide"].bands))  # as it is now
    evaluation = evaluated(two, [good, bad], tmp_path / "work")
    assert [item.name for item in evaluation.labelled] == ["good"]
    assert set(evaluation.skipped) == {"bad"} and "windows failed" in evaluation.skipped["bad"]
    assert {unit.scene for unit in evaluation.units} == {"good"}
    with pytest.raises(Unreadable, match="nothing could be scored"):
        evaluated(two, [bad], tmp_path / "again")


def test_labels_that_cannot_be_read_cost_only_their_scene(two: dict[str, Bundle], tmp_path: Path) -> None:
    class Broken(Fake):
        def read_labels(self, window: Window) -> np.ndarray:
            raise Unreadable("labels.tif: rows 0 to 9: it is damaged")

    good, other = (labelled(tmp_path / f"{name}.tif", two["wide"], shape=(100, 120)) for name in ("good", "other"))
    broken = Broken(other.name, other.scene, other.classes, other.labels_HW, other.areas)
    evaluation = evaluated({"wide": two["wide"]}, [broken, good], tmp_path / "work")
    assert evaluation.skipped == {"other": "labels.tif: rows 0 to 9: it is damaged"} and len(evaluation.labelled) == 1


def test_from_ten_scenes_on_scenes_are_drawn(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle("identity", bands=1, classes=3)
    scenes = []
    for number in range(11):
        values_CHW = np.random.default_rng(number).integers(0, 3, (1, 20, 30)).astype(np.uint8)
        opened = open_scene(find_sources([str(write_scene(tmp_path / f"{number}.tif", values_CHW))])[0], bundle.bands)
        truth_HW = np.where(values_CHW[0] == 2, 1, values_CHW[0]) if number else np.full((20, 30), 255)
        scenes.append(Fake(str(number), opened, classes_of(bundle), truth_HW.astype(np.uint8), (opened.grid.window,)))
    evaluation = evaluate_bundles({"identity": bundle}, lambda _: scenes, tmp_path / "work", data="toys", precision="fp32", workers=1)
    drawn = evaluation.drawing.drawable(evaluation.bundles[0].confusion_UKK)
    assert evaluation.drawing.draws_scenes and drawn.shape == (10, 3, 3) and evaluation.drawing.drawn == "10 scenes"  # one has no label
    assert (
        np.trace(drawn, axis1=1, axis2=2)
        == [(each.labels_HW == 0).sum() + (rasterio.open(each.scene.uri).read(1) == 1).sum() for each in scenes[1:]]
    ).all()


def test_blocks_grow_with_the_data() -> None:
    @dataclass(frozen=True)
    class Large:
        scene: Scene
        areas: tuple[Window, ...]

    grid = type("Grid", (), {"height": 100_000, "width": 100_000})()
    item = Large(type("Opened", (), {"grid": grid})(), (Window(0, 0, 100_000, 100_000),))
    assert block_counts.block_side([item]) == 1024  # type: ignore[list-item]
