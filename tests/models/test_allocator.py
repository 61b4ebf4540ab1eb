"""The allocator keeps what is freed: no page is faulted in twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.models.allocator import ENVIRONMENT

PROJECT = str(Path(__file__).parents[2])
SCRIPT = """
import resource, sys, threading
sys.path.insert(0, {project!r})
from pipeline.models.allocator import keep_freed_memory
if {kept!r}:
    keep_freed_memory()
import numpy as np
def touch():
    for _ in range(8):
        np.ones(2**26, np.uint8)
for run in (touch, lambda: (thread := threading.Thread(target=touch), thread.start(), thread.join())):
    run()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

LATE = """
import resource, sys, threading
import numpy as np
sys.path.insert(0, {project!r})
from pipeline.models.allocator import keep_freed_memory, where_memory_is_kept
end, threads = threading.Event(), []
for _ in range(5):  # of libraries: they have their arenas before they are limited
    threads.append(threading.Thread(target=lambda: (np.ones(1000), end.wait())))
    threads[-1].start()
keep_freed_memory()
def touch():
    for _ in range(4):
        np.ones(2**27, np.uint8)
touch()
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target={run})
    thread.start()
    thread.join()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
end.set()
"""
needs_glibc = pytest.mark.skipif(
    not sys.platform.startswith("linux") or "GLIBC" not in os.confstr("CS_GNU_LIBC_VERSION").upper(), reason="needs glibc"
)


def faults(kept: bool, **environment: str) -> list[int]:
    """Page faults of eight arrays of 64 MiB, after as many before: in the main thread, in another one."""
    return numbers(SCRIPT.format(project=PROJECT, kept=kept), **environment)


def numbers(script: str, **environment: str) -> list[int]:
    settings = {**os.environ, **environment, "NUMPY_MADVISE_HUGEPAGE": "0"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=settings)
    return [int(line) for line in done.stdout.split()]


@needs_glibc
def test_freed_memory_is_kept_by_the_call_and_by_the_environment():
    given_back, called, by_environment = faults(False), faults(True), faults(False, **ENVIRONMENT)
    assert min(given_back) > 50_000
    assert max(called) < 1_000 and max(by_environment) < 1_000


@needs_glibc
def test_threads_that_start_late_keep_it_too():
    anywhere = numbers(LATE.format(project=PROJECT, run="touch"))
    placed = numbers(LATE.format(project=PROJECT, run="where_memory_is_kept, args=(touch,)"))
    assert max(anywhere) > 50_000
    assert max(placed) < 1_000
