"""A scene and a slow network that the jobs' tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.models.bundle import Bundle
from tests.toys import smooth_noise, write_scene

BLOCKS = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards of 1024 px, nine of 512."""
    return write_scene(tmp_path_factory.mktemp("scene") / "scene.tif", smooth_noise(20, (3, 1400, 1300)), **BLOCKS)


@pytest.fixture(scope="module")
def slow(make_bundle) -> Bundle:
    """A U-Net that needs seconds for a shard, so that there is time to kill what runs it."""
    return make_bundle("unet", bands=3, classes=5, exact=True, width=32, depth=3)
