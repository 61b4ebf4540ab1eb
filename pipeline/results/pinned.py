"""Which model a region is watched with: OUT/current.json, and a folder of its own for each model that was ever used."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pipeline.errors import Refused
from pipeline.imagery import storage
from pipeline.imagery.s3 import Taken
from pipeline.imagery.storage import Place
from pipeline.models.bundle import Bundle

SCHEMA_VERSION = 1
LENGTH = 16  # of a model's hash, as folders are called


class Current(NamedTuple):
    """The model whose tables are OUT/results, where it came from, and the version of the file that says so."""

    model_id: str
    path: str
    version: str


def model_folder(out: Place, model_id: str) -> Place:
    """The data set of a model: an OUT of segment_region."""
    return out / "models" / model_id[:LENGTH]


def tables_folder(folder: Place) -> Place:
    """Where the tables of the regions are in a model's data set."""
    return folder / "monitoring"


def read_current(out: Place) -> Current | None:
    """The model in charge; None where nothing was watched yet. Raises Refused for a file that is no such thing."""
    place = out / "current.json"
    version = storage.version(place)
    content = storage.read_json(place) if version else None
    if content is None:
        return None
    if content.get("schema_version") != SCHEMA_VERSION or not isinstance(content.get("model_id"), str):
        raise Refused(f"{place}: does not name a model: it is of another program or version")
    return Current(content["model_id"], str(content.get("path")), str(version))


def check_pinned(out: Place, bundle: Bundle) -> None:
    """Raise Refused where another model is in charge than the one that the config names."""
    current = read_current(out)
    if current and current.model_id != bundle.model_id:
        mine = bundle.model_id[:LENGTH]
        raise Refused(
            f"{out}: is watched with model {current.model_id[:LENGTH]} ({current.path}), the config names {mine} ({bundle.path}):"
            f" try that beside it with --promote, then --switch {mine}; or give the config the other back"
        )


def pin(out: Place, bundle: Bundle) -> None:
    """Put a model in charge where none is. Raises Refused where another driver has put another there meanwhile."""
    note_model(out, bundle)
    if not storage.create_json(out / "current.json", _content(bundle.model_id, bundle.path)):
        check_pinned(out, bundle)


def switch(out: Place, model_id: str, path: str) -> None:
    """Put a model in charge in place of the one that is, if that is still in charge when this is written. Raises Refused."""
    current = read_current(out)
    if current is None:
        raise Refused(f"{out}: is not watched yet: there is nothing to switch")
    finished = storage.temporary(out, "current.json")
    with storage.discarded(finished):
        finished.write_bytes(storage.json_bytes(_content(model_id, path)))
        try:
            storage.publish(finished, out / "current.json", onto=current.version)
        except Taken:
            raise Refused(f"{out}: another run has switched the model meanwhile: look at current.json and start again") from None


def find_model(out: Place, said: str) -> tuple[str, str]:
    """Hash and path of the one model of OUT whose hash begins with `said`. Raises Refused, listing those that are there."""
    known = dict(_models(out))
    found = [model_id for model_id in known if model_id.startswith(said.lower())]
    if len(found) != 1:
        raise Refused(f"{out}: has {len(found) or 'no'} model{'s' * (len(found) != 1)} {said}; there are {', '.join(known) or 'none'}")
    return found[0], known[found[0]]


def note_model(out: Place, bundle: Bundle) -> None:
    """Write down in a model's folder where it came from."""
    storage.create_json(model_folder(out, bundle.model_id) / "pinned.json", {"model_id": bundle.model_id, "path": bundle.path})


def _models(out: Place) -> Iterator[tuple[str, str]]:
    for folder in storage.folders(out / "models").values():
        if told := storage.read_json(folder / "pinned.json"):
            yield told["model_id"], told["path"]


def _content(model_id: str, path: str) -> dict[str, Any]:
    now = datetime.now(UTC)
    return {
        "schema_version": SCHEMA_VERSION, "model_id": model_id, "folder": f"models/{model_id[:LENGTH]}", "path": path,
        "since": f"{now:%Y-%m-%dT%H:%M:%SZ}",
    }  # fmt: skip
