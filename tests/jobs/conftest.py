"""What the tests of jobs share: a scene, and a job that takes its time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.ordered import Faults
from tests.toys import smooth_noise, write_scene

BLOCKS = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray names itself in the environment of a process that has joined it: jobs in this process would join it, too, for each run."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards of 1024 px, nine of 512."""
    return write_scene(tmp_path_factory.mktemp("scene") / "scene.tif", smooth_noise(20, (3, 1400, 1300)), **BLOCKS)


@pytest.fixture(scope="session")
def slowly(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which a job waits 3 s before each shard, so that there is time to kill what runs it."""
    faults = Faults(tmp_path_factory.mktemp("slowly"))
    faults.order({"every shard": {"sleep": 3.0}})
    return faults.environment
