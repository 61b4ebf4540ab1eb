"""The STAC item of a scene's results: what they are, where they lie, what they were made from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from rasterio.transform import Affine

from pipeline.geometry.areas import to_lonlat
from pipeline.imagery import storage
from pipeline.inference.plan import Plan
from pipeline.models.bundle import NODATA, Bundle

EXTENSIONS = [
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
]
COG_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"
EDGE_POINTS = 32
TITLES = {"mask": "Class ids", "confidence": "Confidence, 0 to 100", "probabilities": "Probability of each class, 0 to 100"}


def make_item(plan: Plan, bundle: Bundle, files: Mapping[str, Path], input_id: str) -> dict[str, Any]:
    """The item of the files in one scene folder: `files` are layers and `quicklook`, by name."""
    footprint, bbox = _footprint(plan)
    grid, window = plan.scene.grid, plan.region.window
    transform = grid.affine * Affine.translation(window.col, window.row)
    when, source = plan.scene.datetime, "the scene"
    if when is None:
        newest = max(os.stat(band.path).st_mtime for band in plan.scene.bands)
        when, source = datetime.fromtimestamp(newest, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "the file's time of change"
    crs = grid.rasterio_crs
    code = crs.to_authority() if crs else None
    properties: dict[str, Any] = {
        "datetime": when,
        "proj:code": ":".join(code) if code else None,
        "proj:shape": [window.height, window.width],
        "proj:transform": list(transform)[:6],
        "processing:level": "L4",
        "processing:software": dict(sorted(plan.software.items())),
        "tilewright:datetime_source": source,
        "tilewright:input_id": input_id,
        "tilewright:model_id": bundle.model_id,
        "tilewright:precision": plan.precision,
    }
    if crs and not code:
        properties["proj:wkt2"] = crs.to_wkt(version="WKT2_2019")
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": EXTENSIONS,
        "id": f"{plan.scene.scene_id}-mask",
        "geometry": footprint,
        **({"bbox": bbox} if bbox else {}),
        "properties": properties,
        "links": [
            {"rel": "derived_from", "href": plan.scene.uri, "title": plan.scene.scene_id},
            {"rel": "mlm:model", "href": _model_href(bundle), "type": "application/json", "title": bundle.architecture},
        ],
        "assets": {name: _asset(name, path, bundle) for name, path in files.items()},
    }


def item_input_id(path: Path) -> str | None:
    """The input that an item was made from; None where there is none."""
    item = storage.read_json(path)
    return item["properties"].get("tilewright:input_id") if item else None


def _model_href(bundle: Bundle) -> str:
    return str(Path(bundle.path, "model.json")) if Path(bundle.path).is_dir() else bundle.path


def _asset(name: str, path: Path, bundle: Bundle) -> dict[str, Any]:
    about = {"file:size": path.stat().st_size, "file:checksum": f"1220{storage.sha256(path)}"}
    if name == "quicklook":
        return {"href": f"./{path.name}", "type": "image/png", "roles": ["overview"], "title": "Quicklook", **about}
    asset = {"href": f"./{path.name}", "type": COG_TYPE, "roles": ["data"], "title": TITLES[name], **about}
    if name == "probabilities":
        return asset | {"bands": [{"name": entry.name, "data_type": "uint8", "nodata": NODATA} for entry in bundle.classes]}
    asset |= {"data_type": "uint8", "nodata": NODATA}
    if name == "mask":
        asset["classification:classes"] = [
            {"value": entry.id, "name": _slug(entry.name), "title": entry.name, "color_hint": entry.color[1:].upper()}
            for entry in bundle.classes
        ]
    return asset


def _slug(name: str) -> str:
    """A class name as the classification extension wants it: letters, digits, hyphen and underscore."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "-" for letter in name)


def _footprint(plan: Plan) -> tuple[dict[str, Any] | None, list[float] | None]:
    """The outline of the region in longitude and latitude, cut at the antimeridian, and its bounding box."""
    grid, window = plan.scene.grid, plan.region.window
    steps = np.linspace(0, 1, EDGE_POINTS, endpoint=False)
    zero, one = np.zeros_like(steps), np.ones_like(steps)
    cols = window.col + window.width * np.concatenate([zero, steps, one, 1 - steps])
    rows = window.row + window.height * np.concatenate([steps, one, 1 - steps, zero])
    crs = grid.rasterio_crs
    if crs is None or not plan.scene.on_ground:
        return None, None
    lon, lat = to_lonlat(*(grid.affine * (cols, rows)), crs)
    known = np.isfinite(lon) & np.isfinite(lat)
    if known.sum() < 3:
        return None, None
    lon, lat = lon[known], lat[known]
    crosses = lon.max() - lon.min() > 180
    outline = shapely.make_valid(shapely.Polygon(np.column_stack([np.where(lon < 0, lon + 360, lon) if crosses else lon, lat])))
    west, south, east, north = outline.bounds
    if crosses and east > 180:
        beyond = shapely.transform(outline.intersection(shapely.box(180, -90, 360, 90)), lambda xy: xy - (360, 0))
        outline = shapely.union_all([outline.intersection(shapely.box(0, -90, 180, 90)), beyond])
        east -= 360
    return shapely.geometry.mapping(outline), [west, south, east, north]
