"""The scenes of a multi-temporal model: for each grid and season a stack, made again where a scene of it is new or another."""

from __future__ import annotations

import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterable
from datetime import date

from pipeline.errors import Refused, Unreadable
from pipeline.imagery import storage
from pipeline.imagery.bands import Band
from pipeline.imagery.catalogue import Asset, Source, parse_datetime
from pipeline.imagery.composites import Recipe, seasons_of, stack_id, stack_id_of, write_stack
from pipeline.imagery.raster import Scene, check_unchanged, open_scene
from pipeline.imagery.storage import Place

Dated = tuple[date, Scene]


def stacked(
    sources: Iterable[Source], recipe: Recipe, folder: Place, until: date | None, failed: dict[str, str], *, build: bool
) -> list[Source]:  # fmt: skip
    """The stacks of all seasons that are over, on `until` or by the newest scene, as scenes of the last day of each; what cannot be
    used is added to `failed`, in place.

    Without `build` only those that are there are returned, and the others printed.
    """
    grids: dict[str, list[Dated]] = defaultdict(list)
    for source in sources:
        try:
            scene = open_scene(source, [Band(name) for name in recipe.bands])
            when = parse_datetime(scene.datetime)
            if when is None:
                raise Refused(f"{source.uri}: has no date")
            grids[hashlib.sha256(repr(scene.grid).encode()).hexdigest()[:8]].append((when.date(), scene))
        except Refused as error:
            failed[source.scene_id] = str(error)
    made = []
    for grid, scenes in sorted(grids.items()):
        for season in seasons_of(recipe, [day for day, _ in scenes], until):
            try:
                made += _stack(recipe, season, scenes, folder / f"season-{season}-{grid}.tif", build=build)
            except Unreadable as error:
                failed[f"season-{season}-{grid}"] = str(error)
    return made


def _stack(recipe: Recipe, season: int, scenes: list[Dated], place: Place, *, build: bool) -> list[Source]:
    windows = recipe.windows(season)
    mine = [(day, scene) for day, scene in scenes if any(first <= day <= last for first, last in windows)]
    if stack_id_of(place) != stack_id(recipe, season, [scene for _, scene in mine]):
        print(f"{'building' if build else 'would build'} {place.stem} of {len(mine)} scene(s)", file=sys.stderr)
        if not build:
            return []
        before = storage.version(place)
        with storage.discarded(storage.temporary(place.parent, place.name)) as finished:
            write_stack(recipe, season, mine, finished)
            for _, scene in mine:
                check_unchanged(scene)
            storage.publish(finished, place, onto=before)
    return [Source(str(place), place.stem, f"{windows[-1][1]}T00:00:00Z", (Asset(place),))]
