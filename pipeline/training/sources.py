"""Find labelled data as people keep it: image and mask in two folders, a list of pairs, or a scene with one file of labels."""

from __future__ import annotations

import csv
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from pathlib import PurePath
from typing import NamedTuple

from pipeline.errors import Refused
from pipeline.imagery import storage
from pipeline.imagery.catalogue import RASTER_SUFFIXES, Asset, Source, find_sources
from pipeline.imagery.storage import Place

LIST_SUFFIXES = (".txt", ".lst", ".csv", ".tsv")
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "scenes", "chips", "inputs")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations", "annots", "gt", "groundtruth", "ground_truth", "targets", "segmentation")
MARKS = re.compile(r"[_\-. ]?(masks?|labels?|annot|gt|groundtruth)$|[_\-.]L$", re.IGNORECASE)  # of a mask's stem beside its image's
IMAGE_MARKS = re.compile(r"[_\-. ](image|img|sat|rgb)$", re.IGNORECASE)  # of an image's, where both lie in one folder
MOST_NAMED = 3


class Pair(NamedTuple):
    """An image, or a scene of several files, and what labels it. `name` is unique among its set."""

    name: str
    image: Source
    labels: Place


def find_pairs(data: str, labels: str | None = None) -> list[Pair]:
    """The labelled images that `data` names, in order.

    - a scene (raster or STAC item), with `labels` its label raster or polygons;
    - a folder of images, with `labels` the folder of masks of the same names;
    - a folder that holds, at any depth, folders of images and of masks side by side (`images` and `masks`, say), or one below
      such a folder of images (`images/train`, with `masks/train` beside it);
    - a folder of images and masks together, the masks' names marked (`a.jpg` and `a_mask.png`, say);
    - a list, .txt or .csv, with an image and its mask on each line, relative to the list's own folder.

    Raises Refused, naming files, for an image without a mask, a mask without an image, and for what holds no pairs.
    """
    path, target = storage.place_of(data), storage.place_of(labels) if labels else None
    folder = storage.is_folder(path)
    if path.suffix.lower() in LIST_SUFFIXES and storage.is_file(path):
        pairs = list(_listed(path))
    elif folder and target is None:
        folders = _folders(path) or _beside(path)
        pairs = list(chain.from_iterable(_matched(images, masks, path) for images, masks in folders)) if folders else _mixed(path)
    elif folder and target and storage.is_folder(target):
        pairs = list(_matched(path, target, path))
    elif target is None:
        find_sources([data])
        raise Refused(f"{data}: a scene needs --labels, its label raster or polygons")
    else:
        sources = find_sources([data])
        if len(sources) != 1:
            raise Refused(f"{data}: holds {len(sources)} scenes; --labels must then be a folder of masks of the same names")
        if not storage.is_file(target):
            raise Refused(f"{labels}: no such file (--labels)")
        pairs = [Pair(sources[0].scene_id, sources[0], target)]
    if not pairs:
        raise Refused(f"{data}: holds no pairs of image and mask")
    return pairs


