"""How large is each network, how far does it look, how much does it compute? What `jobs/train_model.py --list` prints.

    python tests/benchmarks/bench_zoo.py [--write] [NAME ...]

Measures all, or those named, and says what differs from pipeline/models/zoo.json; --write puts it there. All take 10 minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline.models import zoo
from pipeline.models.networks import ARCHITECTURES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--write", action="store_true", help="put what was measured into zoo.json")
    options = parser.parse_args()
    for name in options.names or sorted(ARCHITECTURES):
        kept = json.loads(zoo.KEPT.read_text()) if zoo.KEPT.exists() else {}
        began = time.monotonic()
        torch.manual_seed(0)
        found = zoo.measure(name)._asdict()
        print(f"{name:30s} {found} {'' if found == kept.get(name) else 'NEW '}{time.monotonic() - began:.1f} s", flush=True)
        if options.write:
            lines = (
                f"{json.dumps(one)}: {json.dumps(facts)}" for one, facts in sorted((kept | {name: found}).items()) if one in ARCHITECTURES
            )
            zoo.KEPT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
