"""The masks of a region on one date as one map: an index that GDAL and QGIS open, and a STAC item collection."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from pipeline.imagery import storage
from pipeline.imagery.pixel_space import from_pixels
from pipeline.imagery.raster import Grid
from pipeline.imagery.storage import Place
from pipeline.results.region_dates import DatedScene

NEAR_PX = 1e-3


def write_index(scenes: Sequence[DatedScene], layer: str, target: Path) -> None:
    """Write a GDAL tile index (GTI, a GeoPackage) of the scenes' rasters: in the CRS and resolution of the first, which lies on top.

    It must be called `*.gti.gpkg`, and lies in a folder two below the one that holds `scenes`. The same scenes give the same bytes.
    """
    import geopandas
    import pyogrio

    first = scenes[0].scene.grid
    outlines = [_outline(dated, first.crs or "") for dated in scenes]
    frame = geopandas.GeoDataFrame(
        {"location": [_href(dated, f"{layer}.tif") for dated in scenes], "rank": list(range(len(scenes)))}, geometry=outlines, crs=first.crs
    )
    midnight = datetime.combine(scenes[0].day, time(), UTC)
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": f"{midnight:%Y-%m-%dT%H:%M:%S.000Z}"})
    metadata = {  # the last of the order is drawn over the others
        "RESX": repr(abs(first.affine.a)), "RESY": repr(abs(first.affine.e)), **_extent(first, outlines),
        "SORT_FIELD": "rank", "SORT_FIELD_ASC": "NO", "BAND_COUNT": "1", "DATA_TYPE": "Byte", "NODATA": "255",
    }  # fmt: skip
    pyogrio.write_dataframe(frame, target, layer=layer, driver="GPKG", layer_metadata=metadata, geometry_type="Polygon")
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})


def _extent(first: Grid, outlines: Sequence[shapely.Polygon]) -> dict[str, str]:
    """The box that holds all outlines, on the pixels of the first scene, so that these are shown as they are."""
    a, b, c, d, e, f = tuple(~first.affine)[:6]
    cols, rows = np.concatenate([shapely.get_coordinates(outline) @ [(a, d), (b, e)] + (c, f) for outline in outlines]).T
    ends = [(np.floor(low + NEAR_PX), np.ceil(high - NEAR_PX)) for low, high in ((cols.min(), cols.max()), (rows.min(), rows.max()))]
    corners = [first.affine * (float(col), float(row)) for col, row in zip(*ends, strict=True)]
    (x, y), (far_x, far_y) = corners
    return {"MINX": repr(min(x, far_x)), "MAXX": repr(max(x, far_x)), "MINY": repr(min(y, far_y)), "MAXY": repr(max(y, far_y))}


def _outline(dated: DatedScene, crs: str) -> shapely.Geometry:
    """The outline of a scene's region in a CRS."""
    window, grid = dated.plan.region.window, dated.scene.grid
    box = shapely.box(window.col, window.row, window.cols.stop, window.rows.stop)
    return from_pixels(np.array([box]), crs, grid)[0]


def _href(dated: DatedScene, name: str) -> str:
    return f"../../scenes/{dated.ledger.scene}/{name}"


def item_collection(scenes: Sequence[DatedScene], input_id: str) -> dict[str, Any]:
    """The STAC items of the scenes, in order of priority, with links that hold from the collection's own place."""
    return {
        "type": "FeatureCollection",
        "features": [_item(dated) for dated in scenes],
        "tilewright:input_id": input_id,
        "tilewright:priority": "fewest nodata in hundredths, then nearest to nadir, then id",
    }


def _item(dated: DatedScene) -> dict[str, Any]:
    item = storage.read_json(dated.ledger.scene_folder / "item.json") or {}
    assets = {name: asset | {"href": _href(dated, asset["href"].removeprefix("./"))} for name, asset in (item.get("assets") or {}).items()}
    return item | {"assets": assets}


def collection_input_id(place: Place) -> str | None:
    """What an item collection of ours was made from; None where there is none."""
    return (storage.read_json(place) or {}).get("tilewright:input_id")
