"""Find labelled data as people keep it: image and mask in two folders, a list of pairs, or a scene with one file of labels."""

from __future__ import annotations

import csv
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import Refused
from pipeline.imagery import storage
from pipeline.imagery.catalogue import RASTER_SUFFIXES, Asset, Source, find_sources

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
    labels: Path


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
    path = storage.local_path(data)
    if path.is_file() and path.suffix.lower() in LIST_SUFFIXES:
        pairs = list(_listed(path))
    elif path.is_dir() and labels is None:
        folders = _folders(path) or _beside(path)
        pairs = list(chain.from_iterable(_matched(images, masks, path) for images, masks in folders)) if folders else _mixed(path)
    elif path.is_dir() and storage.local_path(labels or "").is_dir():
        pairs = list(_matched(path, storage.local_path(labels or ""), path))
    elif labels is None:
        find_sources([data])
        raise Refused(f"{data}: a scene needs --labels, its label raster or polygons")
    else:
        sources = find_sources([data])
        if len(sources) != 1:
            raise Refused(f"{data}: holds {len(sources)} scenes; --labels must then be a folder of masks of the same names")
        file = storage.local_path(labels)
        if not file.is_file():
            raise Refused(f"{labels}: no such file (--labels)")
        pairs = [Pair(sources[0].scene_id, sources[0], file)]
    if not pairs:
        raise Refused(f"{data}: holds no pairs of image and mask")
    return pairs


def _listed(path: Path) -> Iterator[Pair]:
    """CamVid's way: two paths a line, parted by a comma, a tab or a space; names with spaces in quotes."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise Refused(f"{path}: is not UTF-8 text ({error}): save it as such") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        mark = next((mark for mark in "\t,;" if mark in line), None)
        try:
            words = next(csv.reader([line], delimiter=mark, skipinitialspace=True)) if mark else shlex.split(line)
        except ValueError as error:
            raise Refused(f'{path}: line {number}: {error}: write names with spaces or apostrophes "in quotes"') from None
        words = [word.strip() for word in words]
        if number == 1 and not any(Path(word).suffix for word in words):
            continue  # a heading
        if len(words) != 2:
            raise Refused(f'{path}: line {number} has {len(words)} words; write an image and its mask, "in quotes" where there are spaces')
        image, mask = (Path(word) if Path(word).is_absolute() else path.parent / word for word in words)
        for file in (image, mask):
            if not file.is_file():
                raise Refused(f"{path}: line {number}: {file}: no such file")
        yield Pair(words[0], _image(image), mask)


def _folders(path: Path) -> list[tuple[Path, Path]]:
    """The folders of images at or below `path`, each with the folder of masks beside it."""
    found = []
    for parent in sorted({path, *(folder for folder in path.rglob("*") if folder.is_dir())}):
        below = {folder.name.lower(): folder for folder in parent.iterdir() if folder.is_dir()}
        images = [below[name] for name in IMAGE_FOLDERS if name in below]
        masks = [below[name] for name in MASK_FOLDERS if name in below]
        found += _same(images[0], masks[0]) if images and masks else []
    return found


def _same(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """The two folders, or where they hold only folders, those of the same names in them (`images/train`, `masks/train`)."""
    names = sorted(folder.name for folder in images.iterdir() if folder.is_dir() and (masks / folder.name).is_dir())
    if not names or any(file.suffix.lower() in RASTER_SUFFIXES for file in images.iterdir()):
        return [(images, masks)]
    return [(images / name, masks / name) for name in names]


def _beside(path: Path) -> list[tuple[Path, Path]]:
    """`images/train` with `masks/train`, where `path` is the former."""
    for images in (path, *path.parents):
        if images.name.lower() in IMAGE_FOLDERS:
            candidates = [images.with_name(other.name) / path.relative_to(images) for other in images.parent.iterdir()]
            masks = [folder for folder in candidates if folder.is_dir() and _top(folder, images).lower() in MASK_FOLDERS]
            return [(path, masks[0])] if masks else []
    return []


def _top(folder: Path, images: Path) -> str:
    """The name of the folder beside `images` that `folder` is in."""
    return folder.relative_to(images.parent).parts[0]


def _mixed(path: Path) -> list[Pair]:
    """The pairs of one folder of images and masks, told apart by the marks of the masks' names."""
    sources = find_sources([str(path)]) if any(file.suffix.lower() in RASTER_SUFFIXES for file in path.iterdir()) else []
    masks = {source.scene_id: source for source in sources if MARKS.search(source.scene_id)}
    images = [source for source in sources if source.scene_id not in masks]
    if not masks:
        raise Refused(
            f"{path}: holds no folders of images and masks side by side (images/, masks/) and no names that end in _mask:"
            " name the folder of masks with --labels"
        )
    return list(_paired(images, list(masks.values()), path, IMAGE_MARKS))


def _matched(images: Path, masks: Path, top: Path) -> Iterator[Pair]:
    """The pairs of two folders, by their files' stems; a mask's stem may end in _mask, _label, _gt or _L."""
    return _paired(find_sources([str(images)]), find_sources([str(masks)]), top)


def _paired(images: Sequence[Source], masks: Sequence[Source], top: Path, marks: re.Pattern[str] | None = None) -> Iterator[Pair]:
    """Images and masks by their stems; of an image's stem what `marks` finds is no part."""
    by_stem: dict[str, Source] = {}
    for source in images:
        other = by_stem.setdefault(marks.sub("", source.scene_id) if marks else source.scene_id, source)
        if other is not source:
            raise Refused(f"{source.uri}: has the same name as {Path(other.uri).name}: keep one")
    found: dict[str, Path] = {}
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
        yield Pair(str(Path(source.uri).relative_to(top)), source, found[stem])


def _image(path: Path) -> Source:
    return Source(str(path), path.stem, None, (Asset(path),))


def check_apart(sets: Sequence[tuple[str, Sequence[Pair]]]) -> None:
    """Raise Refused, naming it, where one file is in two sets, or an image twice in one; `sets` are (what it is called, its pairs).

    One file of labels may serve several scenes of several sets.
    """
    uses = Counter(pair.labels for _, pairs in sets for pair in pairs)
    seen: dict[Path, str] = {}
    for called, pairs in sets:
        images = Counter(tuple(asset.path.resolve() for asset in pair.image.assets) for pair in pairs)
        (image, count), *_ = images.most_common(1) or [((), 0)]
        if count > 1:
            raise Refused(f"{image[0]}: is {count} times in {called}: it could be both trained on and held out")
        files = {asset.path.resolve() for pair in pairs for asset in pair.image.assets}
        files |= {pair.labels.resolve() for pair in pairs if uses[pair.labels] == 1}
        twice = min((file for file in files if file in seen), default=None)
        if twice is not None:
            raise Refused(f"{twice}: is in {seen[twice]} and in {called}: scores on what was trained on mean nothing")
        seen |= dict.fromkeys(files, called)
