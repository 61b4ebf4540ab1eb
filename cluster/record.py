"""OUT/runs/<run_id>.json: one invocation, from its start to what came of it."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster.environment import without_access
from cluster.job import DONE, FAILED_ON_DATA
from cluster.scenes import SceneWork
from pipeline.imagery import storage
from pipeline.imagery.storage import Place, Remote
from pipeline.inference.segment import ShardResult
from pipeline.inference.stages import events
from pipeline.models.bundle import Bundle
from pipeline.software import software

SCHEMA_VERSION = 1
OUTCOMES = {DONE: "done", FAILED_ON_DATA: "failed on data"}


def new_run_id(now: datetime) -> str:
    """Runs in the order of their names are in that of their starts."""
    return f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


class RunRecord:
    """Created when work begins, replaced when it ends, however it ends; a run that is refused leaves none."""

    def __init__(self, out: Place, command: Sequence[str], bundle: Bundle, done: Sequence[str], refusals: Mapping[str, str]):
        now = datetime.now(UTC)
        self.run_id = new_run_id(now)
        self._path = out / "runs" / f"{self.run_id}.json"
        self._trace, self._events = out / "traces" / self._path.name, out / "runs" / f"{self.run_id}.jsonl"
        self._began, self._at = time.monotonic(), time.time()
        self._works: list[SceneWork] = []
        self._refusals = refusals
        self._started = False
        self._content: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION, "run_id": self.run_id, "started": f"{now:%Y-%m-%dT%H:%M:%SZ}", "outcome": "running",
            "command": without_access(command), "bundle": {"path": bundle.path, "model_id": bundle.model_id},
            "software": software() | {"ray": version("ray")},
            "already_done": list(done),
        }  # fmt: skip

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and self._started:
            self._started = False  # what an outer block ends with is the same error
            outcome = "interrupted" if isinstance(error, KeyboardInterrupt) else "error"
            self._write(outcome=outcome, exit_code=1, reason=f"{type(error).__name__}: {error}")

    def start(self, works: list[SceneWork], actors: int) -> None:
        """Create the record, now that the work is known."""
        self._works, self._started = works, True
        self._content["workers"] = actors
        storage.create_json(self._path, self._content | {"scenes": [_scene(work) for work in works]})

    def done(self, work: SceneWork, result: ShardResult, attempts: int) -> None:
        """A shard is done: say so, and add where its time went to OUT/traces/<run_id>.json, for chrome://tracing and ui.perfetto.dev."""
        self.log(
            "shard done", work, result.shard, attempts=attempts, worker=result.worker, pixels=result.pixels,
            seconds=round(result.seconds, 3), windows_failed=len(result.failed) or None,
        )  # fmt: skip
        with _growing(self._trace).open("a", encoding="utf-8") as file:
            file.writelines(
                ("[\n" if file.tell() == 0 else "") + f"{json.dumps(event)},\n" for event in events(result.worker, result.spans)
            )

    def log(self, event: str, work: SceneWork, shard: str | None = None, **what: Any) -> None:
        """Add a line to OUT/runs/<run_id>.jsonl: what happened to a shard of a scene, or to a scene."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "run_id": self.run_id, "event": event}
        line |= {"scene": work.ledger.scene, "input_id": work.ledger.attempt, "shard": shard} | what
        with _growing(self._events).open("a", encoding="utf-8") as file:
            file.write(json.dumps({key: value for key, value in line.items() if value is not None}) + "\n")

    def end(self, exit_code: int) -> None:
        """Replace the record by what came of the run, or write it where there was nothing to begin."""
        self._write(outcome=OUTCOMES[exit_code], exit_code=exit_code)

    def _write(self, **ending: Any) -> None:
        seconds = time.monotonic() - self._began
        pixels = sum(shard.pixels for work in self._works for shard in work.missing)
        began, ended = ([at for work in self._works if (at := getattr(work, name))] for name in ("began", "ended"))
        content = self._content | ending | {
            "finished": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "seconds": round(seconds, 3),
            "seconds_to_first_shard": round(min(began) - self._at, 3) if began else None,
            "seconds_of_shards": round(max(ended) - min(began), 3) if began and ended else None,
            "mpix_per_s": round(pixels / seconds / 1e6, 4),
            "refused_scenes": dict(self._refusals),
            "scenes": [_scene(work) for work in self._works],
        }  # fmt: skip
        storage.replace_json(self._path, content)
        for place in (self._trace, self._events):
            if isinstance(place, Remote) and _growing(place).exists():
                storage.publish(_growing(place), place)


def _growing(place: Place) -> Path:
    """Where a log grows as shards end, so that the driver holds no more for a larger scene: in its place; for a bucket's, on this
    machine until the run ends."""
    return storage.workshop(place.parent) / place.name


def _scene(work: SceneWork) -> dict[str, Any]:
    plan = work.plan
    return {
        "uri": plan.scene.uri, "version": plan.scene.version, "input_id": work.ledger.attempt, "folder": f"scenes/{work.ledger.scene}",
        "plan": {
            "tile": plan.tile, "halo": plan.halo, "batch": plan.batch, "shard": plan.shard, "fine": plan.fine, "finer": plan.finer,
            "engine": plan.engine, "precision": plan.precision, "choice": plan.choice, "threads": plan.threads,
            "device": plan.device, "redundancy": round(plan.redundancy, 4),
            "memory_bytes": plan.memory_bytes, "software": plan.software,
        },
        "shards": len(plan.shards()), "shards_begun": len(work.missing),
        "attempts": {name: count for name, count in sorted(work.attempts.items()) if count > 1},
        "batch_used": work.batch,
        "worker_seconds": round(work.seconds, 3),
        "stage_seconds": {stage: round(seconds, 3) for stage, seconds in work.stages.items()},
        "failed_windows": [window._asdict() for window in work.failed_windows],
        "published": None if work.published is None else work.published.raster.name,
        "failure": work.failure,
    }  # fmt: skip
