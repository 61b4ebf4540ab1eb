"""A parcel's pictures show its own place in scene and mask, and say so where one of them is gone."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image

from pipeline.results.change_pictures import SIDE, draw_parcel, find_scene
from pipeline.results.report_changes import shapes_of
from tests.results.monitored import COLOURS, MODEL_ID, Monitored
from tests.results.watched import watched

RGB = {number: tuple(bytes.fromhex(colour[1:])) for number, colour in enumerate(COLOURS)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Monitored]:
    out = tmp_path_factory.mktemp("watched") / "out"
    return out, watched(out, Monitored(parcels=49, dates=7, classes=4, districts=4, seed=19, field_m=700))


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def scenes_there(out: Path) -> list[str]:
    return sorted(folder.name for folder in (out / "models" / MODEL_ID[:16] / "scenes").iterdir())


def test_the_middle_is_the_parcels_class_and_its_edge_is_drawn(made: tuple[Path, Monitored]) -> None:
    out, monitored = made
    shapes = shapes_of(out / "results" / "parcel_geometry" / "region.parquet", monitored.ids.tolist())
    assert len(shapes) == monitored.parcels
    for name in scenes_there(out):
        files = find_scene(out / "models" / MODEL_ID[:16], name)
        assert files and files.plan.scene.scene_id == name
        kinds = monitored.classes_at(int(name.rpartition("-")[2]))
        for number in (0, 8, 24, 40):
            found = draw_parcel(files, shapes[monitored.ids[number]], RGB)
            assert found is not None and found.scene is not None
            mask_HWC, scene_HWC = pixels(found.mask), pixels(found.scene)
            assert max(mask_HWC.shape) == SIDE and mask_HWC.shape == scene_HWC.shape
            middle = tuple(mask_HWC[mask_HWC.shape[0] // 2, mask_HWC.shape[1] // 2])
            assert middle == RGB[kinds[number]]
            dark = (mask_HWC.max(axis=2) < 30).sum()
            assert 150 < dark < 2000
            assert (np.ptp(scene_HWC, axis=2) > 60).sum() > 100  # the yellow edge on a grey scene


def test_a_parcel_elsewhere_has_none(made: tuple[Path, Monitored]) -> None:
    out = made[0]
    files = find_scene(out / "models" / MODEL_ID[:16], scenes_there(out)[0])
    assert files is not None
    assert draw_parcel(files, shapely.box(0, 0, 1, 1), RGB) is None
    assert draw_parcel(files, shapely.Polygon(), RGB) is None


def test_without_its_scene_the_mask_is_shown_and_without_its_mask_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = watched(out, Monitored(parcels=49, dates=7, classes=4, districts=4, seed=19, field_m=700))
    model, name = out / "models" / MODEL_ID[:16], scenes_there(out)[0]
    files = find_scene(model, name)
    assert files is not None
    Path(files.plan.scene.bands[0].path).unlink()
    found = draw_parcel(files, made.shapes[8], RGB)
    assert found is not None and found.scene is None and pixels(found.mask).shape[0] == SIDE
    (model / "scenes" / name / "mask.tif").unlink()
    assert draw_parcel(files, made.shapes[8], RGB) is None and find_scene(model, name) is None
    assert find_scene(model, "never seen") is None and find_scene(tmp_path / "nowhere", name) is None
