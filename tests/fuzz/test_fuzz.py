"""The short form of `fuzz.py`, and that it would notice."""

from __future__ import annotations

import os
import time

from tests.fuzz.children import run_cases
from tests.fuzz.fuzz import GOOD, fuzz


def test_broken_files_are_read_refused_or_named():
    cases = list(fuzz(seed=7, first=0, count=66))
    assert len(cases) == 66 and [case for case in cases if case.outcome not in GOOD] == []
    assert {case.outcome for case in cases} == set(GOOD)


def test_a_crash_a_hang_and_a_traceback_are_noticed_and_the_rest_goes_on():
    def work(name: str) -> tuple[str, str]:
        if name == "crash":
            os._exit(3)
        if name == "hang":
            time.sleep(60)
        if name == "traceback":
            raise KeyError(name)
        if name == "memory":
            bytearray(2**40)
        return "fine", ""

    names = ["a", "crash", "b", "hang", "traceback", "memory", "c"]
    cases = list(run_cases(names, work, timeout_s=1.0, each=3))
    ended = {"crash": "crash", "hang": "hang", "traceback": "traceback", "memory": "traceback"}
    assert [(case.name, case.outcome) for case in cases] == [(name, ended.get(name, "fine")) for name in names]
