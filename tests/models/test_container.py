"""Bundles of strangers: nothing is read outside them, unpacked or executed, and nothing large is made of something small."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import Refused
from pipeline.models.bundle import Bundle, load_bundle
from pipeline.models.container import LARGEST, SELFTEST, WEIGHTS


@pytest.fixture
def folder(unet: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(unet.path, tmp_path / "bundle"))


CLASSES = [(0, 7, "#000000"), (True, "a", "#000000"), (0, "a", "#00000g"), (0, "a\udcff", "#000000"), (0, "a" * 2000, "#000000")]


def described(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The bundle with its description changed in place, and all hashes right."""
    content = json.loads((folder / "model.json").read_text())
    content["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (WEIGHTS, SELFTEST)}
    change(content)
    (folder / "model.json").write_text(json.dumps(content))
    return folder


def test_a_bundle_names_its_own_files_only(folder: Path, tmp_path: Path):
    (tmp_path / "secret").write_text("secret")
    for name in ("../secret", str(tmp_path / "secret"), "/dev/zero", "a/b", ".hidden", ""):
        with pytest.raises(Refused, match="must list files by name"):
            load_bundle(described(folder, lambda content, name=name: content.update(files={**content["files"], name: "0" * 64})))


@pytest.mark.parametrize(
    "change",
    [
        *({"classes": [{"id": number, "name": name, "color": color}]} for number, name, color in CLASSES),
        {"classes": {}}, {"bands": []}, {"bands": [{"name": "a", "std": float("nan")}]},
        {"bands": [{"name": "a", "mean": 10**400}]}, {"bands": "red"}, {"reach": [8, 48, None]}, {"reach": {"stride": 0}},
        {"halo": "48"}, {"halo": 10**30 + 1}, {"architecture": ["unet"]}, {"architecture": "os.system"}, {"arguments": {"width": "wide"}},
        {"activation_bytes_per_pixel": -1}, {"tolerance": {"fp32": 1}}, {"tolerance": None}, {"files": []}, {"files": {"a": 1}},
        {"schema_version": 2}, {"resolution_m": "30"}, {"metrics": []}, {"licences": {"a": 1}}, {"path": "/etc"},
    ],
    ids=lambda change: json.dumps(change)[:40],
)  # fmt: skip
def test_a_description_of_other_types_is_one_line(folder: Path, change: dict[str, Any]):
    try:
        described(folder, lambda content: content.update(change))
        load_bundle(folder).network()
    except Refused as refused:
        assert ("\n" not in str(refused) and str(folder) in str(refused)) or "architecture" in str(refused)
    else:
        assert change == {"path": "/etc"} and load_bundle(folder).path == str(folder), "said by the place, not by the file"


def test_json_that_nobody_means(folder: Path):
    for text in ("[]", "null", "7", "{", "[" * 100_000, "\xff", '{"schema_version": 1}', '{"schema_version": 1, "files": 5}'):
        (folder / "model.json").write_text(text, encoding="latin1")
        with pytest.raises(Refused):
            load_bundle(folder)


def test_arguments_that_make_a_network_of_terabytes_take_no_memory(folder: Path):
    bundle = load_bundle(described(folder, lambda content: content.update(arguments={"width": 200_000, "depth": 6})))
    with pytest.raises(Refused, match="the weights are not those of unet"):
        bundle.network()


def test_more_weights_than_the_network_has(folder: Path):
    weights = load_file(folder / "weights.safetensors")
    save_file({**weights, "more": torch.zeros(3)}, folder / "weights.safetensors")
    with pytest.raises(Refused, match=r"1 tensors differ, more among them, which is \(3,\) in the file and missing in the network"):
        load_bundle(described(folder, lambda _: None)).network()


def test_a_self_test_of_another_shape(folder: Path):
    save_file({"input_BCHW": torch.zeros(1, 3, 8, 8)}, folder / "selftest.safetensors")
    with pytest.raises(Refused, match="is no self-test of 3 bands and 5 outputs"):
        load_bundle(described(folder, lambda _: None)).selftest()


class Payload:
    """What a pickle may hold: something that runs when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('it ran')",)


def test_nothing_in_a_bundle_is_unpickled(folder: Path):
    (folder / "weights.safetensors").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(Refused, match=r"weights\.safetensors is not in the safetensors format"):
        load_bundle(described(folder, lambda _: None)).network()


def zipped(folder: Path, target: Path, **more: bytes) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
        for name, content in more.items():
            archive.writestr(name, content)
    return target


def test_a_zip_with_paths_writes_nothing_anywhere(folder: Path, tmp_path: Path):
    bundle = zipped(folder, tmp_path / "bundle.zip", **{"../escaped": b"x", "/escaped": b"x"})
    before = sorted(tmp_path.rglob("*"))
    load_bundle(bundle).network()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_zip_bomb_is_refused_by_its_size(folder: Path, tmp_path: Path):
    """A kilobyte a megabyte: what it says it unpacks to is looked at first."""
    (folder / "model.json").unlink()
    bundle = zipped(folder, tmp_path / "bundle.zip", **{"model.json": bytes(LARGEST["model.json"] + 1)})
    assert bundle.stat().st_size < LARGEST["model.json"] / 20
    with pytest.raises(Refused, match=r"model\.json has 16,777,217 bytes, at most 16,777,216 are read"):
        load_bundle(bundle)


def test_a_zip_that_lies_about_its_sizes(folder: Path, tmp_path: Path):
    content = zipped(folder, tmp_path / "bundle.zip").read_bytes()
    for name in ("model.json", "weights.safetensors"):
        at = content.rindex(name.encode()) - 46  # its entry in the central directory
        (tmp_path / "lying.zip").write_bytes(content[: at + 24] + (100).to_bytes(4, "little") + content[at + 28 :])
        with pytest.raises(Refused):
            load_bundle(tmp_path / "lying.zip")
    encrypted = bytearray(content)
    encrypted[content.rindex(b"model.json") - 46 + 8] |= 1
    (tmp_path / "encrypted.zip").write_bytes(encrypted)
    with pytest.raises(Refused, match="cannot be read"):
        load_bundle(tmp_path / "encrypted.zip")
    for junk in (b"", b"PK\x05\x06", content[: len(content) // 2], io.BytesIO(content).read()[::-1]):
        (tmp_path / "junk.zip").write_bytes(junk)
        with pytest.raises(Refused):
            load_bundle(tmp_path / "junk.zip")
