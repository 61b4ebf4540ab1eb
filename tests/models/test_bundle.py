"""Law 8: a model describes itself; what was changed, damaged or does not fit is refused by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import Refused
from pipeline.imagery.bands import Band
from pipeline.models.bundle import Bundle, ClassEntry, Target, differing_share, load_bundle, save_bundle
from pipeline.models.engine import Engine, Execution
from pipeline.models.networks import build_network
from tests.servers import Store, put_file


@pytest.fixture
def copy(unet: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(unet.path, tmp_path / "bundle"))


def edit(bundle: Path, **fields: object) -> None:
    path = bundle / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_bundle_comes_back_as_it_was_saved(unet: Bundle):
    again = load_bundle(unet.path)
    assert again == unet
    assert (again.halo, again.reach.stride, again.reach.exact_halo) == (48, 8, 48)
    input_BCHW, logits_BKHW = again.selftest()
    with torch.inference_mode():
        np.testing.assert_allclose(again.network()((input_BCHW - 128) / 50).numpy(), logits_BKHW.numpy(), atol=1e-4)


def test_ties_do_not_fail_the_self_test(tmp_path: Path):
    """Values half way between two classes: rounding decides, and any machine's rounding is right."""
    bundle = save_bundle(
        tmp_path / "ties", build_network("identity", 1, 3), architecture="identity", arguments={}, bands=[Band("a", std=60.0)],
        classes=[ClassEntry(number, str(number), "#000000") for number in range(3)], sample_CHW=torch.full((1, 64, 64), 30.0),
    )  # fmt: skip
    Engine(bundle, "cpu", Execution())


HEIGHT = Target("canopy height", "m", mean=12.0, std=8.0, low=0.0, high=40.0)


def test_a_target_takes_the_place_of_classes(tmp_path: Path):
    """One channel, which is another value where it is more than a twentieth of a standard deviation off."""
    network = build_network("unet", 2, 1, width=4, depth=1)
    bands = [Band("a", std=60.0), Band("b", std=60.0)]
    bundle = save_bundle(
        tmp_path / "height", network, architecture="unet", arguments={"width": 4, "depth": 1}, bands=bands, classes=HEIGHT,
        sample_CHW=torch.rand(2, 64, 64) * 100,
    )  # fmt: skip
    assert (bundle.target, bundle.classes, bundle.outputs) == (HEIGHT, (), 1)
    assert bundle.network().state_dict().keys() == network.state_dict().keys()
    edit(Path(bundle.path), target=asdict(replace(HEIGHT, mean=13.0)))
    assert load_bundle(bundle.path).model_id != bundle.model_id
    for wrong in (replace(HEIGHT, std=0.0), replace(HEIGHT, low=40.0), replace(HEIGHT, name="x" * 2000)):
        edit(Path(bundle.path), target=asdict(wrong))
        with pytest.raises(Refused, match=r"a target needs|names of"):
            load_bundle(bundle.path)
    edit(Path(bundle.path), target={"name": "height"})
    with pytest.raises(Refused, match="lacks or misspells a field"):
        load_bundle(bundle.path)
    logits_BKHW = torch.zeros(1, 1, 10, 10)
    off_BKHW = logits_BKHW.clone()
    off_BKHW[..., 0, :5], off_BKHW[..., 1, :] = 0.06, -0.04
    assert differing_share(off_BKHW, logits_BKHW) == pytest.approx(0.05)


def test_a_zip_is_the_same_bundle(unet: Bundle, tmp_path: Path):
    archive = shutil.make_archive(str(tmp_path / "model"), "zip", unet.path)
    zipped = load_bundle(archive)
    assert zipped.model_id == unet.model_id
    assert zipped.network().state_dict().keys() == unet.network().state_dict().keys()


def test_nothing_in_a_bundle_executes(unet: Bundle):
    assert {path.suffix for path in Path(unet.path).iterdir()} == {".json", ".safetensors"}


