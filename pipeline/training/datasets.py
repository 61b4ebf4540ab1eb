"""Labelled scenes: an image, its labels on the same grid, and the part of both that belongs to a set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from rasterio.enums import ColorInterp

from pipeline.errors import Refused
from pipeline.geometry.windows import Window
from pipeline.imagery import storage
from pipeline.imagery.bands import Band, is_alpha
from pipeline.imagery.catalogue import Asset, BandEntry, Source
from pipeline.imagery.raster import Scene, opened_dataset
from pipeline.imagery.storage import Place
from pipeline.models.bundle import is_name, normalise
from pipeline.training.classes import ClassTable, LabelClass, read_classes, table_of
from pipeline.training.labels import PolygonLabels, RasterLabels, ignored_outside, open_labels, reader_of
from pipeline.training.sources import Pair, find_pairs
from pipeline.training.targets import Numbers
from pipeline.training.unknown import unknown

COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
PIECE = 1024  # px: the windows in which a whole scene is read


@dataclass(frozen=True)
class Block:
    """A rectangle of a labelled scene in memory.

    `physical_CHW` is float32 after the files' scale and offset, 0 where not `valid_CHW`. `labels_HW` holds class ids,
    uint8, and 255 where there is no class or a band is missing; or numbers, float32, and NaN likewise.
    """

    window: Window
    physical_CHW: np.ndarray
    valid_CHW: np.ndarray
    labels_HW: np.ndarray

    def normalised(self, bands: Sequence[Band]) -> torch.Tensor:
        """(value - mean) / std, fp32 C x H x W; a missing value holds its band's mean, that is 0."""
        image_CHW = normalise(torch.from_numpy(self.physical_CHW)[None], bands)[0]
        return image_CHW * torch.from_numpy(self.valid_CHW)


@dataclass(frozen=True, eq=False)
class LabelledScene:
    """An image and its labels on the image's grid. Of them `areas` belong to the set; what lies in `excluded` does not."""

    name: str  # unique in its set
    source: Source
    scene: Scene
    labels: RasterLabels | PolygonLabels
    table: ClassTable | Numbers
    bands: tuple[Band, ...]  # of the image, as they were asked for
    areas: tuple[Window, ...]
    excluded: tuple[Window, ...] = ()

    @property
    def classes(self) -> tuple[LabelClass, ...]:
        return self.table.classes

    @property
    def fingerprint(self) -> str:
        """What tells this image from others: the first 16 hex digits of its first band's file's SHA-256."""
        return file_sha256(storage.place_of(self.scene.bands[0].path))[:16]

    def read_labels(self, window: Window) -> np.ndarray:
        """Class ids, uint8 H x W, or numbers, float32: 255 or NaN where ignored, outside the grid, outside `areas` or in `excluded`.

        Raises Refused, naming the file, for a value that the class table does not have, and Unreadable.
        """
        labels_HW = np.full((window.height, window.width), self.table.unknown, self.table.dtype)
        inside = window.intersection(self.scene.grid.window)
        if inside:
            labels_HW[inside.relative_to(window).slices()] = self.table.read(self.labels, inside)
        return ignored_outside(labels_HW, window, self.areas, self.excluded)

    def read(self, window: Window) -> Block:
        """Image and labels of a window that starts inside the scene; beyond its right and lower edge nothing is valid."""
        values_CHW, valid_CHW = reader_of(self.scene).read(window)
        valid_CHW = np.ones(values_CHW.shape, bool) if valid_CHW is None else valid_CHW
        labels_HW = self.read_labels(window)
        labels_HW[~valid_CHW.all(axis=0)] = unknown(labels_HW)
        bands = self.scene.bands
        scale, offset = (np.array([getattr(band, name) for band in bands], np.float32)[:, None, None] for name in ("scale", "offset"))
        physical_CHW = np.where(valid_CHW, values_CHW.astype(np.float32) * scale + offset, np.float32(0))
        return Block(window, physical_CHW, valid_CHW, labels_HW)

    def pieces(self, side: int = PIECE) -> list[Window]:
        """Windows that cover `areas`, each cut from its own corner into pieces of at most `side` px."""
        return [
            Window(row, col, min(side, area.rows.stop - row), min(side, area.cols.stop - col))
            for area in self.areas
            for row in range(area.row, area.rows.stop, side)
            for col in range(area.col, area.cols.stop, side)
        ]


