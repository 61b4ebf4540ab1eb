"""Find the scenes that a person names: a file, a folder, a glob, a STAC item or item collection, on disk or in a bucket."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import Refused
from pipeline.imagery import sentinel2, storage
from pipeline.imagery.storage import Place, Remote

RASTER_SUFFIXES = (".tif", ".tiff", ".jp2", ".vrt", ".img", ".png", ".jpg", ".jpeg")
STAC_SUFFIXES = (".json", ".geojson")
LONGEST_NAME, LONGEST_PATH = 255, 4000  # bytes and characters, of file systems
INVALID = (KeyError, TypeError, ValueError, AttributeError)  # what reading a STAC file raises that is not as it should be
INHERITED = ("eo:common_name", "raster:scale", "raster:offset", "nodata")  # by bands from their asset, in STAC 1.1


@dataclass(frozen=True)
class BandEntry:
    """What a catalogue says of one band of a file; every field may be unknown."""

    names: tuple[str, ...] = ()
    scale: float | None = None
    offset: float | None = None
    nodata: float | None = None
    of_asset: bool = False  # said of all bands of the file; the names are those of a lone band


@dataclass(frozen=True)
class Asset:
    """One file of a scene; `bands` has an entry for each of its bands, or one `of_asset`, or none where nothing is said of them."""

    path: Place
    bands: tuple[BandEntry, ...] = ()


@dataclass(frozen=True)
class CloudMask:
    """A raster of classes, on any grid, that says which pixels show no ground: those whose value is in `hidden`, or unknown."""

    path: str
    hidden: tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """Where a scene lies, before any file of it was opened."""

    uri: str
    scene_id: str
    datetime: str | None
    assets: tuple[Asset, ...]
    said: str = ""  # a hash of the STAC item that lists it
    trusted: bool = False  # its files may follow what they name: `--allow-vrt`
    clouds: CloudMask | None = None
    product: str | None = None  # the same for the same sight of the same tile, however often it was processed
    processed: str = ""  # later for a later processing
    off_nadir: float | None = None  # degrees


def find_sources(places: Iterable[str], trusted: bool = False) -> list[Source]:
    """The scenes that `places` name, in order, each once. Raises Refused, naming a place where there is none."""
    try:
        found = {source.uri: replace(source, trusted=trusted) for place in places for source in _expand(place)}
    except OSError as error:
        raise Refused(str(error)) from None
    for source in found.values():
        check_names(source)
    return list(found.values())


def check_names(source: Source) -> None:
    """Raise Refused for names of a scene that no file can have."""
    for text in (source.uri, source.scene_id, source.datetime or "", *(str(asset.path) for asset in source.assets)):
        _check_text(text)
    for asset in source.assets:
        if any(len(part.encode()) > LONGEST_NAME for part in str(asset.path).split("/")) or len(str(asset.path)) > LONGEST_PATH:
            raise Refused(f"{str(asset.path)[:LONGEST_NAME]}...: is too long for a name")


def is_text(name: str) -> bool:
    """Whether JSON files and file systems can hold it: these take any bytes for a name, those half characters."""
    return "\0" not in name and name.encode(errors="ignore").decode() == name


def _check_text(name: str) -> None:
    if not is_text(name):
        raise Refused(f"{name[:LONGEST_NAME]}: is a name that is no valid text: rename it")


def parse_datetime(text: object) -> datetime | None:
    """ISO 8601 as a time in UTC; a time without a zone is taken as UTC; None for what is not a time."""
    try:
        when = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return when if when is None else when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)


def unique_folder(scene_id: str, uri: str, taken: bool) -> str:
    """The folder of a scene in a data set: its id made safe, marked with its URI's hash where the name is taken."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", scene_id).strip("._") or "scene"
    return f"{safe[:120]}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}" if taken else safe[:120]


def _expand(place: str) -> list[Source]:
    path = storage.place_of(place)
    if storage.is_file(path):
        return _one(path)
    if storage.is_folder(path):
        found = [path / name for name in sorted(storage.names(path)) if _looks_like_raster(name)]
        files = [file for file in found if isinstance(file, Remote) or file.is_file()]
        if not files:
            raise Refused(f"{place}: no rasters in this folder (looked for {', '.join(RASTER_SUFFIXES)})")
        return [_file(file) for file in files]
    matches = storage.matching(path)
    if not matches:
        what = "no file matches this pattern" if glob.has_magic(str(path)) else "no such file or folder"
        raise Refused(f"{place}: {what}")
    return [source for match in matches for source in _one(match)]


