"""Where a monitoring's numbers come from: the model in charge, its classes, and the runs that made them, as OUT says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from pipeline.errors import Refused
from pipeline.imagery import storage
from pipeline.imagery.storage import Place
from pipeline.results.svg import FAINT

RUNS_READ = 20  # the latest
COLOUR = re.compile(r"#[0-9A-Fa-f]{6}")
COLOURS = ("#2563A8", "#E07B39", "#3C9D6B", "#B0413E", "#7D5BA6", "#B8860B", "#3AA6B9", "#D16BA5", "#6B7280", "#8FB339")


@dataclass(frozen=True)
class Provenance:
    """`model` is the folder of its data set; `classes` their colours, #RRGGBB, by id; `runs` the latest run records, the newest first."""

    model_id: str
    path: str
    model: Place
    classes: Mapping[int, str]
    runs: tuple[Mapping[str, Any], ...]
    run_count: int

    @property
    def failed(self) -> dict[str, str]:
        """The scenes and dates that the newest run which ended could not use, and why."""
        for run in self.runs:
            if run.get("outcome") not in (None, "running"):
                found = {**(run.get("dates_failed") or {}), **(run.get("scenes_failed") or {})}
                return {str(name): str(reason) for name, reason in found.items()}
        return {}

    @property
    def software(self) -> dict[str, str]:
        return next((dict(run["software"]) for run in self.runs if run.get("software")), {})

    def colour(self, class_id: int | None) -> str:
        """Of a class; of one that the model does not tell, one of its own."""
        if class_id is None:
            return FAINT
        return self.classes.get(class_id) or COLOURS[class_id % len(COLOURS)]


def read_provenance(out: Place, region: str) -> Provenance:
    """What OUT says of itself, and of the runs over a region. What is missing there, as in a model's own folder, is left open."""
    current = _json(out / "current.json")
    model = out
    for part in str(current.get("folder") or "").split("/"):
        model = model / part if part not in ("", ".", "..") else model
    dataset = _json(model / "dataset.json")
    names = sorted((name for name in storage.names(out / "runs") if name.endswith(".json")), reverse=True)
    records = [_json(out / "runs" / name) for name in names[:RUNS_READ]]
    runs = [record for record in records if record and record.get("region", region) == region]
    return Provenance(
        model_id=str(current.get("model_id") or dataset.get("bundle") or ""),
        path=str(current.get("path") or ""),
        model=model,
        classes={entry["id"]: entry["color"] for entry in dataset.get("classes") or () if COLOUR.fullmatch(str(entry.get("color")))},
        runs=tuple(runs),
        run_count=len(names),
    )  # fmt: skip


def named(origin: Provenance, class_id: int | None, name: str) -> str:
    """A class in HTML: a dot of its colour, and its name."""
    return f'<span class="dot" style="background:{escape(origin.colour(class_id))}"></span>{escape(name)}'


def _json(place: Place) -> dict[str, Any]:
    try:
        content = storage.read_json(place)
    except Refused:
        return {}
    return content if isinstance(content, dict) else {}
