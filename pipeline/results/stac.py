"""The STAC item of a scene's results: what they are, where they lie, what they were made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely
from rasterio.crs import CRS
from rasterio.transform import Affine

from pipeline.geometry.areas import to_lonlat
from pipeline.imagery import storage
from pipeline.imagery.catalogue import parse_datetime
from pipeline.imagery.storage import Place
from pipeline.inference.plan import Plan
from pipeline.models.bundle import NODATA, Bundle
from pipeline.results.polygons import PolygonOptions

EXTENSIONS = [
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
]
COG_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"
GEOPARQUET_TYPE = "application/vnd.apache.parquet"
EDGE_POINTS = 32
CLASSIFICATION = EXTENSIONS[1]
TITLES = {"mask": "Class ids", "confidence": "Confidence, 0 to 100", "probabilities": "Probability of each class, 0 to 100"}


class MadeFile(NamedTuple):
    """What an item says of a file; the SHA-256 is in hex."""

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, place: Place) -> MadeFile:
        with storage.here(place) as path:
            return cls(place.name, path.stat().st_size, storage.sha256(path))


def make_item(
    plan: Plan, bundle: Bundle, files: Mapping[str, MadeFile], input_id: str, rows: Sequence[Mapping[str, Any]],
    polygons: PolygonOptions | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The item of the files in one scene folder: `files` are layers, `quicklook` and `polygons`, by name; `rows` are the scene's
    table; `polygons` is how those were made."""
    footprint, bbox = _footprint(plan)
    grid, window = plan.scene.grid, plan.region.window
    transform = grid.affine * Affine.translation(window.col, window.row)
    when, source = parse_datetime(plan.scene.datetime), "the scene"
    if when is None:
        when = max(storage.modified(storage.place_of(band.path)) for band in plan.scene.bands).replace(microsecond=0)
        source = "the file's time of change"
    crs = grid.rasterio_crs
    code = _code(crs)
    properties: dict[str, Any] = {
        "datetime": when.isoformat().replace("+00:00", "Z"),
        "proj:code": code,
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
        "stac_extensions": [uri for uri in EXTENSIONS if bundle.classes or uri != CLASSIFICATION],
        "id": f"{plan.scene.scene_id}-{plan.layers[0]}",
        "geometry": footprint,
        **({"bbox": bbox} if bbox else {}),
        "properties": properties,
        "links": [
            {"rel": "derived_from", "href": plan.scene.uri, "title": plan.scene.scene_id},
            {"rel": "mlm:model", "href": _model_href(bundle), "type": "application/json", "title": bundle.architecture},
        ],
        "assets": {name: _asset(name, path, bundle, rows, polygons) for name, path in files.items()},
    }


def item_made_from(path: Place, polygons: PolygonOptions | None = None) -> str | None:
    """The input that an item was made from; None where there is none, or, with `polygons`, where it names none made so."""
    item = storage.read_json(path)
    if not item or (polygons and not _options(polygons).items() <= item["assets"].get("polygons", {}).items()):
        return None
    return item["properties"].get("tilewright:input_id")


def _options(polygons: PolygonOptions) -> dict[str, float]:
    return {f"tilewright:{name}": value for name, value in asdict(polygons).items()}


def _code(crs: CRS | None) -> str | None:
    """The CRS's code, as EPSG:32612; None where it has none, or only resembles one that has."""
    authority = crs.to_authority() if crs else None
    return ":".join(authority) if authority and CRS.from_authority(*authority) == crs else None


def _model_href(bundle: Bundle) -> str:
    return f"{bundle.path}/model.json" if Path(bundle.local).is_dir() else bundle.path


