"""What has been durably finished, read back from storage and never from memory.

OUT/dataset.json says what OUT is; OUT/scenes/<scene>/parts/<attempt>/ holds the plan, a part for each finished shard and
the manifest, which is the commit point. All are created once. An attempt is named by its input: <input_id>, or
<input_id>-<n> after --fresh.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import Refused
from pipeline.geometry.windows import Window
from pipeline.imagery import storage
from pipeline.imagery.catalogue import unique_folder
from pipeline.imagery.storage import Place
from pipeline.inference.plan import Plan, Settings
from pipeline.models.bundle import Bundle

DATASET_SCHEMA = 1


def describe_dataset(bundle: Bundle, settings: Settings, region: str | None) -> dict[str, Any]:
    """What OUT/dataset.json says: the bundle and the parameters, as they were asked for, that make this data set."""
    return {
        "schema_version": DATASET_SCHEMA,
        "bundle": bundle.model_id,
        "classes": bundle.class_table,
        **({"target": asdict(bundle.target)} if bundle.target else {}),
        "parameters": {
            "region": region, "precision": settings.precision, "tile": settings.tile, "halo": settings.halo, "shard": settings.shard,
            "confidence": "confidence" in settings.layers, "probabilities": "probabilities" in settings.layers,
        },
    }  # fmt: skip


def compare_dataset(out: Place, description: Mapping[str, Any]) -> None:
    """Raise Refused, naming the differences, where OUT was made by another bundle or with other parameters."""
    found = storage.read_json(out / "dataset.json")
    if found is None:
        return
    flat_found, flat_asked = _flatten(found), _flatten(description)
    differences = [
        f"{name} is {flat_found.get(name)!r} there, {flat_asked.get(name)!r} here"
        for name in sorted(flat_found.keys() | flat_asked.keys())
        if flat_found.get(name) != flat_asked.get(name)
    ]
    if differences:
        raise Refused(f"{out}: is another data set ({'; '.join(differences)[:400]}): choose another --output")


def adopt_dataset(out: Place, description: Mapping[str, Any]) -> None:
    """Create OUT/dataset.json, or adopt the one that is there; raises Refused where it differs."""
    if not storage.create_json(out / "dataset.json", description):
        compare_dataset(out, description)


def sweep_dataset(out: Place) -> None:
    """Remove the temporary files that killed runs left beside the scenes."""
    for folder in (out, out / "runs"):
        storage.sweep(folder)


def _flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def scene_folder(out: Place, scene_id: str, uri: str, *, claim: bool) -> str:
    """The folder of a scene in OUT/scenes: named by its id, or marked with its hash where that belongs to another URI."""
    for taken in (False, True):
        name = unique_folder(scene_id, uri, taken)
        owner = out / "scenes" / name / "scene.json"
        if claim:
            storage.create_json(owner, {"uri": uri})
        found = storage.read_json(owner)
        if found is None or found["uri"] == uri:
            return name
    raise Refused(f"{owner}: belongs to another scene; choose another --output")


@dataclass(frozen=True)
class SceneLedger:
    """One attempt at one scene: where its plan, parts and manifest lie, and what is there."""

    out: str
    scene: str  # the folder's name
    attempt: str

    @classmethod
    def open(cls, out: Place, scene: str, input_id: str, *, fresh: bool = False) -> SceneLedger:
        """The current attempt at this input, which is the highest; with `fresh` the next one."""
        tried = storage.names(out / "scenes" / scene / "parts")
        numbers = [0 if name == input_id else int(name.rpartition("-")[2]) for name in tried if name.split("-")[0] == input_id]
        number = max(numbers, default=-1) + 1 if fresh else max(numbers, default=0)
        return cls(str(out), scene, f"{input_id}-{number}" if number else input_id)

    @property
    def scene_folder(self) -> Place:
        return storage.place_of(self.out) / "scenes" / self.scene

    @property
    def folder(self) -> Place:
        return self.scene_folder / "parts" / self.attempt

    def plan(self) -> Plan | None:
        content = storage.read_json(self.folder / "plan.json")
        return Plan.from_json(content) if content else None

    def adopt_plan(self, plan: Plan) -> Plan:
        """Create the plan, once, or return the one that is there."""
        storage.create_json(self.folder / "plan.json", plan.to_json())
        adopted = self.plan()
        assert adopted is not None
        return adopted

    def missing(self, plan: Plan) -> list[Window]:
        """The shards without a part."""
        there = storage.names(self.folder)
        return [shard for shard in plan.shards() if f"{plan.shard_name(shard)}.part" not in there]

    def parts(self, plan: Plan) -> list[tuple[Window, Place]]:
        """The shards that have a part, or else a partial one, and where it lies."""
        there = storage.names(self.folder)
        names = {shard: plan.shard_name(shard) for shard in plan.shards()}
        return [
            (shard, self.folder / f"{name}{suffix}")
            for shard, name in names.items()
            for suffix in ([".part"] if f"{name}.part" in there else [".partial"] if f"{name}.partial" in there else [])
        ]

    def temporary(self, name: str) -> Path:
        """A name for a local file of this attempt that is still being written."""
        return storage.temporary(self.folder, name)

    def publish_part(self, name: str, finished: Path, *, partial: bool) -> None:
        """Publish a part once; one with failed windows in place of the last such one, so that it is tried again."""
        if partial:
            storage.publish(finished, self.folder / f"{name}.partial")
        else:
            storage.publish_once(finished, self.folder / f"{name}.part")
            storage.remove(self.folder / f"{name}.partial")

    def manifest(self) -> dict[str, Any] | None:
        return storage.read_json(self.folder / "manifest.json")

    def commit(self, manifest: Mapping[str, Any]) -> bool:
        """Create the manifest. False where another driver did: its manifest holds."""
        return storage.create_json(self.folder / "manifest.json", manifest)

    def sweep(self) -> None:
        """Remove the temporary files of this scene, which killed runs left, those of its earlier attempts included."""
        attempts = self.scene_folder / "parts"
        for folder in (self.scene_folder, *(attempts / name for name in storage.names(attempts))):
            storage.sweep(folder)

    def clean(self) -> None:
        """Remove the parts of this scene; plans and manifests stay."""
        attempts = self.scene_folder / "parts"
        for folder in (attempts / name for name in storage.names(attempts)):
            storage.sweep(folder)
            for name in storage.names(folder) - {"plan.json", "manifest.json"}:
                storage.remove(folder / name)
