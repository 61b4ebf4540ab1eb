"""Windows spread over the scenes of a run, on which engines are tried."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.geometry.windows import Window
from pipeline.imagery.catalogue import find_sources
from pipeline.imagery.raster import Scene, open_scene
from pipeline.imagery.region import Region
from pipeline.inference.trial import MOST, SHARE, SIDE, _samples, _window, prepare_trial
from pipeline.models.bundle import Bundle
from pipeline.models.choice import REFERENCE
from tests.toys import smooth_noise, write_scene


def scene_of(path: Path, bundle: Bundle, values_CHW: np.ndarray, **profile: object) -> tuple[Scene, Region]:
    write_scene(path, values_CHW, **profile)
    scene = open_scene(find_sources([str(path)])[0], bundle.bands)
    return scene, Region(scene.grid.window)


def samples(bundle: Bundle, scenes: list[tuple[Scene, Region]]) -> list[np.ndarray]:
    return [sample.pixels.values_CHW for sample in _samples(bundle, scenes, sum(region.window.pixels for _, region in scenes))]


def test_windows_are_spread_and_few(unet: Bundle, tmp_path: Path):
    ramp_HW = np.add.outer(np.arange(2000) // 20, np.arange(1500) // 20).astype(np.uint8)
    scene = scene_of(tmp_path / "scene.tif", unet, np.stack([ramp_HW] * 3))
    found = samples(unet, [scene])
    assert len(found) == 2000 * 1500 // (SHARE * SIDE**2) and all(values.shape == (3, SIDE, SIDE) for values in found)
    assert np.ptp([values.mean() for values in found]) > 50
    assert len(samples(unet, [scene] * 20)) == MOST


def test_every_scene_of_a_run_may_be_seen_and_bad_ones_are_left_out(unet: Bundle, tmp_path: Path):
    scenes = [scene_of(tmp_path / f"{value}.tif", unet, np.full((3, 600, 600), value, np.uint8)) for value in (10, 90)]
    empty = scene_of(tmp_path / "empty.tif", unet, np.zeros((3, 600, 600), np.uint8), nodata=0)
    gone = scene_of(tmp_path / "gone.tif", unet, np.full((3, 600, 600), 50, np.uint8))
    (tmp_path / "gone.tif").unlink()
    assert {int(values.max()) for values in samples(unet, [*scenes, empty, gone] * 2)} == {10, 90}


@pytest.mark.parametrize("region", [Window(0, 0, 1, 1), Window(512, 0, 300, 700), Window(1024, 1024, 200, 100)])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_windows_lie_on_the_stride_inside_the_padded_scene(unet: Bundle, tmp_path: Path, region: Window, share: float):
    scene, _ = scene_of(tmp_path / "scene.tif", unet, smooth_noise(0, (3, 1301, 1203)))
    window = _window(scene, region, 8, SIDE, share, share)
    assert window.row % 8 == window.col % 8 == 0 and (window.height, window.width) == (SIDE, SIDE)
    assert 0 <= window.row < 1301 and window.rows.stop <= 1304 and window.cols.stop <= 1208


def test_fp32_needs_no_windows(unet: Bundle, tmp_path: Path):
    scene = scene_of(tmp_path / "scene.tif", unet, smooth_noise(0, (3, 300, 300)))
    (tmp_path / "scene.tif").unlink()
    trial = prepare_trial(unet, "cpu", "fp32", [scene], workers=1)
    assert trial.choose() is REFERENCE and trial.choose_at_once() is REFERENCE
