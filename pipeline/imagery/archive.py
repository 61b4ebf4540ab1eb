"""Find dated scenes in an archive: a STAC catalogue on disk or in a bucket, a STAC API, or a folder whose names carry dates."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time
from itertools import groupby
from typing import Any
from urllib.parse import urljoin

from pipeline.errors import Refused
from pipeline.imagery import sentinel2, storage
from pipeline.imagery.catalogue import (
    INVALID,
    LONGEST_NAME,
    RASTER_SUFFIXES,
    STAC_SUFFIXES,
    Asset,
    BandEntry,
    CloudMask,
    Source,
    check_names,
    invalid,
    is_text,
    parse_datetime,
    source_of_item,
)
from pipeline.imagery.storage import Place

DATE = re.compile(r"(?<!\d)((?:19|20)\d\d)([-_]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])(?:T(\d\d)(\d\d)(\d\d))?(?!\d)")
TILE_NAME = re.compile(r"T\d\d[A-Z]{3}_\d{8}T\d{6}")
RESOLUTION = re.compile(r"_\d0m$")
RELATIONS = ("item", "items", "child")
KINDS = ("Catalog", "Collection", "FeatureCollection", "Feature")
MOST_LINKS = 100_000  # of a catalogue: beyond it, a loop is likelier than an archive


@dataclass(frozen=True)
class Asked:
    """What is wanted of an archive: dates from `since` to `until`, both included, about a box in degrees (west, south, east, north).

    `clouds` names the asset, or the last part of a file's name, that tells what shows no ground, and which of its values; None: the
    scene classification of Sentinel-2 where there is one. `bands` names those of a folder's files, in order, where the files do not.
    """

    since: date | None = None
    until: date | None = None
    bbox: tuple[float, float, float, float] | None = None
    collections: tuple[str, ...] = ()
    clouds: tuple[str, tuple[int, ...]] | None = None
    bands: tuple[str, ...] = ()
    trusted: bool = False

    def has(self, when: datetime | None) -> bool:
        """Whether a time is wanted; one that is not known yet may be."""
        return when is None or ((not self.since or when.date() >= self.since) and (not self.until or when.date() <= self.until))


@dataclass
class Found:
    """The scenes of an archive, in order of time, and why what is not among them is not, by the name of each."""

    sources: list[Source] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    listed: int = 0  # wanted or not
    superseded: dict[str, str] = field(default_factory=dict)  # by URI: what was processed again, and the one that counts


def find_dated(place: str, asked: Asked, band_names: Sequence[str]) -> Found:
    """The wanted scenes of an archive. A folder's files are of one scene where their names differ only in a last `_<band>`.

    Raises Refused where there is no archive, and OSError where a server or bucket does not answer.
    """
    found = Found()
    for listed in _listed(place, asked, [name.lower() for name in band_names], found.refused):
        found.listed += 1
        _add(found, *listed, asked)
    found.sources = _once(found)
    return found


Listed = tuple[dict[str, Any] | Source, Place, str]  # an item, or a scene made of files; what lists it; its URI


def _listed(place: str, asked: Asked, band_names: list[str], refused: dict[str, str]) -> Iterator[Listed]:
    if place.startswith(("http://", "https://")):
        yield from _from_api(place, asked)
        return
    path = storage.place_of(place)
    if storage.is_file(path) and path.suffix.lower() in STAC_SUFFIXES:
        yield from _from_catalogue(path, refused)
        return
    names = [*band_names, *([asked.clouds[0].lower()] if asked.clouds else [])]
    for source in _from_files(path, names, asked.bands):
        yield source, path, source.uri


def _add(found: Found, item: dict[str, Any] | Source, path: Place, uri: str, asked: Asked) -> None:
    """Make a scene of what was listed and add it to `found`, in place, if it is wanted."""
    if isinstance(item, Source):
        if asked.has(time_of(item)):
            found.sources.append(_with_clouds(item, asked))
        return
    try:
        said = (item.get("properties") or {}).get("datetime") or (item.get("properties") or {}).get("start_datetime")
        if not asked.has(parse_datetime(said)) or not _near(item.get("bbox"), asked.bbox):
            return
        source = source_of_item(item, path, uri)
        check_names(source)
        found.sources.append(_with_clouds(source, asked))
    except Refused as error:
        found.refused[uri] = str(error)
    except INVALID as error:
        found.refused[uri] = str(invalid(uri, error))


def time_of(source: Source) -> datetime | None:
    """When a scene was seen, in UTC, as far as its catalogue or name tells."""
    return parse_datetime(source.datetime)


def _near(box: Any, asked: tuple[float, float, float, float] | None) -> bool:
    """Whether an item's box may meet the one that is asked for; boxes over the antimeridian are taken to."""
    if asked is None or not isinstance(box, list) or len(box) not in (4, 6):
        return True
    west, south, east, north = box[0], box[1], box[len(box) // 2], box[len(box) // 2 + 1]
    return west > east or not (east < asked[0] or west > asked[2] or north < asked[1] or south > asked[3])


def _from_api(url: str, asked: Asked) -> Iterator[Listed]:
    from pystac_client import Client
    from pystac_client.exceptions import APIError

    window = "/".join(f"{datetime.combine(day, at):%Y-%m-%dT%H:%M:%SZ}" if day else ".." for day, at in _ends(asked))
    try:
        client = Client.open(url)
        search = client.search(
            collections=list(asked.collections) or None, bbox=asked.bbox, datetime=None if window == "../.." else window, limit=100
        )
        for item in search.items_as_dicts():
            own = next((link["href"] for link in item.get("links", []) if link.get("rel") == "self"), f"{url}#{item.get('id')}")
            for asset in item.get("assets", {}).values():
                asset["href"] = urljoin(own, asset["href"])  # a server's path is never one of ours
            yield item, storage.place_of("/"), own
    except APIError as error:
        said = f"{url}: does not answer as a STAC API ({storage.told(error)[:160]})"
        if 400 <= (getattr(error, "status_code", None) or 0) < 500:
            raise Refused(f"{said}: check the address and the collections") from None
        raise OSError(said) from None  # it may tomorrow


def _ends(asked: Asked) -> list[tuple[date | None, time]]:
    return [(asked.since, time(0, 0, 0)), (asked.until, time(23, 59, 59))]


def _from_catalogue(path: Place, refused: dict[str, str]) -> Iterator[Listed]:
    """The items that a catalogue links to, its children's included; or those of an item collection, or the one item.

    Why a link leads nowhere is added to `refused`, in place. Raises Refused for a `path` that is none of these.
    """
    left, seen = [path], {str(path)}
    while left:
        file = left.pop(0)
        try:
            content = _read(file)
            kind = content.get("type")
            if kind == "Feature":
                yield content, file, str(file)
            elif kind == "FeatureCollection":
                yield from ((item, file, f"{file}#{item.get('id')}") for item in _dicts(content, "features", file))
            else:
                links = [link for link in _dicts(content, "links", file) if link.get("rel") in RELATIONS]
                nexts = [place for link in links if (place := _linked(file, link, refused)) and str(place) not in seen]
                left += nexts
                seen |= {str(place) for place in nexts}
        except (Refused, IsADirectoryError, PermissionError) as error:
            if file == path:
                raise
            refused[str(file)] = f"{file}: {storage.told(error)}" if isinstance(error, OSError) else str(error)
        if len(seen) > MOST_LINKS:
            raise Refused(f"{path}: links to more than {MOST_LINKS:,} files: name a smaller catalogue")


def _read(file: Place) -> dict[str, Any]:
    content = storage.read_json(file)
    if content is None:
        raise Refused(f"{file}: is linked to by the catalogue and is not there")
    if not isinstance(content, dict) or content.get("type") not in KINDS:
        raise Refused(f"{file}: is no STAC catalogue, collection, item or item collection")
    return content


def _dicts(content: dict[str, Any], key: str, file: Place) -> list[dict[str, Any]]:
    found = content.get(key) or []
    if not isinstance(found, list):
        raise Refused(f"{file}: is not valid STAC: its {key} are no list")
    return [one for one in found if isinstance(one, dict)]


def _linked(file: Place, link: dict[str, Any], refused: dict[str, str]) -> Place | None:
    """Where a link leads; None, and said in `refused`, where that is nowhere."""
    href = str(link.get("href"))
    try:
        if max(len(part.encode(errors="replace")) for part in href.split("/")) > LONGEST_NAME or not is_text(href):
            raise Refused(f"{file}: links to a name that no file can have ({href[:80]!r}...)")
        return storage.beside(file, href)
    except Refused as error:
        refused[href[:LONGEST_NAME]] = str(error)
        return None


def _from_files(path: Place, names: list[str], bands: Sequence[str]) -> Iterator[Source]:
    """The scenes of a folder and the folders in it, or of a pattern, made of their raster files."""
    if storage.is_folder(path):
        files = [folder / name for folder in storage.all_folders(path) for name in sorted(storage.names(folder))]
        files = [file for file in files if file.suffix.lower() in RASTER_SUFFIXES and not file.name.startswith(".")]
    else:
        files = storage.matching(path)
    if not files:
        raise Refused(
            f"{path}: holds no rasters and is no STAC catalogue: name a catalog.json, an API (https://), or a folder of dated rasters"
        )
    parts = sorted((*_scene_of(file, names), file) for file in files)
    for (top, stem), group in groupby(parts, key=lambda part: part[:2]):
        members = [(band, file) for _, _, band, file in group]
        yield _of_files(str(top), stem, members, bands)


def _scene_of(file: Place, names: list[str]) -> tuple[str, str, str]:
    """Folder and name of the scene that a file is of, and which band it holds, or "" for what only the file says."""
    stem = RESOLUTION.sub("", file.stem)
    before, _, last = stem.rpartition("_")
    known = last.lower() in names or sentinel2.REFLECTANCE.fullmatch(last.upper()) or sentinel2.SCENE_CLASSIFICATION.fullmatch(last)
    if not known or not before:
        return str(file.parent), file.stem, ""
    tile = TILE_NAME.search(before)  # of a .SAFE folder: its bands lie in a folder for each resolution
    top = file.parent.parent if tile and RESOLUTION.search(f"_{file.parent.name.removeprefix('R')}") else file.parent
    return str(top), before, last


def _of_files(top: str, stem: str, members: list[tuple[str, Place]], bands: Sequence[str]) -> Source:
    when = _date_in(stem) or _date_in(top.rpartition("/")[2])
    if TILE_NAME.search(stem) and any(sentinel2.REFLECTANCE.fullmatch(band) for band, _ in members):
        assets = {f"{band}{_resolution(file)}": {"href": str(file), "roles": ["data"]} for band, file in members if band}
        properties = {"datetime": when, "constellation": "sentinel-2", "s2:product_uri": top}
        item = {"type": "Feature", "id": stem, "properties": properties, "assets": assets}
        return replace(source_of_item(item, storage.place_of(top), f"{top}/{stem}"), said="")
    unsaid = tuple(BandEntry((name,)) for name in bands)
    assets_of = tuple(Asset(file, (BandEntry((band,)),) if band else unsaid) for band, file in members)
    uri = str(members[0][1]) if len(members) == 1 else f"{top}/{stem}"
    return Source(uri, stem, when, assets_of)


def _resolution(file: Place) -> str:
    found = RESOLUTION.search(file.stem)
    return found[0] if found else ""


def _date_in(text: str) -> str | None:
    """The first date in a name, as ISO 8601 in UTC."""
    for found in DATE.finditer(text):
        year, _, month, day, hour, minute, second = found.groups()
        said = f"{year}-{month}-{day}T{hour or '00'}:{minute or '00'}:{second or '00'}Z"
        if parse_datetime(said):
            return said
    return None


def _with_clouds(source: Source, asked: Asked) -> Source:
    """The scene with its mask of clouds set apart from its bands."""
    name, hidden = asked.clouds or ("", sentinel2.NOT_CLEAR)
    masks = [
        asset for asset in source.assets
        for entry in asset.bands for own in entry.names
        if (own.lower() == name.lower() if name else sentinel2.SCENE_CLASSIFICATION.fullmatch(own))
    ]  # fmt: skip
    if not masks:
        if name:
            raise Refused(
                f"{source.uri}: has no asset {name} that tells clouds from ground: name another, or take `clouds` out of the config"
            )
        return replace(source, trusted=asked.trusted)
    others = tuple(asset for asset in source.assets if asset not in masks)
    return replace(source, assets=others, clouds=CloudMask(str(masks[0].path), hidden), trusted=asked.trusted)


def _once(found: Found) -> list[Source]:
    """The scenes in order of time, of each product that was processed more than once the last; the others are named in `found`."""
    ordered = sorted(found.sources, key=lambda source: (source.datetime or "", source.scene_id, source.uri))
    latest: dict[tuple[str, ...], Source] = {}
    for source in ordered:
        key = ("uri", source.uri) if source.product is None else ("product", source.product)
        other = latest.get(key)
        if other is not None and other.uri != source.uri:
            old, source = sorted((other, source), key=lambda one: (one.processed, one.scene_id))
            found.superseded[old.uri] = source.uri
        latest[key] = source
    kept = {source.uri for source in latest.values()}
    return [source for source in {source.uri: source for source in ordered}.values() if source.uri in kept]
