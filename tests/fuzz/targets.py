"""What reads strangers' files, each with small valid files to begin with; a target returns, or raises Refused or Unreadable."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import zipfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
import shapely
import torch
from rasterio.shutil import copy

from cluster.monitor_config import read_watch
from pipeline.imagery.archive import Asked, find_dated
from pipeline.imagery.bands import Band
from pipeline.imagery.catalogue import Asset, Source, find_sources
from pipeline.imagery.parcels import read_parcels
from pipeline.imagery.raster import open_scene
from pipeline.imagery.reader import SceneReader, check_scaling, preview
from pipeline.imagery.region import Area, Region, region_of
from pipeline.inference.plan import GIB, Resources, Settings, make_plan
from pipeline.models.bundle import Bundle, ClassEntry, load_bundle, save_bundle
from pipeline.models.choice import REFERENCE
from pipeline.models.networks import build_network
from pipeline.models.networks.pretrained import load_encoder
from pipeline.models.rules import save_rules
from pipeline.training.classes import read_classes
from pipeline.training.datasets import open_labelled
from pipeline.training.targets import Numbers
from tests.fuzz.mutations import changed_bytes, changed_json
from tests.toys import smooth_noise, write_scene

Target = Callable[[Path, random.Random], None]
SIDE = 70
RESOURCES = Resources("cpu fuzz", 8 * GIB)
KINDS = {"PNG": "png", "JPEG": "jpg", "JP2OpenJPEG": "jp2", "HFA": "img", "BMP": "bmp", "NITF": "ntf", "WEBP": "webp"}
RANGE = (0.0, 255.0)


def make_seeds(folder: Path) -> None:
    """The valid files that are changed."""
    values_CHW = smooth_noise(1, (3, SIDE, SIDE + 10))
    rasters = folder / "rasters"
    plain = write_scene(rasters / "plain.tif", values_CHW, nodata=0)
    tiled = {"tiled": True, "blockxsize": 32, "blockysize": 32}
    for compress in ("deflate", "lzw", "jpeg", "zstd", "packbits", "webp"):
        write_scene(rasters / f"{compress}.tif", values_CHW, compress=compress, interleave="pixel", **tiled)
    write_scene(rasters / "wide.tif", values_CHW.astype("uint16") * np.uint16(200), predictor=2, compress="deflate", bigtiff="YES")
    write_scene(rasters / "real.tif", values_CHW.astype("float32") / 7, endianness="BIG", nodata=float("nan"), interleave="band")
    masked = write_scene(rasters / "masked.tif", values_CHW, **tiled)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(masked, "r+") as dataset:
        dataset.write_mask(values_CHW[0] > 90)
    for kind, suffix in KINDS.items():
        copy(plain, rasters / f"a.{suffix}", driver=kind)
        (rasters / f"a.{suffix}.aux.xml").unlink(missing_ok=True)
    write_scene(folder / "labels.tif", (values_CHW[:1] // 90).astype(np.uint8))
    shapes = [shapely.box(301905 + 300 * step, 4152500, 302200 + 300 * step, 4154000) for step in range(6)]
    frame = geopandas.GeoDataFrame({"class": list("aabbcc")}, geometry=shapes, crs="EPSG:32612")
    frame.to_file(folder / "fields.gpkg")
    frame.to_crs(4326).to_file(folder / "fields.geojson", driver="GeoJSON")
    frame.to_parquet(folder / "fields.parquet")
    network = build_network("unet", 3, 3, width=4, depth=2)
    save_bundle(
        folder / "bundle", network, architecture="unet", arguments={"width": 4, "depth": 2},
        bands=[Band(f"band_{number}", range=RANGE) for number in (1, 2, 3)],
        classes=[ClassEntry(number, f"class {number}", "#204060") for number in range(3)], sample_CHW=torch.zeros(3, 64, 64),
    )  # fmt: skip
    torch.save(build_network("segnet", 3, 3, width=4).state_dict(), folder / "weights.pth")
    with zipfile.ZipFile(folder / "bundle.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in (folder / "bundle").iterdir():
            archive.write(file, file.name)


def targets(seeds: Path) -> dict[str, Target]:
    """The targets by name. Each changes a valid file in a folder of its own, by chance, and reads it."""
    rasters = sorted((seeds / "rasters").iterdir())
    bundle = load_bundle(seeds / "bundle")
    plain = seeds / "rasters" / "plain.tif"
    scene = open_scene(_source(plain), [Band(f"x{number}") for number in range(3)])

    def raster(folder: Path, chance: random.Random) -> None:
        seed = chance.choice(rasters)
        read_raster(_written(folder / seed.name, changed_bytes(seed.read_bytes(), chance)), bundle)

    def vector(folder: Path, chance: random.Random) -> None:
        seed = seeds / chance.choice(("fields.geojson", "fields.gpkg", "fields.parquet", "fields.geojson"))
        content = seed.read_bytes()
        by_value = seed.suffix == ".geojson" and chance.random() < 0.7
        path = _written(folder / seed.name, changed_json(json.loads(content), chance) if by_value else changed_bytes(content, chance))
        if chance.random() < 0.5:
            region = region_of(scene, Area.from_file(path))
            if region is not None:
                region.inside(region.window)
        else:
            read_labels(plain, path)

    def labels(folder: Path, chance: random.Random) -> None:
        seed = seeds / "labels.tif"
        path = _written(folder / "labels.tif", changed_bytes(seed.read_bytes(), chance))
        (read_labels if chance.random() < 0.5 else read_numbers)(plain, path)

    def tables(folder: Path, chance: random.Random) -> None:
        document = [{"name": name, "color": "#204060", "values": [number]} for number, name in enumerate(("water", "field", "town"))]
        read_classes(_written(folder / "classes.json", changed_json(document, chance)))

    def catalogue(folder: Path, chance: random.Random) -> None:
        shutil.copy(plain, folder / "plain.tif")
        item = stac_item("plain.tif")
        document = item if chance.random() < 0.5 else {"type": "FeatureCollection", "features": [item, {**item, "id": "other"}]}
        for source in find_sources([str(_written(folder / "item.json", changed_json(document, chance)))]):
            open_scene(source, [Band("red"), Band("green")])

    def archive(folder: Path, chance: random.Random) -> None:
        shutil.copy(plain, folder / "plain.tif")
        item = stac_item("plain.tif")
        item["properties"] |= {"constellation": "sentinel-2", "s2:processing_baseline": "05.00", "grid:code": "MGRS-33TVM"}
        item["bbox"], item["assets"]["SCL"] = [10, 45, 11, 46], {"href": "plain.tif", "roles": ["data"]}
        _written(folder / "item.json", changed_json(item, chance))
        links = [{"rel": rel, "href": "./item.json"} for rel in ("item", "child")]
        listed = _written(folder / "catalog.json", json.dumps({"type": "Catalog", "links": links}).encode())
        if chance.random() < 0.3:
            listed = _written(folder / "catalog.json", changed_json({"type": "Catalog", "links": links}, chance))
        for source in find_dated(str(listed), Asked(since=date(2015, 1, 1), bbox=(10, 45, 12, 47)), ["red"]).sources:
            open_scene(source, [Band("red")])

    def parcels(folder: Path, chance: random.Random) -> None:
        seed = seeds / chance.choice(("fields.geojson", "fields.gpkg", "fields.parquet"))
        by_value = seed.suffix == ".geojson" and chance.random() < 0.7
        content = seed.read_bytes()
        changed = changed_json(json.loads(content), chance) if by_value else changed_bytes(content, chance)
        read_parcels(_written(folder / seed.name, changed), chance.choice(("fid", "class")))

    def config(folder: Path, chance: random.Random) -> None:
        document = {
            "region": "a", "scenes": "catalog.json", "output": "out", "parcels": "fields.gpkg", "clouds": {"asset": "scl", "hidden": [1]},
            "rules": [{"name": "green", "when": "(nir - red) / (nir + red) > 0.5"}, {"name": "bare"}], "bbox": [1, 2, 3, 4],
            "indices": {"ndvi": "(nir - red) / (nir + red)"}, "since": "2017-01-01", "minimum_valid_share": 0.5, "lookback_days": 3,
            "season": {"windows": [{"name": "2017", "from": "2016-11-01", "to": "2017-10-31"}]}, "changes": {"dates": 3}, "curve": {},
        }  # fmt: skip
        watch = read_watch(_written(folder / "monitor.yaml", changed_json(document, chance)))
        save_rules(folder / "model", watch.rules)

    return {
        "raster": raster, "raster again": raster, "raster once more": raster, "vector": vector, "labels": labels, "classes": tables,
        "catalogue": catalogue, "archive": archive, "parcels": parcels, "config": config, "model.json": _description(seeds),
        "weights": _weights(seeds), "zip": _zip(seeds), "encoder": _encoder(seeds),
    }  # fmt: skip


def _description(seeds: Path) -> Target:
    described = json.loads((seeds / "bundle" / "model.json").read_text())

    def target(folder: Path, chance: random.Random) -> None:
        copied = Path(shutil.copytree(seeds / "bundle", folder / "bundle"))
        _written(copied / "model.json", changed_json(described, chance))
        _use(load_bundle(copied))

    return target


def _weights(seeds: Path) -> Target:
    described = json.loads((seeds / "bundle" / "model.json").read_text())

    def target(folder: Path, chance: random.Random) -> None:
        copied = Path(shutil.copytree(seeds / "bundle", folder / "bundle"))
        name = chance.choice(list(described["files"]))
        content = changed_bytes((copied / name).read_bytes(), chance)
        _written(copied / name, content)
        hashes = {**described["files"], name: hashlib.sha256(content).hexdigest()}
        _written(copied / "model.json", json.dumps({**described, "files": hashes}).encode())
        _use(load_bundle(copied))

    return target


def _zip(seeds: Path) -> Target:
    content = (seeds / "bundle.zip").read_bytes()

    def target(folder: Path, chance: random.Random) -> None:
        turned = content if chance.random() < 0.5 else content[::-1]  # the directory is at the end, where the changes are few
        changed = changed_bytes(turned, chance)
        _use(load_bundle(_written(folder / "bundle.zip", changed if turned is content else changed[::-1])))

    return target


def _encoder(seeds: Path) -> Target:
    content = (seeds / "weights.pth").read_bytes()

    def target(folder: Path, chance: random.Random) -> None:
        load_encoder(build_network("segnet", 3, 3, width=4), _written(folder / "weights.pth", changed_bytes(content, chance)))

    return target


def _use(bundle: Bundle) -> None:
    network = bundle.network()
    input_BCHW, _ = bundle.selftest()
    with torch.inference_mode():
        network(input_BCHW)


def read_raster(path: Path, bundle: Bundle) -> None:
    """All that a job does with a scene's file, short of the network."""
    scene = open_scene(_source(path), bundle.bands)
    check_scaling(scene, bundle.bands)
    plan = make_plan(scene, Region(scene.grid.window), bundle, Settings(precision="fp32"), batch=1, choice=REFERENCE, resources=RESOURCES)
    tile = plan.tile_rows(plan.shards()[0])[0][0].read
    with SceneReader(scene) as reader:
        for window in (tile, scene.grid.window._replace(height=1, width=1)):
            pixels = reader.read(window)
            assert pixels.values_CHW.shape == (3, window.height, window.width)
            assert np.isfinite(pixels.values_CHW).all()
    preview(scene, scene.grid.window, (8, 8))


def read_labels(image: Path, labels: Path) -> None:
    """All that training does with labels."""
    for item in open_labelled(str(image), labels=str(labels)):
        for window in item.pieces():
            item.read(window)


def read_numbers(image: Path, labels: Path) -> None:
    """As `read_labels`, where labels are numbers."""
    for item in open_labelled(str(image), labels=str(labels), classes=Numbers()):
        for window in item.pieces():
            numbers_HW = item.read(window).labels_HW
            assert not np.isinf(numbers_HW).any()


def stac_item(href: str) -> dict[str, Any]:
    """A STAC item of two assets."""
    named = [{"name": "red", "eo:common_name": "red"}, {"name": "green"}, {"name": "blue"}]
    return {
        "type": "Feature", "stac_version": "1.1.0", "id": "scene", "properties": {"datetime": "2024-05-01T10:00:00Z"}, "geometry": None,
        "assets": {
            "red": {"href": href, "roles": ["data"], "bands": named},
            "extra": {"href": href, "roles": ["data"], "raster:scale": 0.5, "nodata": 0, "bands": [{"name": name} for name in "xyz"]},
        },
    }  # fmt: skip


def _source(path: Path) -> Source:
    return Source(str(path), path.stem, None, (Asset(path),))


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
