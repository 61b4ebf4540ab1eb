"""What a run counts has the names that the dashboard asks for."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any, ClassVar

import pytest

from cluster import metrics
from cluster.metrics import Metrics
from pipeline.inference.segment import ShardResult
from pipeline.inference.stages import STAGES, Span
from pipeline.models.bundle import Bundle
from tests.processes import PROJECT


class Metric:
    """One of Ray's, which would start Ray to count."""

    made: ClassVar[dict[str, Metric]] = {}

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]):
        self.keys, self.counted, self.default = set(tag_keys), dict[str, float](), dict[str, str]()
        self.made[name] = self

    def set_default_tags(self, tags: dict[str, str]) -> None:
        self.default = tags

    def inc(self, value: float, tags: dict[str, str] | None = None) -> None:
        assert value > 0, "as Ray wants it"
        tags = self.default | (tags or {})
        assert tags.keys() == self.keys
        label = ",".join(value for key, value in tags.items() if key != "model")
        self.counted[label] = self.counted.get(label, 0) + value

    def set(self, value: float) -> None:
        self.counted[""] = value


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Metric]:
    monkeypatch.setattr(Metric, "made", {})
    monkeypatch.setattr(metrics, "Counter", Metric)
    monkeypatch.setattr(metrics, "Gauge", Metric)
    return Metric.made


def result(read_bytes: int) -> ShardResult:
    spans = [Span("wait", 0.0, 1.5, 1), Span("device", 1.5, 3.0, 1), Span("device", 5.0, 1.0, 1)]
    return ShardResult("r0c0", 512 * 512, None, [], spans, 4, "host 1 1", read_bytes, 700)  # type: ignore[arg-type]


def test_shards_are_counted_by_what_became_of_them(made: dict[str, Metric], unet: Bundle):
    counts = Metrics(unet)
    counts.add(result(9_000), attempts=1, left=2)
    counts.add(None, attempts=3, left=1)
    counts.add(result(0), attempts=2, left=0)
    found = {name.removeprefix("tilewright_"): metric.counted for name, metric in made.items()}
    assert found == {
        "pixels": {"": 2 * 512 * 512}, "shards": {"done": 2, "failed": 1}, "retries": {"": 3},
        "stage_seconds": {"wait": 3.0, "device": 8.0},
        "read_bytes": {"": 9_000}, "written_bytes": {"": 1_400}, "shards_left": {"": 0},
    }  # fmt: skip
    assert {metric.default["model"] for metric in made.values()} == {unet.model_id[:16]}


def panels() -> list[dict[str, Any]]:
    return json.loads((PROJECT / "cluster" / "dashboard.json").read_text())["panels"]


def test_the_dashboard_shows_every_metric_and_no_other(made: dict[str, Metric], unet: Bundle):
    Metrics(unet)
    exported = {f"ray_{name}{'' if name.endswith('_left') else '_total'}" for name in made}
    asked = [target["expr"] for panel in panels() for target in panel["targets"]]
    assert {name for text in asked for name in re.findall(r"ray_tilewright_\w+", text)} == exported
    stages = {stage for text in asked for said in re.findall(r'stage=~?"([^"]+)"', text) for stage in said.split("|")}
    assert stages and stages <= set(STAGES)
    assert all(text.count("(") == text.count(")") and text.count("{") == text.count("}") for text in asked)


def test_panels_lie_beside_each_other():
    assert len({panel["id"] for panel in panels()}) == len(panels())
    for one, two in combinations((panel["gridPos"] for panel in panels()), 2):
        apart = one["x"] + one["w"] <= two["x"] or two["x"] + two["w"] <= one["x"]
        assert apart or one["y"] + one["h"] <= two["y"] or two["y"] + two["h"] <= one["y"]
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels())
