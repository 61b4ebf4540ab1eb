"""Count what bundles get right in each block of a labelled scene; a block and its rim are in memory at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import rasterio
from rasterio.windows import Window as RasterioWindow

from pipeline.geometry.areas import ground_areas
from pipeline.geometry.windows import BLOCK, Span, Window, cells, snap_outward
from pipeline.imagery.raster import Scene
from pipeline.imagery.region import Region
from pipeline.models.boundary import boundary_counts
from pipeline.models.bundle import NODATA, Bundle, ClassEntry
from pipeline.models.calibration import calibration_counts
from pipeline.models.metrics import confusion_matrix
from pipeline.training.classes import LabelClass
from pipeline.training.labels import ignored_outside

BLOCK_SIDE = 256  # px: blocks that are drawn anew where there are few scenes; errors of one hardly say those of the next
MOST_BLOCKS = 10_000  # beyond it blocks are larger, so that counts keep their memory


class Labelled(Protocol):
    """A scene with labels, as `pipeline.training.datasets.LabelledScene` is one."""

    @property
    def name(self) -> str: ...
    @property
    def scene(self) -> Scene: ...
    @property
    def classes(self) -> tuple[LabelClass, ...]: ...
    @property
    def areas(self) -> tuple[Window, ...]: ...
    @property
    def excluded(self) -> tuple[Window, ...]: ...
    def read_labels(self, window: Window) -> np.ndarray: ...


@dataclass(frozen=True)
class Prediction:
    """A bundle's files for a scene: they cover `window` of it."""

    mask: Path
    confidence: Path
    window: Window

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """The class ids and the confidence, percent, in a window of the scene that lies inside the files."""
        place = window.relative_to(self.window)
        area = RasterioWindow(place.col, place.row, place.width, place.height)
        with rasterio.open(self.mask) as mask, rasterio.open(self.confidence) as confidence:
            return mask.read(1, window=area), confidence.read(1, window=area)


@dataclass(frozen=True)
class Unit:
    """A block of a scene."""

    scene: str
    window: Window


@dataclass(frozen=True)
class UnitCounts:
    """The counts of all bundles (axis B) in one block."""

    unit: Unit
    confusion_BKK: np.ndarray
    boundary_BK4: np.ndarray
    calibration_BP2: np.ndarray
    mapped_BK: np.ndarray
    area_m2_BK: np.ndarray | None
    only_first_BB: np.ndarray
    unpredicted_B: list[int]


def count_scene(
    item: Labelled, made: Sequence[tuple[Prediction, Bundle]], side: int, tolerance: int, classes: Sequence[ClassEntry]
) -> Iterator[UnitCounts]:
    """The counts of each block of a scene; a block and its rim are in memory at once."""
    tables = [to_label_ids(bundle, classes) for _, bundle in made]
    for block in blocks_of(item, side):
        rim = tolerance + 1
        wide = Window(block.row - rim, block.col - rim, block.height + 2 * rim, block.width + 2 * rim)
        read = wide.intersection(made[0][0].window) or block
        truth_HW = item.read_labels(read)
        pairs = [prediction.read(read) for prediction, _ in made]
        ids_BHW = np.stack([table[ids_HW] for table, (ids_HW, _) in zip(tables, pairs, strict=True)])
        yield _count(
            item, block, block.relative_to(read), truth_HW, ids_BHW, [percent_HW for _, percent_HW in pairs], tolerance, len(classes)
        )


def _count(
    item: Labelled, block: Window, inner: Window, truth_HW: np.ndarray, ids_BHW: np.ndarray, percents: Sequence[np.ndarray],
    tolerance: int, classes: int,
) -> UnitCounts:  # fmt: skip
    """The counts of a block, which is `inner` of the arrays."""
    everywhere_HW = (ids_BHW != NODATA).all(axis=0)
    common_HW = np.where(everywhere_HW, truth_HW, np.uint8(NODATA))  # what all bundles are scored on
    core = inner.slices()
    truth_hw, ids_Bhw, percents_hw = common_HW[core], ids_BHW[:, *core], [percent_HW[core] for percent_HW in percents]
    right_BN = ((ids_Bhw == truth_hw) & (truth_hw != NODATA)).reshape(len(ids_Bhw), -1).astype(float)
    wrong_BN = ((ids_Bhw != truth_hw) & (truth_hw != NODATA)).reshape(len(ids_Bhw), -1).astype(float)
    maps = [ignored_outside(ids_hw.copy(), block, item.areas, item.excluded) for ids_hw in ids_Bhw]
    crs = item.scene.grid.rasterio_crs if item.scene.on_ground else None
    ground = ground_areas(block, item.scene.grid.affine, crs) if crs else None
    return UnitCounts(
        unit=Unit(item.name, block),
        confusion_BKK=np.stack([confusion_matrix(truth_hw, ids_hw, classes) for ids_hw in ids_Bhw]),
        boundary_BK4=np.stack([boundary_counts(common_HW, ids_HW, classes, tolerance, inner) for ids_HW in ids_BHW]),
        calibration_BP2=np.stack([
            calibration_counts(truth_hw, ids_hw, percent_hw) for ids_hw, percent_hw in zip(ids_Bhw, percents_hw, strict=True)
        ]),
        mapped_BK=np.stack([np.bincount(map_hw.ravel(), minlength=256)[:classes] for map_hw in maps]),
        area_m2_BK=np.stack([ground.totals_m2(map_hw)[:classes] for map_hw in maps]) if ground else None,
        only_first_BB=np.rint(right_BN @ wrong_BN.T).astype(np.int64),
        unpredicted_B=[int(((truth_HW[core] != NODATA) & (ids_hw == NODATA)).sum()) for ids_hw in ids_Bhw],
    )  # fmt: skip


def to_label_ids(bundle: Bundle, classes: Sequence[ClassEntry]) -> np.ndarray:
    """From a bundle's class ids to the labels', by name: uint8 of 256 entries, 255 stays."""
    ids = {entry.name: entry.id for entry in classes}
    table = np.full(256, NODATA, np.uint8)
    for entry in bundle.classes:
        table[entry.id] = ids[entry.name]
    return table


def region_of(item: Labelled) -> Region:
    """The box of a scene that holds its areas, on the blocks of a mask."""
    grid = item.scene.grid
    rows = Span(min(area.row for area in item.areas), max(area.rows.stop for area in item.areas))
    cols = Span(min(area.col for area in item.areas), max(area.cols.stop for area in item.areas))
    return Region(snap_outward(Window.of(rows, cols), grid.height, grid.width, BLOCK))


def block_side(labelled: Sequence[Labelled]) -> int:
    """256 px, or so many times 2 that there are at most 10,000 blocks."""
    side = BLOCK_SIDE
    while sum(len(blocks_of(item, side)) for item in labelled) > MOST_BLOCKS:
        side *= 2
    return side


def blocks_of(item: Labelled, side: int) -> list[Window]:
    """The blocks of a scene's own grid that meet its areas, clipped to the box of the areas."""
    box = region_of(item).window
    windows = [Window.of(rows, cols) for rows in cells(box.rows, side) for cols in cells(box.cols, side)]
    return [window for window in windows if any(window.intersection(area) for area in item.areas)]
