"""A scene with labels, cut into blocks of columns: one to learn from, one to choose by, one to be measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import rasterio
import torch
from rasterio.enums import ColorInterp

from pipeline.errors import Refused
from pipeline.geometry.windows import Span, Window, ceil_to
from pipeline.imagery import storage
from pipeline.imagery.bands import Band
from pipeline.imagery.catalogue import Asset, BandEntry, Source, find_sources
from pipeline.imagery.raster import Scene, open_scene
from pipeline.imagery.reader import SceneReader
from pipeline.inference.plan import GIB, memory_allotted
from pipeline.models.bundle import normalise
from pipeline.training.classes import IGNORE, LabelClass, class_ids

LABELS = "training labels"  # what the label raster is called beside the scene's bands
COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
ROBUST_PERCENT = (0.1, 99.9)
BYTES_PER_VALUE = 12  # of a block: as read, physical, normalised


@dataclass(frozen=True)
class Block:
    """A rectangle of a labelled scene in memory.

    `physical_CHW` is float32 after the files' scale and offset, 0 where not `valid_CHW`. `labels_HW` holds class ids,
    uint8, and 255 where there is no class or a band is missing.
    """

    window: Window
    physical_CHW: np.ndarray
    valid_CHW: np.ndarray
    labels_HW: np.ndarray

    def normalised(self, bands: Sequence[Band]) -> torch.Tensor:
        """(value - mean) / std, fp32 C x H x W; a missing value holds its band's mean, that is 0."""
        image_CHW = normalise(torch.from_numpy(self.physical_CHW)[None], bands)[0]
        return image_CHW * torch.from_numpy(self.valid_CHW)

    def class_counts(self, classes: int) -> np.ndarray:
        """How many pixels are of each class, int64 K."""
        return np.bincount(self.labels_HW.ravel(), minlength=256)[:classes]


@dataclass(frozen=True)
class LabelledScene:
    """A scene that was opened with its labels: they are the last band of `scene`, on the scene's grid like the others."""

    scene: Scene
    bands: tuple[Band, ...]
    classes: tuple[LabelClass, ...]

    def read(self, columns: Span, *, context: int = 0, stride: int = 1) -> Block:
        """Read the rows of the scene in `columns`, with `context` px beside them whose labels are ignored.

        The block starts and ends on multiples of `stride`; below and to the right of the scene it is padded with
        missing values. With no context and stride 1 no pixel outside `columns` is read. Raises Refused where it does
        not fit in memory, Unreadable where a file is damaged.
        """
        grid = self.scene.grid
        start = max(0, columns.start - context) // stride * stride
        stop = min(ceil_to(columns.stop + context, stride), ceil_to(grid.width, stride))
        window = Window(0, start, ceil_to(grid.height, stride), stop - start)
        needed = window.pixels * len(self.scene.bands) * BYTES_PER_VALUE
        if needed > memory_allotted() / 2:
            raise Refused(f"{self.scene.uri}: columns {start} to {stop} take {needed / GIB:.1f} GiB in memory: choose fewer")
        with SceneReader(self.scene) as reader:
            values_CHW, valid_CHW = reader.read(window)
        valid_CHW = np.ones(values_CHW.shape, bool) if valid_CHW is None else valid_CHW
        labels_HW = class_ids(values_CHW[-1], np.logical_and.reduce(valid_CHW), self.classes)
        labels_HW[:, : columns.start - start] = IGNORE
        labels_HW[:, columns.stop - start :] = IGNORE
        files = self.scene.bands[:-1]
        scale, offset = (np.array([getattr(file, name) for file in files], np.float32)[:, None, None] for name in ("scale", "offset"))
        physical_CHW = np.where(valid_CHW[:-1], values_CHW[:-1].astype(np.float32) * scale + offset, np.float32(0))
        return Block(window, physical_CHW, valid_CHW[:-1], labels_HW)


def open_labelled(place: str, labels: str, classes: Sequence[LabelClass], names: Sequence[str] | None = None) -> LabelledScene:
    """Open a scene and the raster that labels it, whose first band is taken to the scene's grid by nearest neighbour.

    `names` are the bands to learn from, in order; without them all the scene's bands. Raises Refused for what does not
    open or does not fit together.
    """
    sources = find_sources([place])
    if len(sources) != 1:
        raise Refused(f"{place}: holds {len(sources)} scenes; training takes one")
    source = replace(sources[0], assets=tuple(_named(asset, sources[0]) for asset in sources[0].assets))
    bands = _choose(source, names)
    assets = (*source.assets, Asset(storage.local_path(labels), (BandEntry(names=(LABELS,)),)))
    scene = open_scene(replace(source, assets=assets), [*bands, Band(LABELS, categorical=True)])
    return LabelledScene(scene, bands, tuple(classes))


