"""A small archive that grows, a config that watches it, and the job as a function."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
import shapely
import yaml
from rasterio.transform import from_origin

from jobs.monitor_crops import main
from tests.results.zones import EAST, corner

RULES = [{"name": "green", "when": "(nir - red) / (nir + red) >= 0.5"}, {"name": "bare"}]
SIDE = 160  # px of 10 m
FIELD_M = 200.0
CLOUD = 9  # in the scene classification


@dataclass(frozen=True)
class Archive:
    """A STAC catalogue in a folder, and what is watched beside it."""

    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def add(
        self, day: str, *, name: str = "", crs: str = EAST, at: tuple[float, float] | None = None, green: float = 0.5, clouds: float = 0.0,
        shape: tuple[int, int] = (SIDE, SIDE), bands: tuple[str, ...] = ("B04", "B08"), **properties: Any,
    ) -> Path:  # fmt: skip
        """Add a scene: the northern share `green` of it has a high NDVI; the western share `clouds` is hidden. Returns its item."""
        name = name or f"scene-{day}"
        height, width = shape
        number = sum(map(ord, name + day))
        random = np.random.default_rng(number)
        red_HW, nir_HW = random.integers(2000, 2400, shape), random.integers(2600, 3000, shape)
        nir_HW[: round(green * height)] = random.integers(7000, 8000, (round(green * height), width))
        scl_HW = np.full((height // 2, width // 2), 4, np.uint8)
        scl_HW[:, : round(clouds * width / 2)] = CLOUD
        x, y = at or corner(crs)
        layers = {"B04": (red_HW.astype(np.uint16), 10), "B08": (nir_HW.astype(np.uint16), 10), "SCL": (scl_HW, 20)}
        (self.folder / "archive").mkdir(parents=True, exist_ok=True)
        for band in (*bands, "SCL"):
            values_HW, side = layers[band]
            with rasterio.open(
                self.folder / "archive" / f"{name}_{band}.tif", "w", driver="GTiff", height=values_HW.shape[0], width=values_HW.shape[1],
                count=1, dtype=values_HW.dtype, crs=crs, transform=from_origin(x, y, side, side), nodata=0,
            ) as dataset:  # fmt: skip
                dataset.write(values_HW, 1)
        item = {
            "type": "Feature", "stac_version": "1.0.0", "id": name, "geometry": None, "links": [],
            "properties": {"datetime": f"{day}T10:00:00Z", "constellation": "sentinel-2", "s2:processing_baseline": "05.00", **properties},
            "assets": {band: {"href": f"{name}_{band}.tif", "roles": ["data"]} for band in (*bands, "SCL")},
        }  # fmt: skip
        path = self.folder / "archive" / f"{name}.json"
        path.write_text(json.dumps(item))
        items = sorted(file.name for file in path.parent.glob("*.json") if file.name != "catalog.json")
        links = [{"rel": "item", "href": f"./{item}"} for item in items]
        (path.parent / "catalog.json").write_text(json.dumps({"type": "Catalog", "links": links}))
        return path

    def fields(self, rows: int = 4, cols: int = 4) -> Path:
        """Square parcels from the centre on, named by row and column; each is 200 m a side."""
        x, y = corner(EAST)
        boxes, ids = [], []
        for row in range(rows):
            for col in range(cols):
                left, top = x + col * FIELD_M, y - row * FIELD_M
                boxes.append(shapely.box(left, top - FIELD_M, left + FIELD_M, top))
                ids.append(f"r{row}c{col}")
        path = self.folder / "fields.gpkg"
        geopandas.GeoDataFrame({"parcel_id": ids}, geometry=boxes, crs=EAST).to_file(path, driver="GPKG")
        return path

    def config(self, **changes: Any) -> Path:
        """The config, with some keys in place of others; None takes one away."""
        content = {
            "region": "valley", "scenes": "archive/catalog.json", "parcels": "fields.gpkg", "rules": RULES, "output": "out",
            "indices": {"ndvi": "(nir - red) / (nir + red)"}, **changes,
        }  # fmt: skip
        path = self.folder / "monitor.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
        return path

    def run(self, *options: str, **changes: Any) -> int:
        """The job's exit code."""
        return main(["--config", str(self.config(**changes)), *options])

    def record(self) -> dict[str, Any]:
        """What the last run noted."""
        return json.loads(max((self.out / "runs").glob("*.json"), key=lambda path: path.stat().st_mtime_ns).read_text())