def test_the_model_id_changes_with_what_changes_a_prediction_and_with_nothing_else(unet: Bundle, copy: Path):
    edit(copy, metrics={"accuracy": 0.5}, provenance={"by": "someone"})
    assert load_bundle(copy).model_id == unet.model_id
    description = json.loads((copy / "model.json").read_text())
    description["bands"][0]["mean"] += 1
    edit(copy, bands=description["bands"])
    assert load_bundle(copy).model_id != unet.model_id


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schema_version": 99}, "schema version 99"),
        ({"architecture": "resnet_from_hub"}, "no architecture 'resnet_from_hub'"),
        ({"arguments": {"width": 8, "depht": 3}}, "does not take these arguments"),
        ({"classes": [{"id": 1, "name": "a", "color": "#000000"}]}, "class ids must be 0 to 0"),
        ({"classes": [{"id": 0, "name": "a", "color": "red"}]}, "#RRGGBB"),
        ({"halo": 20}, "not a multiple of the stride"),
        ({"files": {}}, "must list weights.safetensors"),
        ({"bands": [{"nam": "red"}]}, "lacks or misspells"),
    ],
)
def test_a_description_that_is_wrong_is_refused(copy: Path, fields: dict[str, object], message: str):
    edit(copy, **fields)
    with pytest.raises(Refused, match=message):
        load_bundle(copy).network()


def test_damaged_or_missing_files_are_refused(copy: Path, tmp_path: Path):
    weights = copy / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(Refused, match=r"weights\.safetensors has SHA-256"):
        load_bundle(copy)
    weights.unlink()
    with pytest.raises(Refused, match=r"no weights\.safetensors in it"):
        load_bundle(copy)
    with pytest.raises(Refused, match="no such bundle"):
        load_bundle(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(Refused, match="neither a bundle folder nor a zip"):
        load_bundle(tmp_path / "text")
    (copy / "model.json").write_text("{")
    with pytest.raises(Refused, match="not valid JSON"):
        load_bundle(copy)


def test_weights_of_another_network_are_refused(copy: Path):
    edit(copy, arguments={"width": 4, "depth": 3})
    with pytest.raises(Refused, match="the weights are not those of unet"):
        load_bundle(copy).network()


def test_a_bundle_is_not_overwritten(unet: Bundle):
    with pytest.raises(Refused, match="holds a bundle already"):
        save_bundle(
            Path(unet.path), build_network("identity", 1, 2), architecture="identity", arguments={}, bands=[Band("a")],
            classes=[ClassEntry(0, "x", "#000000"), ClassEntry(1, "y", "#ffffff")], sample_CHW=torch.zeros(1, 64, 64),
        )  # fmt: skip


def test_a_network_that_is_never_exact_gets_a_sensible_halo(make_bundle):
    bundle = make_bundle("lraspp_mobilenet_v3_large", bands=3, classes=2)
    assert bundle.reach.exact_halo is None and bundle.reach.why_not == "global pooling"
    assert bundle.halo == 128


def test_notes_on_a_resolution_that_is_off():
    bundle = Bundle("unet", {}, (), (), None, 0, 0, {}, resolution_m=30.0)  # type: ignore[arg-type]
    assert bundle.notes_on(30.1) == [] and bundle.notes_on(None) == []
    assert "trained on 30 m" in bundle.notes_on(10.0)[0]


def test_workers_of_a_node_fetch_a_bundle_once(unet: Bundle, store: Store, tmp_path: Path):
    for file in Path(unet.path).iterdir():
        put_file(store, file, f"tests/{tmp_path.name}/model/{file.name}")
    code = f"from pipeline.models.bundle import load_bundle; print(load_bundle('s3://tests/{tmp_path.name}/model').model_id)"
    environment = os.environ | store.environment | {"XDG_CACHE_HOME": str(tmp_path)}
    store.calm()
    loading = [subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert {process.communicate(timeout=120)[0].strip() for process in loading} == {unet.model_id}
    fetched = [path for method, path in store.requests if method == "GET" and path.split("?")[0].endswith("weights.safetensors")]
    assert len(fetched) == 1
