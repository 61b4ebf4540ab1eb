"""Make the schemas beside this file anew, from CustomResourceDefinitions (YAML) and Kubernetes' swagger.json: README.md says from which.

python tests/cluster/schemas/vendor.py NAME.json.gz FILE [FILE ...]
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = "io.k8s.api."
NEEDED = [
    "core.v1.Namespace", "core.v1.ServiceAccount", "core.v1.ConfigMap", "core.v1.Service", "core.v1.PersistentVolumeClaim",
    "apps.v1.StatefulSet", "batch.v1.CronJob", "networking.v1.NetworkPolicy",
]  # fmt: skip


def main(target: str, *sources: str) -> None:
    """Write {"<apiVersion> <kind>": schema, "definitions": {...}}, without descriptions."""
    found: dict[str, Any] = {}
    for source in sources:
        content = yaml.safe_load(Path(source).read_text()) if source.endswith(".yaml") else json.loads(Path(source).read_text())
        found |= of_swagger(content["definitions"]) if "definitions" in content else of_definition(content["spec"])
    text = json.dumps(without_descriptions(found), sort_keys=True, separators=(",", ":"))
    (Path(__file__).parent / target).write_bytes(gzip.compress(text.encode(), mtime=0))


def of_definition(spec: dict[str, Any]) -> dict[str, Any]:
    """The schema of a custom resource's version v1."""
    (schema,) = (version["schema"]["openAPIV3Schema"] for version in spec["versions"] if version["name"] == "v1")
    return {f"{spec['group']}/v1 {spec['names']['kind']}": schema}


def of_swagger(definitions: dict[str, Any]) -> dict[str, Any]:
    """The kinds that are needed and what they refer to."""
    left, kept = [ROOT + name for name in NEEDED], {}
    while left:
        name = left.pop()
        if name not in kept:
            kept[name] = definitions[name]
            left += references(definitions[name])
    group = {"core": "", "apps": "apps/", "batch": "batch/", "networking": "networking.k8s.io/"}
    kinds = {f"{group[room]}{version} {kind}": ROOT + name for name in NEEDED for room, version, kind in [name.split(".")]}
    return {"definitions": kept} | {kind: {"$ref": f"#/definitions/{name}"} for kind, name in kinds.items()}


def references(schema: Any) -> Iterator[str]:
    """The names of the definitions that a schema refers to."""
    if isinstance(schema, dict):
        if isinstance(reference := schema.get("$ref"), str):
            yield reference.removeprefix("#/definitions/")
        for value in schema.values():
            yield from references(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from references(item)


def without_descriptions(schema: Any) -> Any:
    """Their text is most of the size, and says nothing to a validator. A property may be called so, too: it is no text."""
    if isinstance(schema, dict):
        return {key: without_descriptions(value) for key, value in schema.items() if not (key == "description" and isinstance(value, str))}
    return [without_descriptions(item) for item in schema] if isinstance(schema, list) else schema


if __name__ == "__main__":
    main(*sys.argv[1:])
