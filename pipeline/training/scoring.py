"""Score bundles on labelled scenes, through the tiled inference of deployment, and keep what intervals and tests need.

All bundles are scored on the same pixels: those that have a label and a prediction by every bundle. Counts are kept for each
block of a scene: they add up to scenes and to all, and blocks are what a bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import Refused, Unreadable
from pipeline.models.boundary import default_tolerance
from pipeline.models.bundle import Bundle, ClassEntry
from pipeline.training.block_counts import Labelled, Prediction, Unit, UnitCounts, block_side, count_scene
from pipeline.training.predicting import Say, predict
from pipeline.training.units import Units

LAYERS = ("mask", "confidence")


@dataclass(frozen=True)
class BundleCounts:
    """What was counted of one bundle; the first axis is the units, class ids are those of the labels.

    confusion_UKK is [truth, predicted], boundary_UK4 as `boundary_counts`, calibration_UP2 as `calibration_counts`, all
    int64. mapped_UK is the map's pixels in the areas, labelled or not, and area_m2_UK their ground area, or None.
    `unpredicted` counts labelled pixels that this bundle gives no class, for missing bands.
    """

    name: str
    bundle: Bundle
    precision: str
    confusion_UKK: np.ndarray
    boundary_UK4: np.ndarray
    calibration_UP2: np.ndarray
    mapped_UK: np.ndarray
    area_m2_UK: np.ndarray | None
    unpredicted: int


@dataclass(frozen=True)
class Evaluation:
    """Bundles on the same labelled scenes. `only_first_UBB[u, i, j]`: pixels that bundle i gets right and bundle j wrong."""

    data: str
    classes: tuple[ClassEntry, ...]
    labelled: tuple[Labelled, ...]  # the scenes that were scored
    skipped: dict[str, str]  # scenes that were not, and why
    units: tuple[Unit, ...]
    block: int  # px: the side of a unit
    tolerance: int  # px: of boundary F1
    bundles: tuple[BundleCounts, ...]
    only_first_UBB: np.ndarray
    predictions: dict[tuple[str, str], Prediction]  # by bundle and scene

    @property
    def names(self) -> list[str]:
        return [entry.name for entry in self.classes]

    @property
    def drawing(self) -> Units:
        return Units(self.units, self.block, len(self.labelled), self.bundles[0].confusion_UKK.sum(axis=(1, 2)))


def evaluate_bundles(
    bundles: Mapping[str, Bundle], open_data: Callable[[Bundle], Sequence[Labelled]], folder: Path, *, data: str,
    precision: str = "auto", tolerance: int | None = None, workers: int | None = None, say: Say = lambda line: None,
) -> Evaluation:  # fmt: skip
    """Segment every scene that `open_data` gives with every bundle and count; `folder` keeps the masks.

    A scene that cannot be read, or does not fit one of the bundles, is skipped for all, named with the reason. Raises
    Refused where a bundle's classes are not the labels', and Unreadable where no scene is left.
    """
    opened = {name: {item.name: item for item in open_data(bundle)} for name, bundle in bundles.items()}
    first = next(iter(opened.values()))
    classes = tuple(item.entry for item in next(iter(first.values())).classes)
    for name, bundle in bundles.items():
        _check_classes(name, bundle, classes)
    found = predict(bundles, opened, LAYERS, folder, precision=precision, workers=workers, say=say)
    skipped = found.skipped
    predictions = {key: Prediction(made.files["mask"], made.files["confidence"], made.window) for key, made in found.made.items()}
    labelled = tuple(item for scene, item in first.items() if scene not in skipped)
    side, reach = block_side(labelled), tolerance or _tolerance(labelled)
    counted: list[UnitCounts] = []
    kept: list[Labelled] = []
    for item in labelled:
        try:
            files = [(predictions[name, item.name], bundle) for name, bundle in bundles.items()]
            counted += list(count_scene(item, files, side, reach, classes))
            kept.append(item)
        except (Unreadable, Refused) as error:
            skipped[item.name] = str(error)
            say(f"skipped {item.name}: {error}")
    if not counted or not any(unit.confusion_BKK.any() for unit in counted):
        reason = next(iter(skipped.values()), "no pixel has both a label and a prediction: check --labels and --classes")
        raise Unreadable(f"{data}: nothing could be scored: {reason}")
    on_ground = all(unit.area_m2_BK is not None for unit in counted)
    return Evaluation(
        data=data, classes=classes, labelled=tuple(kept), skipped=skipped, units=tuple(unit.unit for unit in counted), block=side,
        tolerance=reach, only_first_UBB=np.stack([unit.only_first_BB for unit in counted]), predictions=predictions,
        bundles=tuple(
            BundleCounts(
                name=name, bundle=bundle, precision=found.precisions[name],
                confusion_UKK=np.stack([unit.confusion_BKK[number] for unit in counted]),
                boundary_UK4=np.stack([unit.boundary_BK4[number] for unit in counted]),
                calibration_UP2=np.stack([unit.calibration_BP2[number] for unit in counted]),
                mapped_UK=np.stack([unit.mapped_BK[number] for unit in counted]),
                area_m2_UK=np.stack([unit.area_m2_BK[number] for unit in counted if unit.area_m2_BK is not None]) if on_ground else None,
                unpredicted=sum(unit.unpredicted_B[number] for unit in counted),
            )
            for number, (name, bundle) in enumerate(bundles.items())
        ),
    )  # fmt: skip


def _check_classes(name: str, bundle: Bundle, classes: Sequence[ClassEntry]) -> None:
    ours, theirs = {entry.name for entry in bundle.classes}, {entry.name for entry in classes}
    if ours != theirs:
        lists = [("only the bundle has", ours - theirs), ("only the labels have", theirs - ours)]
        told = "; ".join(f"{what} {', '.join(sorted(names))}" for what, names in lists if names)
        raise Refused(f"{name}: its classes are not those of the labels: {told} (--classes)")


def _tolerance(labelled: Sequence[Labelled]) -> int:
    """One for all scenes: that of the largest."""
    return max((default_tolerance(item.scene.grid.height, item.scene.grid.width) for item in labelled), default=1)
