"""Checks Kubernetes objects as an API server with strict validation does: against their schemas, unknown fields refused."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

SCHEMAS = Path(__file__).parent / "schemas"
METADATA = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
KUBERAY = ("1.6.0", "1.7.0")


def complaints(document: dict[str, Any], kuberay: str = KUBERAY[-1]) -> list[str]:
    """What an API server would not take of an object, each with its place."""
    errors = _validator(f"{document['apiVersion']} {document['kind']}", kuberay).iter_errors(document)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}" for error in errors]


@cache
def _validator(kind: str, kuberay: str) -> Any:
    found: dict[str, Any] = {}
    for name in (f"kuberay-{kuberay}", "kubernetes-1.36", "prometheus-operator-0.93.0"):
        found |= json.loads(gzip.decompress((SCHEMAS / f"{name}.json.gz").read_bytes()))
    schema = dict(found[kind])
    if "properties" in schema:  # of a custom resource, whose metadata the server knows without being told
        schema["properties"] = schema["properties"] | {"metadata": {"$ref": f"#/definitions/{METADATA}"}}
    strict = _strict(schema) | {"definitions": {name: _strict(definition) for name, definition in found["definitions"].items()}}
    return _Validator(strict)


def _strict(schema: Any) -> Any:
    """The same with what Kubernetes means but JSON Schema does not say."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string") or schema.get("format") == "int-or-string":
        return {"type": ["integer", "string"]} | {key: schema[key] for key in ("pattern",) if key in schema}
    made = {key: _strict(value) for key, value in schema.items()}
    is_object = schema.get("type") == "object" and isinstance(schema.get("properties"), dict)
    if is_object and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def _unique(_: Any, keys: list[str], items: Any, __: Any) -> Iterator[jsonschema.ValidationError]:
    """A list that is a map by some of its items' fields has each key once."""
    seen = set()
    for item in items if isinstance(items, list) else ():
        key = tuple(str(item.get(name)) for name in keys)
        if key in seen:
            yield jsonschema.ValidationError(f"{dict(zip(keys, key, strict=True))} is there twice")
        seen.add(key)


_Validator = jsonschema.validators.extend(jsonschema.Draft4Validator, {"x-kubernetes-list-map-keys": _unique})
