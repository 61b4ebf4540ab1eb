"""Scenes that were segmented and published in this process, for the tests of what people open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.imagery.bands import Band
from pipeline.imagery.catalogue import Source, find_sources
from pipeline.imagery.raster import open_scene
from pipeline.imagery.region import Region
from pipeline.inference.ledger import SceneLedger
from pipeline.inference.plan import GIB, Plan, Resources, Settings, make_plan
from pipeline.inference.segment import Segmenter
from pipeline.models.bundle import Bundle, ClassEntry, Target, save_bundle
from pipeline.models.choice import REFERENCE
from pipeline.models.engine import describe_device
from pipeline.models.networks import build_network
from pipeline.results.publish import Published, publish_scene
from tests.toys import HEIGHT, write_scene

COLOURS = ("#1B7837", "#D9B365", "#C51B7D", "#2166AC")
NODATA_VALUE = 99


def class_bundle(
    folder: Path, names: Sequence[str] = ("forest", "crop", "built-up", "water"), bands: Sequence[str] = ("band_1",)
) -> Bundle:  # fmt: skip
    """A pass-through model: class k where its first band holds k."""
    return save_bundle(
        folder, build_network("identity", len(bands), len(names)), architecture="identity", arguments={},
        bands=[Band(name) for name in bands],
        classes=[ClassEntry(number, name, COLOURS[number % len(COLOURS)]) for number, name in enumerate(names)],
        sample_CHW=torch.arange(64.0).repeat(len(bands), 64, 1) % len(names),
    )  # fmt: skip


def value_bundle(folder: Path, target: Target = HEIGHT, bands: Sequence[str] = ("band_1",)) -> Bundle:
    """A model of a number a pixel: the target's mean and as many standard deviations as the first band holds."""
    network = build_network("logistic_regression", len(bands), 1)
    with torch.no_grad():
        network.weight.zero_()
        network.weight[0, 0] = 1
        network.bias.zero_()
    return save_bundle(
        folder, network, architecture="logistic_regression", arguments={}, bands=[Band(name) for name in bands], classes=target,
        sample_CHW=torch.arange(64.0).repeat(len(bands), 64, 1) % 4,
    )  # fmt: skip


@dataclass(frozen=True)
class Done:
    """A scene of which every file was published."""

    out: Path
    source: Source
    plan: Plan
    ledger: SceneLedger
    published: Published

    @property
    def folder(self) -> Path:
        return self.ledger.scene_folder


def plan_of(source: Source, bundle: Bundle, region: Region | None = None, layers: tuple[str, ...] = ()) -> Plan:
    scene = open_scene(source, bundle.bands)
    return make_plan(
        scene, region or Region(scene.grid.window), bundle, Settings(precision="fp32", shard=1024, layers=layers), batch=1,
        choice=REFERENCE, resources=Resources(describe_device("cpu"), 8 * GIB),
    )  # fmt: skip


def publish(
    out: Path, bundle: Bundle, ids_HW: np.ndarray, *, name: str = "scene", layers: tuple[str, ...] = (),
    region: Region | None = None, datetime: str | None = None, **profile: Any,
) -> Done:  # fmt: skip
    """Segment and publish a scene whose classes, or first band, are `ids_HW`; 99 is nodata."""
    path = write_scene(out.parent / f"{name}.tif", ids_HW[None].astype(np.uint8), nodata=NODATA_VALUE, **profile)
    source = replace(find_sources([str(path)])[0], datetime=datetime)
    plan = plan_of(source, bundle, region, layers)
    ledger = SceneLedger.open(out, name, plan.scene.input_id)
    segmenter = Segmenter(bundle.path, "cpu")
    for shard in plan.shards():
        segmenter.segment(plan, shard, ledger, False)
    ledger.adopt_plan(plan)
    return Done(out, source, plan, ledger, publish_scene(ledger, plan, bundle, "run", accept_partial=False))


def stripes(height: int, width: int, classes: int = 4, corner: int = 0) -> np.ndarray:
    """Slanting stripes of classes, and a corner of nodata."""
    ids_HW = np.add.outer(np.arange(height), np.arange(width)) // 7 % classes
    ids_HW[:corner, :corner] = NODATA_VALUE
    return ids_HW.astype(np.uint8)
