"""Sentinel-2 as catalogues list it: which file holds a band, and how its numbers become reflectance.

Since processing baseline 04.00, of 25 January 2022 and of everything that was processed again since, reflectance is
(number - 1000) / 10000; before, number / 10000. Some catalogues have taken the 1000 off the numbers already and say so in
`boa_offset_applied`, beside which an offset of a band is an error that is known of them (element84/earth-search issue 9).
"""

from __future__ import annotations

import re
from typing import Any

APPLIED = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
BASELINES = ("s2:processing_baseline", "processing:version", "sentinel:processing_baseline")
REFLECTANCE = re.compile(r"B(0[1-9]|1[0-2]|8A)")
COMMON_NAMES = {
    "B01": "coastal", "B02": "blue", "B03": "green", "B04": "red", "B05": "rededge071", "B06": "rededge075", "B07": "rededge078",
    "B08": "nir", "B8A": "nir08", "B09": "nir09", "B10": "cirrus", "B11": "swir16", "B12": "swir22",
}  # fmt: skip
KEYS = {name: band for band, name in COMMON_NAMES.items()} | {"rededge1": "B05", "rededge2": "B06", "rededge3": "B07"}
SCENE_CLASSIFICATION = re.compile(r"SCL(_\d0m)?", re.IGNORECASE)
NOT_CLEAR = (0, 1, 3, 8, 9, 10, 11)  # of it: no data, saturated, cloud shadow, medium and high clouds, cirrus, snow
TILE = re.compile(r"_T?(\d\d[A-Z]{3})_")
SCALE, OFFSET = 1e-4, -0.1
PICTURE = re.compile(r"visual|TCI|preview|thumbnail|overview", re.IGNORECASE)  # three bands once more, made for the eye
PRODUCT = re.compile(r"_N(\d{2})(\d{2})_")  # the baseline in a product's name


def is_sentinel2(item: dict[str, Any]) -> bool:
    """Whether a STAC item is a scene of Sentinel-2's imager."""
    properties = item.get("properties") or {}
    said = [properties.get("constellation"), properties.get("platform"), item.get("collection")]
    return any(isinstance(text, str) and re.match(r"sentinel-?2", text, re.IGNORECASE) for text in said)


def as_listed(item: dict[str, Any]) -> dict[str, Any]:
    """The item with one asset a band, and scale, offset, nodata and names as they are; any other item as it is.

    Of a band that is there at several resolutions or in two formats the finest, and the COG, is left.
    """
    if not is_sentinel2(item):
        return item
    shift = offset_of(item)
    kept: dict[str, tuple[tuple[float, bool, str], dict[str, Any]]] = {}
    for key, asset in item["assets"].items():
        band = band_of(key, asset)
        if band is None:
            continue
        rank = (_resolution_m(key, asset), str(asset.get("href", "")).lower().endswith(".jp2"), key)
        if band not in kept or rank < kept[band][0]:
            kept[band] = rank, _described(asset, band, shift)
    others = {key: asset for key, asset in item["assets"].items() if band_of(key, asset) is None and not _is_picture(key, asset)}
    return item | {"assets": {band: asset for band, (_, asset) in kept.items()} | others}


def band_of(key: str, asset: dict[str, Any]) -> str | None:
    """The band that an asset holds alone, as ESA calls it; None for any other asset."""
    listed = asset.get("bands") or asset.get("eo:bands") or []
    if len(listed) > 1 or _is_picture(key, asset):
        return None
    names = [key, *(band.get("name") for band in listed), *(band.get("common_name") for band in listed)]
    for name in names:
        text = re.sub(r"(_\d0m|-jp2)$", "", name if isinstance(name, str) else "", flags=re.IGNORECASE)
        if REFLECTANCE.fullmatch(text.upper()):
            return text.upper()
        if text.lower() in KEYS and name == key:
            return KEYS[text.lower()]
    return None


def offset_of(item: dict[str, Any]) -> float:
    """What is added to a number times 1e-4 for reflectance: 0, or -0.1."""
    properties = item["properties"]
    if any(properties.get(name) is True for name in APPLIED):
        return 0.0
    baseline = next((text for name in BASELINES if (text := _baseline(str(properties.get(name, ""))))), None)
    named = PRODUCT.search(f"{properties.get('s2:product_uri', '')} {item.get('id', '')}")
    if baseline is None and named:
        baseline = int(named[1]), int(named[2])
    if baseline is not None:
        return OFFSET if baseline >= (4, 0) else 0.0
    return OFFSET if str(properties.get("datetime", "")) >= "2022-01-25" else 0.0


def product_of(item: dict[str, Any]) -> str | None:
    """Tile and second of the sight, which products that were processed again share; None for other items."""
    properties = item.get("properties") or {}
    tile = next((text for name in ("grid:code", "s2:mgrs_tile", "sentinel:mgrs_tile") if (text := properties.get(name))), None)
    named = TILE.search(f"_{item.get('id', '')}_")
    if not is_sentinel2(item) or not (tile or named):
        return None
    code = str(tile).removeprefix("MGRS-") if tile else named[1]  # type: ignore[index]
    return f"{code} {str(properties.get('datetime'))[:19]}"


def processed(item: dict[str, Any]) -> str:
    """What sorts the processings of a product: baseline, then when the item says it was made."""
    properties = item.get("properties") or {}
    baseline = next((text for name in BASELINES if (text := _baseline(str(properties.get(name, ""))))), (0, 0))
    made = properties.get("s2:generation_time") or properties.get("updated") or properties.get("created") or ""
    return f"{baseline[0]:02d}.{baseline[1]:02d} {made}"


def _baseline(text: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"N?0?(\d{1,2})\.?(\d{2})", text)
    return (int(found[1]), int(found[2])) if found else None


def _described(asset: dict[str, Any], band: str, shift: float) -> dict[str, Any]:
    entry = {"name": band, "common_name": COMMON_NAMES[band], "scale": SCALE, "offset": shift, "nodata": 0}
    return {"href": asset["href"], "roles": ["data"], "bands": [entry]}


def _resolution_m(key: str, asset: dict[str, Any]) -> float:
    listed = [asset, *asset.get("raster:bands", []), *asset.get("bands", [])]
    said = [entry.get(name) for entry in listed for name in ("gsd", "spatial_resolution", "raster:spatial_resolution")]
    named = re.search(r"_(\d0)m$", key)
    known = [float(named[1])] if named else [float(value) for value in said if isinstance(value, int | float)]
    return min(known, default=1000.0)


def _is_picture(key: str, asset: dict[str, Any]) -> bool:
    return PICTURE.match(key) is not None or bool({"visual", "overview", "thumbnail"} & set(asset.get("roles") or []))
