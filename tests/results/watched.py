"""A made-up monitoring with the scenes that its changes are of, segmented in this process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import shapely
from rasterio.features import rasterize

from pipeline.results.tables import read_rows
from tests.results.monitored import MODEL_ID, NAMES, Monitored, write_results
from tests.results.scenes import class_bundle, publish
from tests.toys import UTM

CORNER = (301905 + 600, 4154085 - 7000)  # of the parcels, in the CRS of the tests' scenes
SIDE = 240  # px of a scene


def watched(out: Path, made: Monitored) -> Monitored:
    """Write results, a scene's data set for each date that a change needs, and the record of a run that could not use a scene."""
    to_lonlat = pyproj.Transformer.from_crs(UTM["crs"], "EPSG:4326", always_xy=True)
    made = replace(made, origin=to_lonlat.transform(*CORNER), scene_ids=[f"scene-{number}" for number in range(made.dates)])
    write_results(out, made)
    changes = read_rows(out / "results" / "changes" / f"{made.region}.parquet")
    shown = sorted({made.days.index(row[name]) for row in changes for name in ("before_date", "since_date")})
    bundle = class_bundle(out.parent / "bundle", NAMES[: made.classes])
    for number in shown:
        publish(
            out / "models" / MODEL_ID[:16],
            bundle,
            scene_of(made, number),
            name=f"scene-{number}",
            datetime=f"{made.days[number]}T10:00:00Z",
        )
    write_run(out, made)
    return made


def shapes_in_scene(made: Monitored) -> np.ndarray:
    """The parcels in columns and rows of the scenes."""
    to_scene = pyproj.Transformer.from_crs("EPSG:4326", UTM["crs"], always_xy=True)
    inverse: Any = ~UTM["transform"]  # type: ignore[operator]
    return shapely.transform(made.shapes, lambda lonlat_N2: np.stack(inverse * to_scene.transform(*lonlat_N2.T), axis=1))


def scene_of(made: Monitored, number: int) -> np.ndarray:
    """Each parcel in its class of the date, on class 1."""
    classes = zip(shapes_in_scene(made), made.classes_at(number).tolist(), strict=True)
    return rasterize(classes, out_shape=(SIDE, SIDE), fill=1).astype(np.uint8)


def write_run(out: Path, made: Monitored) -> None:
    record = {
        "schema_version": 1, "run_id": "20171103T000000Z-abcdef", "kind": "monitoring", "region": made.region,
        "started": "2017-11-03T00:00:00Z", "outcome": "failed on data", "exit_code": 3, "dates": [str(day) for day in made.days],
        "scenes_segmented": ["a", "b"], "scenes_failed": {"S2 <b>lost</b>": "file.tif: a block's decoder said 'bad & worse'"},
        "dates_failed": {}, "software": {"python": "3.11.7", "gdal": "3.10.3"},
    }  # fmt: skip
    (out / "runs").mkdir(parents=True, exist_ok=True)
    (out / "runs" / f"{record['run_id']}.json").write_text(json.dumps(record))
