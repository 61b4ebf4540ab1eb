"""Make this folder from eo-learn's example patch: a STAC catalogue of dated NDVI and cloud rasters, and the parcels.

python jobs/demo/season/convert.py EO-LEARN/example_data jobs/demo/season
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
from rasterio.transform import from_bounds
from rasterio.warp import transform_bounds

CRS = "EPSG:32633"
NOTHING = -32768
PROFILE = {"driver": "GTiff", "count": 1, "compress": "deflate", "zlevel": 9, "predictor": 2, "crs": CRS}


def main(source: Path, target: Path) -> None:
    patch = source / "TestEOPatch"
    times = [datetime.fromisoformat(text) for text in json.loads((patch / "timestamps.json").read_text())]
    ring = json.loads((patch / "bbox.geojson").read_text())["coordinates"][0]
    west, south, east, north = min(x for x, _ in ring), min(y for _, y in ring), max(x for x, _ in ring), max(y for _, y in ring)
    ndvi_THW, clouds_THW = (np.load(patch / name)[..., 0] for name in ("data/NDVI.npy", "mask/CLM.npy"))
    height, width = ndvi_THW.shape[1:]
    shape = {"height": height, "width": width, "transform": from_bounds(west, south, east, north, width, height)}
    box = list(transform_bounds(CRS, "EPSG:4326", west, south, east, north))
    (target / "scenes").mkdir(parents=True, exist_ok=True)
    links = []
    for when, ndvi_HW, clouds_HW in zip(times, ndvi_THW, clouds_THW, strict=True):
        name = f"{when:%Y%m%dT%H%M%S}"
        with rasterio.open(target / "scenes" / f"{name}_ndvi.tif", "w", dtype="int16", nodata=NOTHING, **PROFILE, **shape) as dataset:
            dataset.write(np.round(ndvi_HW * 1e4).astype(np.int16), 1)
            dataset.scales, dataset.descriptions = (1e-4,), ("ndvi",)
        with rasterio.open(target / "scenes" / f"{name}_clm.tif", "w", dtype="uint8", **PROFILE, **shape) as dataset:
            dataset.write(clouds_HW.astype(np.uint8), 1)
        (target / "scenes" / f"{name}.json").write_text(json.dumps(item(name, when, box), indent=1) + "\n")
        links.append({"rel": "item", "href": f"./scenes/{name}.json", "type": "application/geo+json"})
    catalogue = {"type": "Catalog", "stac_version": "1.0.0", "id": "slovenia-patch", "description": "NDVI of one Sentinel-2 patch"}
    (target / "catalog.json").write_text(json.dumps(catalogue | {"links": links}, indent=1) + "\n")
    parcels = geopandas.read_file(patch / "vector_timeless" / "LULC.gpkg").rename(columns={"index": "parcel_id"})
    columns = ["parcel_id", "LULC_ID", "LULC_NAME", "geometry"]
    (target / "parcels.geojson").unlink(missing_ok=True)
    parcels[columns].to_file(target / "parcels.geojson", driver="GeoJSON", COORDINATE_PRECISION=2)


def item(name: str, when: datetime, box: list[float]) -> dict[str, Any]:
    west, south, east, north = box
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": name, "bbox": box, "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"datetime": f"{when:%Y-%m-%dT%H:%M:%SZ}", "constellation": "sentinel-2"}, "links": [],
        "assets": {
            "ndvi": {"href": f"./{name}_ndvi.tif", "type": "image/tiff; application=geotiff", "roles": ["data"]},
            "clm": {"href": f"./{name}_clm.tif", "type": "image/tiff; application=geotiff", "roles": ["data", "cloud"]},
        },
    }  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
