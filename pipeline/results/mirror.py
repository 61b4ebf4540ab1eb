"""OUT/results: the tables of the model in charge, file for file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from pipeline.errors import Unreadable
from pipeline.imagery import storage
from pipeline.imagery.storage import Place, Taken
from pipeline.results.tables import table_input_id

AT_ONCE = 8


def mirror_tables(source: Place, target: Place, region: str) -> int:
    """Make the tables of a region in `target` those in `source`, each old or new as a whole; returns how many were put or taken away.

    What is the same, by the `input_id` in its metadata, is left. Raises Unreadable where another run put something else there meanwhile.
    """
    ours, theirs = set(_tables(source, region)), set(_tables(target, region))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        changed = sum(pool.map(lambda name: _copied(source, target, name), sorted(ours)))
    for name in sorted(theirs - ours):
        storage.remove(_within(target, name))
    return changed + len(theirs - ours)


def _tables(folder: Place, region: str) -> Iterator[str]:
    for below in storage.all_folders(folder):
        name = storage.relative(below, folder)
        if not name.startswith(".") and f"{region}.parquet" in storage.names(below):  # another run's work is hidden
            yield f"{name}/{region}.parquet"


def _within(folder: Place, name: str) -> Place:
    for part in name.split("/"):
        folder = folder / part
    return folder


def _copied(source: Place, target: Place, name: str) -> bool:
    mine, place = _within(source, name), _within(target, name)
    before = storage.version(place)
    wanted = table_input_id(mine)
    if before is not None and table_input_id(place) == wanted:
        return False
    with storage.discarded(storage.temporary(place.parent, place.name)) as finished:
        with storage.here(mine) as file:
            shutil.copyfile(file, finished)
        try:
            storage.publish(finished, place, onto=before)
        except Taken:
            if table_input_id(place) != wanted:
                raise Unreadable(f"{place}: another run put another table there meanwhile: start again") from None
    return True
