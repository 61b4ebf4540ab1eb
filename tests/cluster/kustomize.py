"""Renders the few things of kustomize that cluster/kubernetes uses, and refuses all else, so that tests need no kubectl."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

Document = dict[str, Any]
FEATURES = {"apiVersion", "kind", "namespace", "resources", "components", "configMapGenerator", "images", "patches", "replacements"}
CLUSTERWIDE = {"Namespace"}
LOCAL = {"config.kubernetes.io/local-config": "true"}


def render(folder: Path) -> list[Document]:
    """What `kubectl kustomize` prints for a folder, in no particular order."""
    return _build(folder, [])


def _build(folder: Path, before: list[Document]) -> list[Document]:
    """One kustomization: its resources and components, then what it does to them, in kustomize's order."""
    content = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert content.keys() <= FEATURES, f"{folder}: {content.keys() - FEATURES}"
    documents = [*before, *_resources(folder, content)]
    for component in content.get("components", []):
        documents = _build(folder / component, documents)
    documents += [_config_map(folder, **entry) for entry in content.get("configMapGenerator", [])]
    for patch in content.get("patches", []):
        documents = [_patched(document, folder, **patch) for document in documents]
    for document in documents if "namespace" in content else ():
        if document["kind"] not in CLUSTERWIDE:
            document["metadata"]["namespace"] = content["namespace"]
    for image in content.get("images", []):
        for container in (found for document in documents for found in containers(document)):
            _retag(container, **image)
    for replacement in content.get("replacements", []):
        _replace(documents, **replacement)
    documents = [document for document in documents if document["metadata"].get("annotations") != LOCAL]
    names = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(names) == len(set(names)), f"{folder}: {names}"
    return documents


def _resources(folder: Path, content: Document) -> Iterator[Document]:
    for name in content.get("resources", []):
        if (folder / name).is_dir():
            yield from _build(folder / name, [])
        else:
            for document in yaml.safe_load_all((folder / name).read_text()):
                yield json.loads(json.dumps(document))  # without aliases, which share what they name


def _config_map(folder: Path, *, name: str, files: list[str], options: dict[str, Any]) -> Document:
    assert options == {"disableNameSuffixHash": True}
    data = {file: (folder / file).read_text() for file in files}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def _patched(document: Document, folder: Path, *, target: dict[str, str], patch: str | None = None, path: str | None = None) -> Document:
    assert target.keys() == {"kind"}
    if not re.fullmatch(target["kind"], document["kind"]):
        return document
    operations = yaml.safe_load(patch or (folder / str(path)).read_text())
    return jsonpatch.apply_patch(document, operations)


def _retag(container: Document, *, name: str, newTag: str, newName: str | None = None) -> None:
    if container["image"].rpartition(":")[0] == name:
        container["image"] = f"{newName or name}:{newTag}"


def _replace(documents: list[Document], *, source: dict[str, str], targets: list[dict[str, Any]]) -> None:
    (origin,) = (document for document in documents if document["kind"] == source["kind"])
    holder, key = _walk(origin, source["fieldPath"])
    for target in targets:
        assert target["select"].keys() == {"kind"}
        for document in documents:
            if document["kind"] == target["select"]["kind"]:
                for path in target["fieldPaths"]:
                    inside, name = _walk(document, path)
                    assert name in inside or target.get("options") == {"create": True}, f"{path} is not there"
                    inside[name] = json.loads(json.dumps(holder[key]))


def _walk(document: Document, path: str) -> tuple[Document, str]:
    """The mapping that holds the last field of a path such as `spec.containers.[name=ray-head].image`."""
    *steps, last = path.split(".")
    where: Any = document
    for step in steps:
        if named := re.fullmatch(r"\[name=(.+)\]", step):
            (where,) = (item for item in where if item["name"] == named[1])
        else:
            where = where[step]
    return where, last


def containers(document: Any) -> Iterator[Document]:
    """Every container of a document, wherever its pods' templates are."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key in ("containers", "initContainers") and isinstance(value, list):
                yield from value
            yield from containers(value)
    elif isinstance(document, list):
        for item in document:
            yield from containers(item)