def _asset(
    name: str, file: MadeFile, bundle: Bundle, rows: Sequence[Mapping[str, Any]], polygons: PolygonOptions | None
) -> dict[str, Any]:  # fmt: skip
    about = {"file:size": file.size, "file:checksum": f"1220{file.sha256}"}
    if name == "quicklook":
        return {"href": f"./{file.name}", "type": "image/png", "roles": ["overview"], "title": "Quicklook", **about}
    if name == "polygons" and polygons:
        asset = {"href": f"./{file.name}", "type": GEOPARQUET_TYPE, "roles": ["data"], "title": "Polygons of the classes", **about}
        return asset | _options(polygons)
    if name == "value" and bundle.target:
        asset = {"href": f"./{file.name}", "type": COG_TYPE, "roles": ["data"], "title": bundle.target.name, **about}
        return asset | {"data_type": "float32", "nodata": "nan", **_measured(rows[0])}
    asset = {"href": f"./{file.name}", "type": COG_TYPE, "roles": ["data"], "title": TITLES[name], **about}
    if name == "probabilities":
        return asset | {"bands": [{"name": entry.name, "data_type": "uint8", "nodata": NODATA} for entry in bundle.classes]}
    asset |= {"data_type": "uint8", "nodata": NODATA}
    if name == "mask":
        asset["classification:classes"] = [
            {"value": entry.id, "name": _slug(entry.name), "title": entry.name, "color_hint": entry.color[1:].upper()}
            for entry in bundle.classes
        ]
    return asset


def _measured(row: Mapping[str, Any]) -> dict[str, Any]:
    """Unit and statistics of values, as STAC's common metadata has them; what is not known is left out."""
    names = {"minimum": "minimum", "maximum": "maximum", "mean": "mean", "std": "stddev"}
    statistics = {called: row[name] for name, called in names.items() if row[name] is not None}
    statistics["valid_percent"] = 100 * row["valid_pixel_count"] / row["pixel_count"]
    return {**({"unit": row["unit"]} if row["unit"] else {}), "statistics": statistics}


def _slug(name: str) -> str:
    """A class name as the classification extension wants it: letters, digits, hyphen and underscore."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "-" for letter in name) or "-"


def _footprint(plan: Plan) -> tuple[dict[str, Any] | None, list[float] | None]:
    """The outline of the region in longitude and latitude, cut at the antimeridian, and its bounding box (RFC 7946, 3.1.9 and 5)."""
    grid, window = plan.scene.grid, plan.region.window
    crs = grid.rasterio_crs
    if crs is None or not plan.scene.on_ground:
        return None, None
    steps = np.linspace(0, 1, EDGE_POINTS, endpoint=False)
    zero, one = np.zeros_like(steps), np.ones_like(steps)
    cols = window.col + window.width * np.concatenate([zero, steps, one, 1 - steps])
    rows = window.row + window.height * np.concatenate([steps, one, 1 - steps, zero])
    x, y = grid.affine * (cols, rows)
    lon, lat = to_lonlat(x, y, crs)
    known = np.isfinite(lon)
    if known.sum() < 3:
        return None, None
    outline = shapely.make_valid(_unrolled(lon[known], lat[known]))
    west, south, east, north = outline.bounds
    sheets = [(turn, outline.intersection(shapely.box(turn - 180, -90, turn + 180, 90))) for turn in (-720, -360, 0, 360, 720)]
    pieces = [shapely.transform(sheet, lambda xy, turn=turn: xy - (turn, 0)) for turn, sheet in sheets if sheet.area > 1e-9 * outline.area]
    if east - west >= 359.999999:
        west, east = -180.0, 180.0
    elif len(pieces) > 1:  # west of its antimeridian is east of ours
        west, east = (west + 180) % 360 - 180, (east + 180) % 360 - 180
    else:
        west, _, east, _ = pieces[0].bounds
    return shapely.geometry.mapping(shapely.union_all([piece.buffer(0) for piece in pieces])), [west, south, east, north]


def _unrolled(lon: np.ndarray, lat: np.ndarray) -> shapely.Polygon:
    """The polygon with these corners, longitudes running on past 180 degrees; one that goes round a pole is closed along it."""
    lon, lat = np.unwrap(np.append(lon, lon[0]), period=360), np.append(lat, lat[0])
    if abs(lon[-1] - lon[0]) > 180:
        pole = np.copysign(90.0, lat.mean())
        lon, lat = np.append(lon, [lon[-1], lon[0]]), np.append(lat, [pole, pole])
    return shapely.Polygon(np.column_stack([lon, lat]))
