"""A parcel as scenes and masks show it on one date: small pictures for a page, with the parcel's edge on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import shapely
from PIL import Image, ImageDraw
from pyproj.exceptions import ProjError
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterioWindow

from pipeline.errors import Refused
from pipeline.geometry.windows import Window
from pipeline.imagery import storage
from pipeline.imagery.bands import Band
from pipeline.imagery.catalogue import unique_folder
from pipeline.imagery.pixel_space import to_pixels
from pipeline.imagery.raster import grid_of, opened_dataset
from pipeline.imagery.sentinel2 import COMMON_NAMES
from pipeline.imagery.storage import Place
from pipeline.inference.ledger import SceneLedger
from pipeline.inference.plan import Plan
from pipeline.models.ramp import BLANK
from pipeline.results.page import picture_uri
from pipeline.results.quicklook import painted, scene_picture

LON_LAT = CRS.from_epsg(4326).to_wkt()
SIDE = 132  # px of a picture
AROUND, LEAST = 1.7, 16  # times the parcel's own width is shown, and at least so many px of the scene
ON_SCENE, ON_MASK = (255, 236, 92), (20, 20, 20)


class Pictures(NamedTuple):
    """Data URIs: the scene, None where it cannot be read any more, and the mask."""

    scene: str | None
    mask: str


class SceneFiles(NamedTuple):
    """A scene's mask, and the plan that it was made by."""

    mask: Place
    plan: Plan


def find_scene(model: Place, scene_id: str) -> SceneFiles | None:
    """The scene of that id in a model's data set; None where it is not there (any more)."""
    safe, scenes = unique_folder(scene_id, "", False), model / "scenes"
    for name in sorted(name for name in storage.names(scenes) if name == safe or name.startswith(f"{safe}-")):
        try:
            with opened_dataset(scenes / name / "mask.tif") as dataset:
                attempt = dataset.tags().get("INPUT_ID", "")
        except Refused:
            continue
        plan = SceneLedger(str(model), name, attempt).plan()
        if plan and plan.scene.scene_id == scene_id:
            return SceneFiles(scenes / name / "mask.tif", plan)
    return None


def draw_parcel(files: SceneFiles, shape: shapely.Geometry, colours: Mapping[int, tuple[int, int, int]]) -> Pictures | None:
    """The pictures of a parcel, given in EPSG:4326; None where the mask cannot be read there."""
    try:
        with opened_dataset(files.mask) as dataset:
            (placed,) = to_pixels(np.array([shape]), LON_LAT, grid_of(dataset))
            window = _window(placed, dataset.height, dataset.width)
            ids_HW = dataset.read(1, window=RasterioWindow(window.col, window.row, window.width, window.height)) if window else None
    except (Refused, RasterioError, ProjError):
        return None
    if ids_HW is None or window is None:
        return None
    scale = SIDE / max(ids_HW.shape)
    size = tuple(max(1, round(side * scale)) for side in ids_HW.shape)
    edge = shapely.transform(
        placed, lambda pixels_N2: (pixels_N2 - (window.col, window.row)) * (size[1] / window.width, size[0] / window.height)
    )
    mask_HWC = np.asarray(Image.fromarray(painted(ids_HW, colours)).resize(size[::-1], Image.Resampling.NEAREST))
    scene_HWC = _scene_picture(files.plan, window, (size[0], size[1]))
    scene = None if (scene_HWC == BLANK).all() else picture_uri(_outlined(scene_HWC, edge, ON_SCENE), "JPEG")
    return Pictures(scene, picture_uri(_outlined(mask_HWC, edge, ON_MASK)))


def _scene_picture(plan: Plan, window: Window, shape: tuple[int, int]) -> np.ndarray:
    """As its quicklook shows it; the mask begins where the plan's region does."""
    region = plan.region.window
    bands = [Band(band.name, common_name=COMMON_NAMES.get(band.name.upper())) for band in plan.scene.bands]
    inside = Window(window.row + region.row, window.col + region.col, window.height, window.width)
    return scene_picture(plan.scene, bands, inside, shape)


def _window(placed: shapely.Geometry, height: int, width: int) -> Window | None:
    """A square around a parcel, moved into a raster of that size and cut where it is larger; None where the parcel lies outside."""
    box = np.array(shapely.bounds(placed))
    if not np.isfinite(box).all() or (box[:2] >= (width, height)).any() or (box[2:] <= 0).any():
        return None
    side = int(np.ceil(max(LEAST, AROUND * float(max(box[2] - box[0], box[3] - box[1])))))
    middle = (box[:2] + box[2:]) / 2
    left, top = (int(max(0, min(centre - side / 2, most - side))) for centre, most in zip(middle, (width, height), strict=True))
    return Window(top, left, min(side, height - top), min(side, width - left))


def _outlined(picture_HWC: np.ndarray, edge: shapely.Geometry, colour: tuple[int, int, int]) -> np.ndarray:
    picture = Image.fromarray(picture_HWC)
    draw = ImageDraw.Draw(picture)
    for part in shapely.get_parts(shapely.boundary(edge)):
        draw.line([tuple(point) for point in shapely.get_coordinates(part).tolist()], fill=colour, width=2, joint="curve")
    return np.asarray(picture)
