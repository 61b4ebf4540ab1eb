"""The allocator keeps what is freed: no page is faulted in twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.models.allocator import ENVIRONMENT

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


def faults(kept: bool, **environment: str) -> list[int]:
    """Page faults of eight arrays of 64 MiB, after as many before: in the main thread, in another one."""
    script = SCRIPT.format(project=str(Path(__file__).parents[2]), kept=kept)
    settings = {**os.environ, **environment, "NUMPY_MADVISE_HUGEPAGE": "0"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=settings)
    return [int(line) for line in done.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux") or "GLIBC" not in os.confstr("CS_GNU_LIBC_VERSION").upper(), reason="needs glibc")
def test_freed_memory_is_kept_by_the_call_and_by_the_environment():
    given_back, called, by_environment = faults(False), faults(True), faults(False, **ENVIRONMENT)
    assert min(given_back) > 50_000
    assert max(called) < 1_000 and max(by_environment) < 1_000
