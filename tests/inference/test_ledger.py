"""Created once, read back, adopted: what two drivers on one OUT do, and what tells one OUT from another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import Refused
from pipeline.imagery.region import Region
from pipeline.imagery.storage import temporary
from pipeline.inference.ledger import SceneLedger, adopt_dataset, compare_dataset, describe_dataset, scene_folder, sweep_dataset
from pipeline.inference.plan import GIB, Plan, Resources, Settings, make_plan
from pipeline.models.bundle import Bundle
from pipeline.models.choice import REFERENCE
from tests.inference.test_plan import CPU, scene_of


@pytest.fixture
def plan(unet: Bundle) -> Plan:
    scene = scene_of(2000, 1500)
    return make_plan(
        scene, Region(scene.grid.window), unet, Settings(shard=1024), batch="auto", choice=REFERENCE,
        resources=Resources(CPU, 8 * GIB),
    )  # fmt: skip


@pytest.fixture
def ledger(tmp_path: Path, plan: Plan) -> SceneLedger:
    return SceneLedger.open(tmp_path, "scene", plan.scene.input_id)


def put(ledger: SceneLedger, name: str, content: str, *, partial: bool = False) -> None:
    finished = ledger.temporary(name)
    finished.write_text(content)
    ledger.publish_part(name, finished, partial=partial)


def test_the_first_plan_holds(ledger: SceneLedger, plan: Plan):
    assert ledger.plan() is None
    assert ledger.adopt_plan(plan) == plan
    other = replace(plan, tile=(plan.tile[0] + 8, plan.tile[1]), batch=7)
    assert ledger.adopt_plan(other) == plan  # a second driver adopts it, whatever it would have chosen


def test_parts_are_created_once_and_missing_is_what_storage_lacks(ledger: SceneLedger, plan: Plan):
    names = [plan.shard_name(shard) for shard in plan.shards()]
    assert ledger.missing(plan) == plan.shards() and ledger.parts(plan) == []
    put(ledger, names[0], "first")
    put(ledger, names[0], "second")
    assert (ledger.folder / f"{names[0]}.part").read_text() == "first"
    assert ledger.missing(plan) == plan.shards()[1:]


def test_a_partial_part_is_replaced_until_it_is_whole(ledger: SceneLedger, plan: Plan):
    name = plan.shard_name(plan.shards()[1])
    put(ledger, name, "worse", partial=True)
    put(ledger, name, "better", partial=True)
    assert [path.read_text() for _, path in ledger.parts(plan)] == ["better"]
    assert plan.shards()[1] in ledger.missing(plan)  # a shard with failed windows is not done
    put(ledger, name, "whole")
    assert [path.name for _, path in ledger.parts(plan)] == [f"{name}.part"]
    assert not (ledger.folder / f"{name}.partial").exists()


def test_the_first_manifest_wins(ledger: SceneLedger):
    assert ledger.manifest() is None
    assert ledger.commit({"run_id": "first"})
    assert not ledger.commit({"run_id": "second"})
    assert ledger.manifest() == {"run_id": "first"}


def test_fresh_opens_the_next_attempt_and_the_highest_is_current(tmp_path: Path, plan: Plan):
    input_id = plan.scene.input_id
    attempts = []
    for _ in range(12):
        ledger = SceneLedger.open(tmp_path, "scene", input_id, fresh=True)
        ledger.adopt_plan(plan)
        attempts.append(ledger.attempt)
    assert attempts == [input_id, *(f"{input_id}-{number}" for number in range(1, 12))]
    assert SceneLedger.open(tmp_path, "scene", input_id).attempt == f"{input_id}-11"
    assert SceneLedger.open(tmp_path, "scene", "0" * 16).attempt == "0" * 16  # another input starts at its own name


def test_temporary_files_are_never_listed_and_are_swept(ledger: SceneLedger, plan: Plan):
    before = replace(ledger, attempt="0" * 16)  # of an input that changed since
    out = Path(ledger.out)
    mine = [ledger.temporary("r00000c00000"), before.temporary("r00000c00000"), temporary(ledger.scene_folder, "item.json")]
    shared = [temporary(out, "dataset.json"), temporary(out / "runs", "run.json")]
    for left in [*mine, *shared]:
        left.write_text("half")
    assert ledger.parts(plan) == [] and ledger.missing(plan) == plan.shards()
    ledger.sweep()
    assert [left for left in [*mine, *shared] if left.exists()] == shared
    sweep_dataset(out)
    assert not [left for left in shared if left.exists()]


def test_clean_keeps_plan_and_manifest(ledger: SceneLedger, plan: Plan):
    ledger.adopt_plan(plan)
    put(ledger, "r00000c00000", "part")
    ledger.commit({"run_id": "x"})
    ledger.temporary("half").write_text("half")
    ledger.clean()
    assert sorted(path.name for path in ledger.folder.iterdir()) == ["manifest.json", "plan.json"]


def test_an_out_of_another_bundle_or_region_is_refused_with_the_difference(unet: Bundle, identity: Bundle, tmp_path: Path):
    mine = describe_dataset(unet, Settings(), None)
    adopt_dataset(tmp_path, mine)
    adopt_dataset(tmp_path, mine)
    compare_dataset(tmp_path, mine)
    compare_dataset(tmp_path / "elsewhere", mine)
    for other, named in [
        (describe_dataset(identity, Settings(), None), "bundle is"),
        (describe_dataset(unet, Settings(), "bbox 1 2 3 4"), "parameters.region is None there, 'bbox 1 2 3 4' here"),
        (describe_dataset(unet, Settings(precision="fp32"), None), "parameters.precision is 'auto' there, 'fp32' here"),
        (describe_dataset(unet, Settings(halo="exact"), None), "parameters.halo"),
        (describe_dataset(unet, Settings(layers=("mask", "confidence")), None), "parameters.confidence"),
    ]:
        for check in (compare_dataset, adopt_dataset):
            with pytest.raises(Refused) as refusal:
                check(tmp_path, other)
            assert named in str(refusal.value) and "choose another --output" in str(refusal.value)
    assert json.loads((tmp_path / "dataset.json").read_text()) == mine


def test_a_folder_belongs_to_one_uri(tmp_path: Path):
    assert scene_folder(tmp_path, "scene", "/a/scene.tif", claim=False) == "scene"
    assert not (tmp_path / "scenes").exists()  # looking claims nothing
    first, second = (scene_folder(tmp_path, "scene", f"/{folder}/scene.tif", claim=True) for folder in "ab")
    assert first == "scene" and second.startswith("scene-") and len(second) == len("scene-") + 8
    for claim in (True, False):
        assert scene_folder(tmp_path, "scene", "/a/scene.tif", claim=claim) == first
        assert scene_folder(tmp_path, "scene", "/b/scene.tif", claim=claim) == second