def _named(asset: Asset, source: Source) -> Asset:
    """The asset with a name for each band: the catalogue's, else the file's, else band_1, band_2 and so on."""
    if asset.bands and all(entry.names for entry in asset.bands):
        return asset
    try:
        with rasterio.open(asset.path) as dataset:
            described = [
                description or (use.name if use in COLOURS else f"band_{number}")
                for number, (description, use) in enumerate(zip(dataset.descriptions, dataset.colorinterp, strict=True), 1)
            ]
    except rasterio.errors.RasterioError as error:
        raise Refused(f"{source.uri}: {asset.path} cannot be opened as a raster ({' '.join(str(error).split())[:160]})") from None
    known = [*asset.bands, *[BandEntry()] * len(described)]
    return replace(asset, bands=tuple(replace(entry, names=(name,)) for entry, name in zip(known, described, strict=False)))


def _choose(source: Source, names: Sequence[str] | None) -> tuple[Band, ...]:
    listed = [entry.names for asset in source.assets for entry in asset.bands]
    if names is None:
        chosen = listed
    else:
        by_name = {name.lower(): entry for entry in reversed(listed) for name in entry}
        missing = next((name for name in names if name.lower() not in by_name), None)
        if missing is not None:
            raise Refused(f"{source.uri}: has no band {missing}; there are {', '.join(entry[0] for entry in listed)} (--bands)")
        chosen = [by_name[name.lower()] for name in names]
    return tuple(Band(entry[0], common_name=entry[1] if len(entry) > 1 else None) for entry in chosen)


def measure_bands(block: Block, bands: Sequence[Band]) -> tuple[Band, ...]:
    """The bands with the mean, standard deviation and robust range of the block's valid physical values.

    Raises Refused for a band that holds one value only, or none.
    """
    measured = []
    for band, values, valid in zip(bands, block.physical_CHW, block.valid_CHW, strict=True):
        known = values[valid].astype(np.float64)
        if not known.size or not known.std() > 0:
            what = "one value only" if known.size else "nothing"
            raise Refused(f"band {band.name} holds {what} where the model is trained: leave it out (--bands)")
        low, high = np.percentile(known, ROBUST_PERCENT)
        mean, std, low, high = (float(f"{value:.6g}") for value in (known.mean(), known.std(), low, high))
        measured.append(replace(band, mean=mean, std=std, range=(low, high)))
    return tuple(measured)


@dataclass(frozen=True)
class Split:
    """Columns of a scene to train on, to choose the best epoch by, and to measure on."""

    train: Span
    validation: Span
    test: Span

    @classmethod
    def around(cls, validation: Span, test: Span, *, width: int, gap: int, train: Span | None = None) -> Split:
        """A split of a scene `width` px wide, trained on `train` or else on the widest run of columns that is left.

        Law: `gap` px or more lie between a training column and a held-out one, so that what the network sees around
        a held-out pixel was never trained on. Raises Refused where that cannot be.
        """
        for name, span in (("--validation-columns", validation), ("--test-columns", test)):
            if not 0 <= span.start < span.stop <= width:
                raise Refused(f"{name} {span.start}:{span.stop}: the scene has columns 0:{width}")
        if validation.start < test.stop and test.start < validation.stop:
            raise Refused(f"--validation-columns {validation.start}:{validation.stop} overlap --test-columns {test.start}:{test.stop}")
        kept = sorted((max(0, span.start - gap), min(width, span.stop + gap)) for span in (validation, test))
        edges = [(0, kept[0][0]), (kept[0][1], kept[1][0]), (kept[1][1], width)]
        free = [Span(*edge) for edge in edges if edge[0] < edge[1]]
        if not free:
            raise Refused(f"no column is {gap} px (the network's halo) away from the held-out ones: hold out fewer")
        chosen = train or max(free, key=lambda span: span.length)
        if not any(span.start <= chosen.start < chosen.stop <= span.stop for span in free):
            places = ", ".join(f"{span.start}:{span.stop}" for span in free)
            raise Refused(f"--train-columns {chosen.start}:{chosen.stop}: the network's halo, {gap} px, from what is held out lie {places}")
        return cls(chosen, validation, test)
