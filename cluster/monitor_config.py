"""What a region is watched for: the YAML file of jobs/monitor_crops.py, read and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import yaml

from pipeline.errors import Refused
from pipeline.imagery import storage
from pipeline.imagery.archive import Asked
from pipeline.imagery.expressions import Expression
from pipeline.imagery.region import Area
from pipeline.imagery.storage import Place
from pipeline.results.over_time import OverTimeSettings

KEYS = {
    "region", "scenes", "collections", "bands", "clouds", "output", "parcels", "parcel_id", "districts", "district_id", "model", "rules",
    "indices", "bbox", "aoi", "since", "until", "lookback_days", "minimum_valid_share", "precision", "workers", "curve", "season",
    "changes",
}  # fmt: skip
NEEDED = ("region", "scenes", "output", "parcels")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,60}")
INDEX_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")


@dataclass(frozen=True)
class Watch:
    """What to watch. Places are as the config says them, taken from its own folder; formulas are by the index's name."""

    region: str
    scenes: str
    output: Place
    parcels: Place
    parcel_id: str | None = None
    districts: Place | None = None
    district_id: str | None = None
    model: str | None = None  # a bundle
    rules: tuple[Mapping[str, Any], ...] = ()  # in its place
    indices: Mapping[str, Expression] = field(default_factory=dict)
    asked: Asked = field(default_factory=Asked)
    area: Area | None = None
    lookback_days: int | None = None
    minimum_valid_share: float = 0.5
    precision: str = "auto"
    workers: int | None = None  # as many as pay
    over_time: OverTimeSettings = field(default_factory=OverTimeSettings)

    @property
    def index_bands(self) -> list[str]:
        """The bands that the indices are made of."""
        return sorted({name for formula in self.indices.values() for name in formula.names})


def read_watch(place: Place) -> Watch:
    """Read and check a config. Raises Refused in one line that names the key and the fix."""
    content = read_yaml(place)
    if unknown := sorted(map(str, content.keys() - KEYS)):
        raise Refused(f"{place}: {unknown[0]}: no such key; there are {', '.join(sorted(KEYS))}")
    if missing := [key for key in NEEDED if not content.get(key)]:
        raise Refused(f"{place}: lacks {missing[0]}")
    try:
        return _watch(content, place)
    except Refused as error:
        raise Refused(f"{place}: {error}") from None


def read_yaml(place: Place) -> dict[str, Any]:
    """The keys and values of a YAML file. Raises Refused."""
    try:
        content = yaml.safe_load(storage.read(place))
    except FileNotFoundError:
        raise Refused(f"{place}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refused(f"{place}: is not valid YAML ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(content, dict):
        raise Refused(f"{place}: must hold keys and values, as README.md lists them")
    return content


def _watch(content: dict[str, Any], place: Place) -> Watch:
    if ("model" in content) == ("rules" in content):
        raise Refused("needs a model (a bundle) or rules, not both")
    if not NAME.fullmatch(str(content["region"])):
        raise Refused(f"region {content['region']!r}: must be a name of a-z, 0-9, _ and -: files are called by it")
    bbox = content.get("bbox")
    if bbox is not None and (not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(edge, int | float) for edge in bbox)):
        raise Refused(f"bbox {bbox!r}: must be [west, south, east, north] in degrees")
    if bbox is not None and content.get("aoi"):
        raise Refused("bbox and aoi: give one of them")
    area = Area.from_bbox(*bbox) if bbox else Area.from_file(_place(content["aoi"], place)) if content.get("aoi") else None
    box = None if area is None else tuple(float(edge) for edge in area.polygons.to_crs("EPSG:4326").total_bounds)
    collections = content.get("collections") or []
    texts = {"collections": [collections] if isinstance(collections, str) else collections, "bands": content.get("bands") or []}
    for key, said in (*texts.items(), ("rules", content.get("rules") or [])):
        if not isinstance(said, list):
            raise Refused(f"{key}: must be a list")
    return Watch(
        region=str(content["region"]), scenes=_address(content["scenes"], place), output=_place(content["output"], place),
        parcels=_place(content["parcels"], place), parcel_id=_text(content, "parcel_id"),
        districts=_place(content["districts"], place) if content.get("districts") else None, district_id=_text(content, "district_id"),
        model=_address(content["model"], place) if "model" in content else None, rules=tuple(content.get("rules") or ()),
        indices=_indices(content.get("indices") or {}),
        asked=Asked(
            _day(content, "since"), _day(content, "until"), box,  # type: ignore[arg-type]
            tuple(map(str, texts["collections"])), _clouds(content.get("clouds")), tuple(map(str, texts["bands"])),
        ),
        area=area, lookback_days=_number(content, "lookback_days", 1, 10_000),
        minimum_valid_share=float(_number(content, "minimum_valid_share", 0.0, 1.0, default=0.5)),
        precision=str(content.get("precision", "auto")), workers=_number(content, "workers", 1, 100_000),
        over_time=OverTimeSettings.parse({key: _mapping(content, key) for key in ("curve", "season", "changes") if content.get(key)}),
    )  # fmt: skip


def _place(said: Any, config: Place) -> Place:
    return storage.beside(config, str(said))


def _address(said: Any, config: Place) -> str:
    """A place, or a server that is asked."""
    return str(said) if str(said).startswith(("http://", "https://")) else str(_place(said, config))


def _text(content: Mapping[str, Any], key: str) -> str | None:
    return str(content[key]) if content.get(key) is not None else None


def _mapping(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(content[key], dict):
        raise Refused(f"{key}: must be a list of settings, such as {key}: {{name: value}}")
    return content[key]


def _day(content: Mapping[str, Any], key: str) -> date | None:
    said = content.get(key)
    return None if said is None else parse_day(key, str(said.date() if isinstance(said, datetime) else said))


def parse_day(key: str, said: str) -> date:
    """A date. Raises Refused, naming the option."""
    try:
        return date.fromisoformat(said)
    except ValueError:
        raise Refused(f"{key} {said}: must be a date such as 2017-04-30") from None


def _number(content: Mapping[str, Any], key: str, low: float, high: float, default: float | None = None) -> Any:
    said = default if content.get(key) is None else content[key]
    if said is not None and (isinstance(said, bool) or not isinstance(said, type(low) | int) or not low <= said <= high):
        raise Refused(f"{key} {said!r}: must be a number from {low} to {high}")
    return said


def _indices(said: Any) -> dict[str, Expression]:
    if not isinstance(said, dict) or not all(INDEX_NAME.fullmatch(str(name)) for name in said):
        raise Refused("indices: must be formulas by name, such as ndvi: (nir - red) / (nir + red)")
    formulas = {str(name): Expression.parse(str(text)) for name, text in sorted(said.items())}
    for name, formula in formulas.items():
        if formula.is_condition:
            raise Refused(f"indices: {name}: is true or false, not a number")
    return formulas


def _clouds(said: Any) -> tuple[str, tuple[int, ...]] | None:
    if said is None:
        return None
    asset, hidden = (said.get("asset"), said.get("hidden")) if isinstance(said, dict) else (None, None)
    if not asset or not isinstance(hidden, list) or not all(type(value) is int for value in hidden):
        raise Refused(
            "clouds: needs the asset that tells clouds from ground and the values that are hidden: {asset: scl, hidden: [3, 8, 9]}"
        )
    return str(asset), tuple(hidden)
