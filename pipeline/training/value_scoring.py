"""Score bundles that predict a number on labelled scenes, through the tiled inference of deployment.

All bundles are scored on the same pixels: those that have a label and a prediction by every bundle. Sums are kept for each
block of a scene: they add up to scenes and to all, and blocks are what a bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window as RasterioWindow

from pipeline.errors import Refused, Unreadable
from pipeline.geometry.windows import Window
from pipeline.models.bundle import Bundle, Target
from pipeline.models.value_scores import COUNT, SUMS, error_sums
from pipeline.training.block_counts import Labelled, Unit, block_side, blocks_of
from pipeline.training.predicting import Made, Say, predict
from pipeline.training.units import Units

LAYER = "value"
RANGES = 10  # of the target, each with as many pixels
SCATTER = 48  # bins of the picture of predicted against true, each way
SAMPLE = 2_000_000  # labels that ranges are made from


@dataclass(frozen=True)
class ValueCounts:
    """What was summed of one bundle; the first axis is the units, sums are those of `error_sums`.

    ranges_UR6 holds them by range of the truth. scatter_TP counts pixels by bin of the truth and of the prediction.
    `unpredicted` counts labelled pixels that this bundle gives no number, for missing bands.
    """

    name: str
    bundle: Bundle
    precision: str
    sums_U6: np.ndarray
    ranges_UR6: np.ndarray
    scatter_TP: np.ndarray
    unpredicted: int


@dataclass(frozen=True)
class ValueEvaluation:
    """Bundles on the same labelled scenes. `edges` part the ranges of the truth; `axis` the bins of the scatter."""

    data: str
    target: Target  # of the first bundle, which says the unit
    labelled: tuple[Labelled, ...]  # the scenes that were scored
    skipped: dict[str, str]  # scenes that were not, and why
    units: tuple[Unit, ...]
    block: int  # px: the side of a unit
    edges: np.ndarray
    axis: np.ndarray
    bundles: tuple[ValueCounts, ...]
    predictions: dict[tuple[str, str], Made]  # by bundle and scene

    @property
    def drawing(self) -> Units:
        return Units(self.units, self.block, len(self.labelled), self.bundles[0].sums_U6[:, COUNT].astype(np.int64))


def evaluate_values(
    bundles: Mapping[str, Bundle], open_data: Callable[[Bundle], Sequence[Labelled]], folder: Path, *, data: str,
    precision: str = "auto", workers: int | None = None, say: Say = lambda line: None,
) -> ValueEvaluation:  # fmt: skip
    """Predict every scene that `open_data` gives with every bundle and sum errors; `folder` keeps the rasters.

    A scene that cannot be read, or does not fit one of the bundles, is skipped for all, named with the reason. Raises
    Refused for bundles that predict classes or other units, and Unreadable where no scene is left.
    """
    target = common_target(bundles)
    opened = {name: {item.name: item for item in open_data(bundle)} for name, bundle in bundles.items()}
    found = predict(bundles, opened, (LAYER,), folder, precision=precision, workers=workers, say=say)
    labelled = [item for scene, item in next(iter(opened.values())).items() if scene not in found.skipped]
    side = block_side(labelled)
    edges, axis = _bins(labelled, side, found.skipped, say)
    counted: list[tuple[Unit, np.ndarray, np.ndarray, list[int]]] = []
    scatter_BTP = np.zeros((len(bundles), SCATTER, SCATTER), np.int64)
    kept: list[Labelled] = []
    for item in labelled:
        if item.name in found.skipped:
            continue
        files = [found.made[name, item.name] for name in bundles]
        try:
            some = list(_count_scene(item, files, side, edges, axis, target.mean))
        except (Unreadable, Refused) as error:
            found.skipped[item.name] = str(error)
            say(f"skipped {item.name}: {error}")
            continue
        counted += [(unit, sums, ranges, missing) for unit, sums, ranges, missing, _ in some]
        scatter_BTP += sum(scatter for *_, scatter in some)
        kept.append(item)
    if not any(sums[:, COUNT].any() for _, sums, _, _ in counted):
        reason = next(iter(found.skipped.values()), "no pixel has both a label and a prediction: check --labels")
        raise Unreadable(f"{data}: nothing could be scored: {reason}")
    return ValueEvaluation(
        data=data, target=target, labelled=tuple(kept), skipped=found.skipped, units=tuple(unit for unit, *_ in counted), block=side,
        edges=edges, axis=axis, predictions=found.made,
        bundles=tuple(
            ValueCounts(
                name=name, bundle=bundle, precision=found.precisions[name],
                sums_U6=np.stack([sums_B6[number] for _, sums_B6, _, _ in counted]),
                ranges_UR6=np.stack([ranges_BR6[number] for _, _, ranges_BR6, _ in counted]),
                scatter_TP=scatter_BTP[number],
                unpredicted=sum(missing_B[number] for *_, missing_B in counted),
            )
            for number, (name, bundle) in enumerate(bundles.items())
        ),
    )  # fmt: skip


def common_target(bundles: Mapping[str, Bundle]) -> Target:
    """The target of the first bundle. Raises Refused, naming both, where another predicts classes, or in another unit."""
    (first, target), *others = [(name, bundle.target) for name, bundle in bundles.items()]
    for name, other in others:
        if (other is None) != (target is None):
            numbers, classes = (first, name) if target else (name, first)
            raise Refused(f"{numbers} predicts a number and {classes} predicts classes: evaluate them apart")
        if other and target and other.unit != target.unit:
            raise Refused(f"{first} is in {target.unit or 'no unit'}, {name} in {other.unit or 'no unit'}: evaluate them apart")
    if target is None:
        raise Refused(f"{first}: predicts classes, not a number")
    return target


def read_values(made: Made, window: Window) -> np.ndarray:
    """The predicted numbers in a window of the scene that lies inside the file, float32, NaN where there is none."""
    place = window.relative_to(made.window)
    with rasterio.open(made.files[LAYER]) as dataset:
        return dataset.read(1, window=RasterioWindow(place.col, place.row, place.width, place.height))


def _bins(labelled: Sequence[Labelled], side: int, skipped: dict[str, str], say: Say) -> tuple[np.ndarray, np.ndarray]:
    """The edges of the ranges of the truth, and of the bins of the scatter, from an even sample of the labels.

    A scene whose labels cannot be read is added to `skipped`.
    """
    step = max(1, sum(block.pixels for item in labelled for block in blocks_of(item, side)) // SAMPLE)
    sampled = []
    for item in labelled:
        try:
            truths = [item.read_labels(block).ravel()[::step] for block in blocks_of(item, side)]
        except (Unreadable, Refused) as error:
            skipped[item.name] = str(error)
            say(f"skipped {item.name}: {error}")
            continue
        sampled += [truth_N[np.isfinite(truth_N)] for truth_N in truths]
    everything_N = np.concatenate([np.empty(0, np.float32), *sampled]).astype(np.float64)
    if not len(everything_N):
        return np.array([-np.inf, np.inf]), np.linspace(0, 1, SCATTER + 1)
    inner = np.unique(np.quantile(everything_N, np.arange(1, RANGES) / RANGES))
    low, high = np.quantile(everything_N, (0.005, 0.995))
    return np.array([-np.inf, *inner, np.inf]), np.linspace(low, max(high, low + 1e-6), SCATTER + 1)


def _count_scene(
    item: Labelled, made: Sequence[Made], side: int, edges: np.ndarray, axis: np.ndarray, origin: float
) -> Iterator[tuple[Unit, np.ndarray, np.ndarray, list[int], np.ndarray]]:
    """Of each block of a scene: the sums of each bundle, those of each range, labelled pixels without a prediction, the scatter."""
    for block in blocks_of(item, side):
        truth_HW = item.read_labels(block)
        values_BHW = np.stack([read_values(each, block) for each in made])
        missing_B = [int((np.isfinite(truth_HW) & ~np.isfinite(values_HW)).sum()) for values_HW in values_BHW]
        common_HW = np.where(np.isfinite(values_BHW).all(axis=0), truth_HW, np.nan)  # what all bundles are scored on
        place_HW = np.searchsorted(edges[1:-1], common_HW, side="right")
        ranges_BR6 = np.zeros((len(made), len(edges) - 1, SUMS))
        for number in np.unique(place_HW[np.isfinite(common_HW)]).tolist():
            inside_HW = np.where(place_HW == number, common_HW, np.nan)
            ranges_BR6[:, number] = [error_sums(inside_HW, values_HW, origin) for values_HW in values_BHW]
        sums_B6 = np.stack([error_sums(common_HW, values_HW, origin) for values_HW in values_BHW])
        scatter_BTP = np.stack([_scatter(common_HW, values_HW, axis) for values_HW in values_BHW])
        yield Unit(item.name, block), sums_B6, ranges_BR6, missing_B, scatter_BTP


def _scatter(truth_HW: np.ndarray, values_HW: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Pixels by bin of the truth and of the prediction, int64; what lies beyond the axis is in its last bins."""
    known = np.isfinite(truth_HW)
    places = [np.clip(np.searchsorted(axis, some[known], side="right") - 1, 0, SCATTER - 1) for some in (truth_HW, values_HW)]
    return np.bincount(places[0] * SCATTER + places[1], minlength=SCATTER**2).reshape(SCATTER, SCATTER)