def open_labelled(
    data: str | Sequence[str], *, labels: str | None = None, classes: str | ClassTable | Numbers | None = None,
    bands: Sequence[Band | str] | None = None, class_column: str | None = None, ignored: Sequence[int] = (), trusted: bool = False,
) -> list[LabelledScene]:  # fmt: skip
    """Open what one or several sources name (`find_pairs` says in which ways) as labelled scenes.

    `bands` are those to read, by name or as a model has them; without them all that the first image has. Without
    `classes`, a file or a table, every value or colour of the labels is a class; with `Numbers` in its place they are numbers.
    `trusted` rasters may follow what they name (`pipeline/imagery/formats`). Raises Refused for what does not open or fit together.
    """
    found_pairs = [pair for place in ([data] if isinstance(data, str) else data) for pair in find_pairs(place, labels)]
    pairs = _told_apart([pair._replace(image=replace(pair.image, trusted=trusted)) for pair in found_pairs])
    first = replace(pairs[0].image, assets=tuple(_named(asset, pairs[0].image) for asset in pairs[0].image.assets))
    chosen = _choose(first, bands)
    numbers, opened = classes if isinstance(classes, Numbers) else None, []
    for pair in pairs:
        source = replace(pair.image, assets=tuple(_named(asset, pair.image) for asset in pair.image.assets))
        opened.append((pair, source, *open_labels(source, pair.labels, chosen, class_column, numbers)))
    if isinstance(classes, str):
        classes = read_classes(storage.place_of(classes), ignored)
    if numbers:
        classes = numbers.named_by([found for *_, found in opened])
    if classes is None:
        other = next((found for *_, found in opened if found.coloured != opened[0][3].coloured), None)
        if other is not None:
            raise Refused(f"{other.place}: {_kind(other)}, {opened[0][3].place} {_kind(opened[0][3])}: make them alike, or give --classes")
        values = set().union(*(found.values() for _, _, _, found in opened))
        classes = table_of(values, opened[0][3].coloured, ignored, str(opened[0][3].place))
    return [LabelledScene(pair.name, source, scene, found, classes, chosen, (scene.grid.window,)) for pair, source, scene, found in opened]


def _kind(labels: RasterLabels | PolygonLabels) -> str:
    return "shows colours" if labels.coloured else "holds values"


def _told_apart(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs, with names that tell them apart where several sources hold files of the same names."""
    if len({pair.name for pair in pairs}) == len(pairs):
        return list(pairs)
    top = os.path.commonpath([os.path.dirname(pair.image.uri) for pair in pairs])
    return [pair._replace(name=os.path.relpath(pair.image.uri, top)) for pair in pairs]


def file_sha256(path: Place) -> str:
    """The SHA-256 of a file, computed once as long as the file stays as it is."""
    return _sha256(path, storage.version(path))


@lru_cache(100_000)
def _sha256(path: Place, version: str | None) -> str:
    return storage.sha256(path)


def _named(asset: Asset, source: Source) -> Asset:
    """The asset with a name for each band: the catalogue's, else the file's, else band_1, band_2 and so on."""
    if asset.bands and all(entry.names for entry in asset.bands):
        return asset
    with opened_dataset(asset.path, source.trusted) as dataset:
        described = [
            () if is_alpha(use, description) else (description or (use.name if use in COLOURS else f"band_{number}"),)
            for number, (description, use) in enumerate(zip(dataset.descriptions, dataset.colorinterp, strict=True), 1)
        ]
    known = [*asset.bands, *[BandEntry()] * len(described)]
    return replace(asset, bands=tuple(replace(entry, names=names) for entry, names in zip(known, described, strict=False)))


def _choose(source: Source, asked: Sequence[Band | str] | None) -> tuple[Band, ...]:
    if asked and all(isinstance(band, Band) for band in asked):
        return tuple(band for band in asked if isinstance(band, Band))
    listed = [entry.names for asset in source.assets for entry in asset.bands if entry.names]
    if asked is None:
        chosen = listed
    else:
        by_name = {name.lower(): entry for entry in reversed(listed) for name in entry}
        names = [band.name if isinstance(band, Band) else band for band in asked]
        missing = next((name for name in names if name.lower() not in by_name), None)
        if missing is not None:
            raise Refused(f"{source.uri}: has no band {missing}; there are {', '.join(entry[0] for entry in listed)} (--bands)")
        chosen = [by_name[name.lower()] for name in names]
    odd = next((entry[0] for entry in chosen if not is_name(entry[0])), None)
    if odd is not None:
        raise Refused(f"{source.uri}: a band is called {odd[:60]!r}, which is no name: give it another description")
    return tuple(Band(entry[0], common_name=entry[1] if len(entry) > 1 else None) for entry in chosen)


def as_pairs(scenes: Sequence[LabelledScene]) -> list[Pair]:
    """The files of the scenes."""
    return [Pair(item.name, item.source, storage.place_of(item.labels.place)) for item in scenes]
