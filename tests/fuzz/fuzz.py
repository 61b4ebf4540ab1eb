"""Thousands of broken files, each read as a job would: no crash, no hang, no traceback, no leak.

    python tests/fuzz/fuzz.py [--count 10000] [--seed 1] [--only raster]

The seed and the number of a case make it again: --seed 1 --first 4711 --count 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.errors import Refused, Unreadable
from tests.fuzz.children import Case, resident_mib, run_cases
from tests.fuzz.targets import Target, make_seeds, targets

TIMEOUT_S = 20.0
EACH = 250  # cases share a child, whose memory is watched
LEAK_MIB = 150  # more than a child of that many cases may grow by, the first tenth aside
GOOD = ("fine", "refused", "unreadable")


def main() -> int:
    """Print what each target said how often, and every case that failed; returns 1 where one did."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", help="one target")
    options = parser.parse_args()
    began, told, failed, slowest, most = time.monotonic(), defaultdict[str, Counter[str]](Counter), 0, 0.0, 0
    for case in fuzz(options.seed, options.first, options.count, options.only):
        target, _, number = case.name.partition("/")
        told[target][case.outcome] += 1
        slowest, most = max(slowest, case.seconds), max(most, case.used_mib)
        if case.outcome not in GOOD:
            failed += 1
            print(f"{case.outcome}: {target}, case {number}: {case.said}", flush=True)
    for target, outcomes in sorted(told.items()):
        print(f"{target:20s}" + "  ".join(f"{name} {count}" for name, count in sorted(outcomes.items())))
    cases = sum(sum(outcomes.values()) for outcomes in told.values())
    seconds = time.monotonic() - began
    print(f"{cases} cases, {failed} failed, in {seconds:.0f} s; the slowest took {slowest:.1f} s, the largest process {most} MiB")
    return int(failed > 0)


def fuzz(seed: int, first: int, count: int, only: str | None = None) -> Iterator[Case]:
    """The outcome of each case, from number `first` on; targets take turns."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        seeds = Path(scratch, "seeds")
        make_seeds(seeds)
        known = targets(seeds)
        if only is not None and only not in known:
            raise SystemExit(f"--only {only}: choose from {', '.join(known)}")
        taking = [name for name in known if only in (None, name)]
        names = [f"{taking[number % len(taking)]}/{number}" for number in range(first, first + count)]
        work = _Work(known, seed, Path(scratch))
        for name in taking:
            work(f"{name}/-1")  # what is imported late is imported now, once for all children
        yield from run_cases(names, work, timeout_s=TIMEOUT_S, each=EACH)


class _Work:
    """Runs a case by its name; in a child it counts what memory is not given back."""

    def __init__(self, known: dict[str, Target], seed: int, scratch: Path):
        self.known, self.seed, self.scratch, self.done, self.before = known, seed, scratch, 0, 0

    def __call__(self, name: str) -> tuple[str, str]:
        target = self.known[name.partition("/")[0]]
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            try:
                target(Path(folder), random.Random(f"{self.seed} {name}"))
                outcome = "fine", ""
            except Refused as error:
                outcome = "refused", str(error)
            except Unreadable as error:
                outcome = "unreadable", str(error)
        self.done += 1
        if self.done == EACH // 10:
            self.before = resident_mib()
        elif self.done == EACH - 1 and (grown := resident_mib() - self.before) > LEAK_MIB:
            return "leak", f"{grown} MiB more than {self.done - EACH // 10} cases before"
        return outcome


if __name__ == "__main__":
    sys.exit(main())
