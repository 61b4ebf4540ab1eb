"""What the command lines of all jobs share: exit codes, last words, and a place for results that outlives the job."""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.environment import in_submitted_job
from pipeline.errors import Refused, Unreadable, one_line
from pipeline.imagery import storage
from pipeline.imagery.storage import Place

DONE, ERROR, REFUSED, FAILED_ON_DATA = 0, 1, 2, 3
RESEND_S = 0.05
AGAIN = "start the same command again to finish what is missing"


def run_job(work: Callable[[], int], interrupted: Callable[[], str], *, again: bool = False, unreadable: int = FAILED_ON_DATA) -> int:
    """Do a job's work and return its exit code; what ends it early is one line on standard error.

    `interrupted` gives the last words of a job that SIGINT or SIGTERM ends; with `again`, other failures say that a second start
    finishes the work, too. `unreadable` is the code where the work as a whole cannot be read.
    """
    warnings.filterwarnings("ignore", "Dataset has no geotransform")  # as rasterio says; a scene's notes say it, once
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _interruptions_kept():
            return work()
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    except Unreadable as error:
        print(f"error: {error}", file=sys.stderr)
        return unreadable
    except KeyboardInterrupt:
        print(f"interrupted: {interrupted()}", file=sys.stderr)
        return ERROR
    except (RuntimeError, OSError) as error:
        print(f"error: {one_line(error)}{f'; {AGAIN}' if again else ''}", file=sys.stderr)
        return ERROR


@contextmanager
def _interruptions_kept() -> Iterator[None]:
    """One that comes while an object is being deleted, where Python drops it with a traceback, comes again."""
    before = sys.unraisablehook

    def hook(lost: Any) -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            main = threading.main_thread().ident
            again = threading.Timer(RESEND_S, signal.pthread_kill, [main, signal.SIGTERM])  # SIGINT may be ignored, in the background
            again.daemon = True
            again.start()
        else:
            before(lost)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def lasting_place(output: str) -> Place:
    """The place that `--output` names. Raises Refused."""
    place = storage.place_of(output)
    check_lasting(f"--output {output}", place)
    return place


def check_lasting(said: str, place: Place) -> None:
    """Raise Refused where results would be gone after the job: in the copy of the working directory that Ray gives a submitted one."""
    if in_submitted_job() and isinstance(place, Path) and place.is_relative_to(Path.cwd()):
        raise Refused(f"{said}: would be lost with Ray's copy of this folder: give an absolute path")