def _one(path: Place) -> list[Source]:
    return _stac(path) if path.suffix.lower() in STAC_SUFFIXES else [_file(path)]


def _looks_like_raster(name: str) -> bool:
    return name.lower().endswith(RASTER_SUFFIXES) and not name.startswith(".")


def _file(path: Place) -> Source:
    return Source(str(path), path.stem, None, (Asset(path),))


def _stac(path: Place) -> list[Source]:
    read = storage.read_json(path)
    content: dict[str, Any] = read if isinstance(read, dict) else {}
    kind = content.get("type")
    try:
        if kind == "FeatureCollection":
            return sources_of_items(content["features"], path)
        if kind == "Feature":
            return [source_of_item(content, path, str(path))]
    except INVALID as error:
        raise invalid(path, error) from None
    raise Refused(f"{path}: not a STAC item or item collection; name a raster, or an item that lists its files")


def invalid(path: object, error: Exception) -> Refused:
    """What is said where reading an item raised one of INVALID."""
    return Refused(f"{path}: is not valid STAC ({type(error).__name__}: {error})")


def sources_of_items(items: list[dict[str, Any]], path: Place) -> list[Source]:
    """The scenes of an item collection that lies at `path`."""
    if not items:
        raise Refused(f"{path}: this item collection is empty")
    twice = [name for name, count in Counter(item.get("id") for item in items).items() if count > 1 and name is not None]
    if twice:
        raise Refused(f"{path}: lists {len(twice)} ids more than once, {twice[0]} among them: give each item an id of its own")
    return [source_of_item(item, path, f"{path}#{item.get('id')}") for item in items]


def source_of_item(item: dict[str, Any], path: Place, uri: str) -> Source:
    """The scene of a STAC item that `path` holds. Raises Refused, or what INVALID lists."""
    if not isinstance(item.get("id"), str) or not isinstance(item.get("assets"), dict):
        raise Refused(f"{path}: a STAC item needs an id and assets")
    said = hashlib.sha256(json.dumps([item["id"], item.get("properties"), item["assets"]], sort_keys=True).encode()).hexdigest()[:16]
    item = sentinel2.as_listed(item)
    listed = [(key, asset) for key, asset in item["assets"].items() if _holds_bands(asset)]
    assets = tuple(Asset(storage.beside(path, asset["href"]), _band_entries(key, asset)) for key, asset in listed)
    if not assets:
        raise Refused(f"{path}: item {item['id']} lists no raster assets with the role data")
    properties = item.get("properties") or {}
    when = properties.get("datetime") or properties.get("start_datetime")
    return Source(
        uri, item["id"], when if isinstance(when, str) else None, assets, said,
        product=sentinel2.product_of(item), processed=sentinel2.processed(item),
        off_nadir=_number(properties.get("view:off_nadir")),
    )  # fmt: skip


def _holds_bands(asset: dict[str, Any]) -> bool:
    roles = asset.get("roles")
    if roles is not None:
        return "data" in roles
    return any(key in asset for key in ("eo:bands", "raster:bands", "bands"))


def _band_entries(key: str, asset: dict[str, Any]) -> tuple[BandEntry, ...]:
    """Merge what STAC 1.0 (eo:bands, raster:bands) and 1.1 (bands) say. A lone band also answers to its asset's key."""
    lists = [asset[field] for field in ("bands", "eo:bands", "raster:bands") if asset.get(field)]
    count = max(map(len, lists), default=1)
    entries = []
    for number in range(count):
        said = {field: asset[field] for field in INHERITED if field in asset}
        for bands in lists:
            said |= bands[number] if number < len(bands) else {}
        names = [said.get("name"), said.get("eo:common_name"), said.get("common_name"), key if count == 1 else None]
        known = tuple(dict.fromkeys(name for name in names if isinstance(name, str) and name))
        scale, offset = said.get("scale", said.get("raster:scale")), said.get("offset", said.get("raster:offset"))
        entries.append(BandEntry(known, _number(scale), _number(offset), _number(said.get("nodata")), of_asset=not lists))
    return tuple(entries)


def _number(said: Any) -> float | None:
    if said is not None and not math.isfinite(float(said)) and said not in ("nan", "inf", "-inf"):
        raise ValueError(f"{said} is no number")
    return None if said is None else float(said)