def _listed(path: Place) -> Iterator[Pair]:
    """CamVid's way: two paths a line, parted by a comma, a tab or a space; names with spaces in quotes."""
    try:
        lines = storage.read(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise Refused(f"{path}: is not UTF-8 text ({error}): save it as such") from None
    names = cache(storage.names)
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        mark = next((mark for mark in "\t,;" if mark in line), None)
        try:
            words = next(csv.reader([line], delimiter=mark, skipinitialspace=True)) if mark else shlex.split(line)
        except ValueError as error:
            raise Refused(f'{path}: line {number}: {error}: write names with spaces or apostrophes "in quotes"') from None
        words = [word.strip() for word in words]
        if number == 1 and not any(PurePath(word).suffix for word in words):
            continue  # a heading
        if len(words) != 2:
            raise Refused(f'{path}: line {number} has {len(words)} words; write an image and its mask, "in quotes" where there are spaces')
        image, mask = (storage.beside(path, word) for word in words)
        for file in (image, mask):
            if file.name not in names(file.parent):
                raise Refused(f"{path}: line {number}: {file}: no such file")
        yield Pair(words[0], _image(image), mask)


def _folders(path: Place) -> list[tuple[Place, Place]]:
    """The folders of images at or below `path`, each with the folder of masks beside it."""
    found = []
    for parent in storage.all_folders(path):
        below = {name.lower(): folder for name, folder in storage.folders(parent).items()}
        images = [below[name] for name in IMAGE_FOLDERS if name in below]
        masks = [below[name] for name in MASK_FOLDERS if name in below]
        found += _same(images[0], masks[0]) if images and masks else []
    return found


def _same(images: Place, masks: Place) -> list[tuple[Place, Place]]:
    """The two folders, or where they hold only folders, those of the same names in them (`images/train`, `masks/train`)."""
    within, others = storage.folders(images), storage.folders(masks)
    both = [name for name in within if name in others]
    if not both or _holds_rasters(images):
        return [(images, masks)]
    return [(within[name], others[name]) for name in both]


def _beside(path: Place) -> list[tuple[Place, Place]]:
    """`images/train` with `masks/train`, where `path` is the former."""
    for images in (path, *path.parents):
        if images.name.lower() in IMAGE_FOLDERS:
            tops = [folder for name, folder in storage.folders(images.parent).items() if name.lower() in MASK_FOLDERS]
            masks = [folder for top in tops if storage.is_folder(folder := top / storage.relative(path, images))]
            return [(path, masks[0])] if masks else []
    return []


def _holds_rasters(folder: Place) -> bool:
    return any(name.lower().endswith(RASTER_SUFFIXES) for name in storage.names(folder))


def _mixed(path: Place) -> list[Pair]:
    """The pairs of one folder of images and masks, told apart by the marks of the masks' names."""
    sources = find_sources([str(path)]) if _holds_rasters(path) else []
    masks = {source.scene_id: source for source in sources if MARKS.search(source.scene_id)}
    images = [source for source in sources if source.scene_id not in masks]
    if not masks:
        raise Refused(
            f"{path}: holds no folders of images and masks side by side (images/, masks/) and no names that end in _mask:"
            " name the folder of masks with --labels"
        )
    return list(_paired(images, list(masks.values()), path, IMAGE_MARKS))


def _matched(images: Place, masks: Place, top: Place) -> Iterator[Pair]:
    """The pairs of two folders, by their files' stems; a mask's stem may end in _mask, _label, _gt or _L."""
    return _paired(find_sources([str(images)]), find_sources([str(masks)]), top)


def _paired(images: Sequence[Source], masks: Sequence[Source], top: Place, marks: re.Pattern[str] | None = None) -> Iterator[Pair]:
    """Images and masks by their stems; of an image's stem what `marks` finds is no part."""
    by_stem: dict[str, Source] = {}
    for source in images:
        other = by_stem.setdefault(marks.sub("", source.scene_id) if marks else source.scene_id, source)
        if other is not source:
            raise Refused(f"{source.uri}: has the same name as {PurePath(other.uri).name}: keep one")
    found: dict[str, Place] = {}
    for mask in masks:
        stem = mask.scene_id if mask.scene_id in by_stem else MARKS.sub("", mask.scene_id)
        if stem not in by_stem:
            raise Refused(f"{mask.uri}: no image of that name: remove it, or add its image")
        if found.setdefault(stem, mask.assets[0].path) != mask.assets[0].path:
            raise Refused(f"{mask.uri}: {by_stem[stem].uri} has another mask, {found[stem].name}: keep one")
    missing = [by_stem[stem].uri for stem in by_stem if stem not in found]
    if missing:
        more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
        raise Refused(f"{', '.join(missing[:MOST_NAMED])}{more}: no mask of that name")
    for stem, source in by_stem.items():
        yield Pair(storage.relative(storage.place_of(source.uri), top), source, found[stem])


def _image(path: Place) -> Source:
    return Source(str(path), path.stem, None, (Asset(path),))


def check_apart(sets: Sequence[tuple[str, Sequence[Pair]]]) -> None:
    """Raise Refused, naming it, where one file is in two sets, or an image twice in one; `sets` are (what it is called, its pairs).

    One file of labels may serve several scenes of several sets.
    """
    uses = Counter(pair.labels for _, pairs in sets for pair in pairs)
    seen: dict[str, str] = {}
    for called, pairs in sets:
        images = Counter(tuple(storage.identity(asset.path) for asset in pair.image.assets) for pair in pairs)
        (image, count), *_ = images.most_common(1) or [((), 0)]
        if count > 1:
            raise Refused(f"{image[0]}: is {count} times in {called}: it could be both trained on and held out")
        files = {storage.identity(asset.path) for pair in pairs for asset in pair.image.assets}
        files |= {storage.identity(pair.labels) for pair in pairs if uses[pair.labels] == 1}
        twice = min((file for file in files if file in seen), default=None)
        if twice is not None:
            raise Refused(f"{twice}: is in {seen[twice]} and in {called}: scores on what was trained on mean nothing")
        seen |= dict.fromkeys(files, called)
