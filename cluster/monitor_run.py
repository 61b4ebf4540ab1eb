"""One run of a region's watch, from looking for scenes to what is published and noted; and the change of its model."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import UTC, date, datetime
from types import TracebackType
from typing import Any

from cluster.job import DONE, FAILED_ON_DATA
from cluster.monitor import Model, Seen, bundle_model, dated_scenes, kept, look, model_of, request_for, rules_model, segment_new
from cluster.monitor_config import Watch, read_yaml
from cluster.monitor_tables import Made, due, make_dates, make_over_time, read_ground
from cluster.record import OUTCOMES, new_run_id
from pipeline.errors import Refused, Unreadable, one_line
from pipeline.imagery import storage
from pipeline.imagery.storage import Place
from pipeline.results.comparison import cross
from pipeline.results.mirror import mirror_tables
from pipeline.results.pinned import LENGTH, check_pinned, find_model, model_folder, note_model, pin, read_current, switch, tables_folder
from pipeline.results.tables import day_of
from pipeline.software import software

SCHEMA_VERSION = 1
SHOWN = 10  # lines of a kind


def watch_region(watch: Watch, access: Mapping[str, str]) -> int:
    """Do what is new and publish it. Raises Refused where nothing can be begun."""
    model = model_of(watch, watch.output)
    check_pinned(watch.output, model.bundle)
    ground = read_ground(watch)
    for note in ground.notes:
        print(f"note: {one_line(note)}", file=sys.stderr)
    with Record(watch, model) as record:
        request = request_for(watch, model, access)
        seen = _looked(watch, model, access)
        model = kept(model)
        pin(watch.output, model.bundle)
        works = segment_new(seen, model, request, watch)
        dates = dated_scenes(seen)
        made = make_dates(watch, model, seen, ground, dates)
        changed = bool(seen.done) and make_over_time(watch, model, ground, made)
        try:
            changed |= bool(mirror_tables(model.results, watch.output / "results", watch.region))
        except Unreadable as error:
            made.failed["results"] = str(error)
        code = FAILED_ON_DATA if seen.failed or made.failed else DONE
        if works or made.days or changed or code:
            record.end(code, seen, made, [work.plan.scene.scene_id for work in works])
            storage.sweep_old(watch.output)
    _tell(watch, seen, made, len(works), len(dates), changed=changed)
    return code


def _looked(watch: Watch, model: Model, access: Mapping[str, str], *, build: bool = True) -> Seen:
    """What is in the archive. Raises Refused where that is nothing at all, or nothing of it can be used and nothing was before."""
    newest = max(_days_there(model.results, watch.region), default=None)
    seen = look(watch, model, request_for(watch, model, access), newest, build=build)
    if not seen.listed:
        raise Refused(f"{watch.scenes}: lists no scenes: check the address, the collections and the box that are asked for")
    if not seen.opened and seen.failed and newest is None:
        first, *others = seen.failed.values()
        raise Refused(f"{first} (and {len(others)} more scenes)" if others else first)
    if not seen.opened and seen.outside and newest is None:
        raise Refused(f"{watch.scenes}: its {seen.outside} scene(s) lie outside the region that is asked for (bbox, aoi)")
    return seen


def _days_there(results: Place, region: str) -> list[date]:
    """The dates of which there are tables."""
    folders = storage.folders(results / "areas")
    return [day for name, folder in folders.items() if (day := day_of(name)) and f"{region}.parquet" in storage.names(folder)]


def _tell(watch: Watch, seen: Seen, made: Made, segmented: int, days: int, *, changed: bool) -> None:
    """Print what was done, or that nothing was to do."""
    for reason in [*seen.failed.values()][:SHOWN]:
        print(f"failed: {one_line(reason)}", file=sys.stderr)
    for reason in [*made.failed.values(), *made.kept.values()][:SHOWN]:
        print(f"note: {one_line(reason)}", file=sys.stderr)
    for old, new in sorted(seen.superseded.items())[:SHOWN]:
        print(f"note: {old} was processed again: {new} counts", file=sys.stderr)
    if made.outside:
        some = ", ".join(made.outside[:SHOWN]) + (", ..." if len(made.outside) > SHOWN else "")
        where = "check the CRS of the parcels' file, or widen the archive"
        print(
            f"note: {len(made.outside):,} parcel(s) lie in no scene of the dates that were made ({one_line(some)}): {where}",
            file=sys.stderr,
        )
    if not (segmented or made.days or changed):
        print(f"nothing new: {len(seen.done)} scene(s) of {days} date(s) are in {watch.output}")
        return
    print(f"{segmented} scene(s) segmented, tables of {len(made.days)} date(s) made; {len(seen.done)} scene(s) of {days} date(s) in all")
    if made.flips is not None:
        print(f"changes so far: {made.flips:,} of class, {made.drops:,} drop(s) of an index")
    print(f"tables are in {watch.output / 'results'}; look at them with: python jobs/report_areas.py {watch.output}")


def print_plan(watch: Watch, access: Mapping[str, str]) -> int:
    """Say what a run would do."""
    model = model_of(watch, watch.output)
    check_pinned(watch.output, model.bundle)
    ground = read_ground(watch)
    seen = _looked(watch, model, access, build=False)
    for opened in seen.todo:
        print(f"would segment {opened.scene.scene_id} of {opened.scene.datetime}")
    for day, _, _ in due(watch, model, ground, dated_scenes(seen)):
        print(f"would make the tables of {day} anew")
    for reason in seen.failed.values():
        print(f"cannot be done: {one_line(reason)}")
    pixels = sum(opened.region.window.pixels for opened in seen.todo)
    print(f"{len(seen.todo)} new scene(s), {pixels / 1e6:.1f} MPix; {len(seen.done)} are done; {len(ground.parcels):,} parcels")
    return DONE


def promote(watch: Watch, candidate: str, access: Mapping[str, str]) -> int:
    """Do the wanted dates with another model, beside the one in charge, and say where they agree and how areas move."""
    out, current = watch.output, read_current(watch.output)
    if current is None:
        raise Refused(f"{out}: is not watched yet: run it once with the model of the config")
    trial = _candidate(candidate, out)
    if trial.bundle.model_id == current.model_id:
        raise Refused(f"{candidate}: is the model in charge")
    ours = model_of(watch, out)
    check_pinned(out, ours.bundle)
    ground = read_ground(watch)
    with Record(watch, trial) as record:
        request = request_for(watch, trial, access)
        seen = look(watch, trial, request)
        trial = kept(trial)
        note_model(out, trial.bundle)
        works = segment_new(seen, trial, request, watch)
        dates = dated_scenes(seen)
        made = make_dates(watch, trial, seen, ground, dates)
        make_over_time(watch, trial, ground, made)
        code = FAILED_ON_DATA if seen.failed or made.failed else DONE
        record.end(code, seen, made, [work.plan.scene.scene_id for work in works])
    mine = look(watch, ours, request_for(watch, ours, access))
    both = sorted(seen.done.keys() & mine.done.keys())
    pairs = [(mine.done[uri].scene_folder / "mask.tif", seen.done[uri].scene_folder / "mask.tif") for uri in both]
    told = cross(pairs, ours.bundle, trial.bundle).to_json()
    report = {
        "schema_version": SCHEMA_VERSION, "region": watch.region, "in_charge": ours.bundle.model_id, "tried": trial.bundle.model_id,
        "scenes_compared": len(pairs), "dates_made": [day.isoformat() for day in dates], **told,
    }  # fmt: skip
    place = out / "promotions" / f"{watch.region}-{trial.bundle.model_id[:LENGTH]}.json"
    storage.replace_json(place, report)
    _print_comparison(told, len(pairs))
    print(f"\nkept in {place}; to put it in charge: --switch {trial.bundle.model_id[:LENGTH]}")
    return code


def _candidate(said: str, out: Place) -> Model:
    """A bundle, or the rules of a YAML file. Raises Refused."""
    if not said.endswith((".yaml", ".yml")):
        return bundle_model(said, out)
    rules = read_yaml(storage.place_of(said)).get("rules")
    if not rules:
        raise Refused(f"{said}: holds no rules")
    return rules_model(rules, out)


def _print_comparison(told: Mapping[str, Any], scenes: int) -> None:
    if told["agreement"] is None:
        print("no pixel has a class by both models: nothing to compare")
        return
    print(f"{scenes} scene(s), {told['compared_m2'] / 1e4:,.1f} ha classified by both; they agree on {told['agreement']:.2%}")
    print(f"{'class':<28}{'in charge, ha':>16}{'tried, ha':>16}{'change':>10}")
    for row in told["classes"]:
        before, after = row["before_m2"], row["after_m2"]
        change = f"{(after - before) / before:+.1%}" if before else "new" if after else ""
        print(f"{row['class_name'][:27]:<28}{before / 1e4:>16,.1f}{after / 1e4:>16,.1f}{change:>10}")
    for row in told["moved"][:SHOWN]:
        print(f"  {row['from']} -> {row['to']}: {row['area_m2'] / 1e4:,.1f} ha")


def switch_back(watch: Watch, said: str) -> int:
    """Put a model that was tried, or was in charge before, in charge. Raises Refused where it lacks dates that are there now."""
    out = watch.output
    model_id, path = find_model(out, said)
    current = read_current(out)
    if current and current.model_id == model_id:
        print(f"{model_id[:LENGTH]} is in charge already")
        return DONE
    its = tables_folder(model_folder(out, model_id))
    lacking = sorted(set(_days_there(out / "results", watch.region)) - set(_days_there(its, watch.region)))
    if lacking:
        raise Refused(
            f"{model_id[:LENGTH]} lacks {len(lacking)} of the dates that are there ({lacking[0]} is the first): run --promote without"
            " --since and --until first"
        )
    switch(out, model_id, path)
    try:
        mirror_tables(its, out / "results", watch.region)
    except Unreadable as error:
        raise OSError(f"{error}; the next run with this model puts its tables there") from None
    print(f"{model_id[:LENGTH]} ({path}) is in charge; name it in the config before the next run")
    if current:
        print(f"back: --switch {current.model_id[:LENGTH]}")
    return DONE


class Record:
    """OUT/runs/<run_id>.json: written where something was done or failed, however the run ends."""

    def __init__(self, watch: Watch, model: Model):
        now = datetime.now(UTC)
        self._began = time.monotonic()
        self.run_id = new_run_id(now)
        self._place = watch.output / "runs" / f"{self.run_id}.json"
        self._content: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION, "run_id": self.run_id, "kind": "monitoring", "region": watch.region,
            "started": f"{now:%Y-%m-%dT%H:%M:%SZ}", "archive": watch.scenes,
            "model": {"model_id": model.bundle.model_id, "path": model.bundle.path}, "software": software(),
        }  # fmt: skip

    def __enter__(self) -> Record:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and not isinstance(error, Refused):
            self._write("interrupted" if isinstance(error, KeyboardInterrupt) else "error", 1, reason=f"{type(error).__name__}: {error}")

    def end(self, code: int, seen: Seen, made: Made, segmented: list[str]) -> None:
        """Write what came of the run."""
        self._write(
            OUTCOMES[code], code, scenes_segmented=segmented, dates=[day.isoformat() for day in made.days],
            dates_failed=made.failed, dates_kept=made.kept, scenes_failed=seen.failed, superseded=seen.superseded,
            scenes_outside=seen.outside,
        )  # fmt: skip

    def _write(self, outcome: str, code: int, **ending: Any) -> None:
        storage.replace_json(self._place, self._content | {
            "outcome": outcome, "exit_code": code, "finished": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "seconds": round(time.monotonic() - self._began, 3), **ending,
        })  # fmt: skip
