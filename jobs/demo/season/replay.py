"""Replay a season as a scheduler would have run it: one run of jobs/monitor_crops.py for each date, then the report.

make season        or        python jobs/demo/season/replay.py [OUT]
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from jobs import monitor_crops, report_areas

HERE = Path(__file__).parent


def main(out: str) -> int:
    """The exit code of the first run that is not done."""
    days = sorted({path.name[:8] for path in (HERE / "scenes").glob("*.json")})
    for number, day in enumerate(days, 1):
        date = f"{day[:4]}-{day[4:6]}-{day[6:]}"
        began, said = time.monotonic(), StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            code = monitor_crops.main(["--config", str(HERE / "monitor.yaml"), "--output", out, "--until", date])
        told = said.getvalue().strip().splitlines()
        print(f"{date}  run {number} of {len(days)}  {time.monotonic() - began:4.1f} s  {_short(told)}", flush=True)
        if code:
            print("\n".join(told), file=sys.stderr)
            return code
    again = time.monotonic()
    code = monitor_crops.main(["--config", str(HERE / "monitor.yaml"), "--output", out])
    print(f"once more: {time.monotonic() - again:.1f} s", flush=True)
    return code or report_areas.main([out, "--output", str(Path(out) / "report.html")])


def _short(told: list[str]) -> str:
    return next((line for line in told if "segmented" in line or line.startswith("nothing")), json.dumps(told[-1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "season-output"))
