"""The tables of a monitoring at 25 million rows: how fast and how large they are written, and how long analysts' questions take.

    python tests/benchmarks/bench_monitoring_tables.py [--parcels 100000] [--dates 50] [--classes 5] [--folder FOLDER]

First one date is written in several ways; then all dates with rows in groups of three sizes, and each question is asked of each in a
process of its own, twice: the second time its files are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.results.monitoring import open_monitoring
from pipeline.results.query import WHOLE_TIME, read_queries
from pipeline.results.tables import PARCELS, ROW_GROUP
from tests.benchmarks.machine import describe_machine
from tests.results.monitored import KnownAreas, Monitored, parcel_rows, write_results

FLOATS = ["pixel_count", "area_m2", "share", "parcel_area_m2", "valid_share"]
STRINGS = [field.name for field in PARCELS if field.type == pa.string()]
WAYS: dict[str, dict[str, Any]] = {
    "zstd": {"compression": "zstd"},
    "zstd, level 9": {"compression": "zstd", "compression_level": 9},
    "snappy": {"compression": "snappy"},
    "zstd, dictionaries of strings alone": {"compression": "zstd", "use_dictionary": STRINGS},
    "zstd, floats split by byte": {
        "compression": "zstd", "use_dictionary": STRINGS, "column_encoding": dict.fromkeys(FLOATS, "BYTE_STREAM_SPLIT"),
    },
    "zstd, Bloom filter of parcel_id": {"compression": "zstd", "bloom_filter_options": {"parcel_id": {"ndv": 100_000, "fpp": 0.05}}},
}  # fmt: skip
GROUPS = (20_000, 50_000, 100_000)
ASKED = {
    "area_by_class": {},
    "changed_parcels": {},
    "season_curve": {"parcel": True},
    "districts_by_change": {},
    "data_gaps": {},
    "area_by_class of a month": {"since": True},
}
ASKER = """
import json, re, sys, time
from datetime import date
from pathlib import Path
from pipeline.results.monitoring import open_monitoring
from pipeline.results.query import asked, read_queries
out, name, values = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
values |= {key: date.fromisoformat(values[key]) for key in ("since", "until") if key in values}
begun, used = time.perf_counter(), time.process_time()
with asked(open_monitoring(out), read_queries()[name], values) as connection:
    rows = connection.execute("SELECT count(*) FROM answer").fetchone()[0]
took, cpu = time.perf_counter() - begun, time.process_time() - used
peak_kib = int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])  # ru_maxrss would be the parent's, at first
print(json.dumps({"s": took, "cpu": cpu, "rows": rows, "mib": peak_kib / 1024}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    for name, count in (("parcels", 100_000), ("dates", 50), ("classes", 5)):
        parser.add_argument(f"--{name}", type=int, default=count, metavar="N")
    parser.add_argument("--folder", type=Path, help="where to write, and leave, the tables")
    options = parser.parse_args()
    made = Monitored(options.parcels, options.dates, options.classes, districts=40, clouds=False)
    print(describe_machine())
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        compare_ways(folder, made)
        for group in GROUPS:
            ask_all(folder / f"groups-{group}", made, group)
            if not options.folder:
                shutil.rmtree(folder / f"groups-{group}")


def compare_ways(folder: Path, made: Monitored) -> None:
    """One date's parcels: seconds and bytes of each way to write them."""
    columns = parcel_rows(made, 0, KnownAreas.of(made, 0))
    table = pa.table([columns[name] for name in PARCELS.names], schema=PARCELS)
    print(f"\none date, {table.num_rows:,} rows, {table.nbytes / 2**20:.0f} MiB in memory")
    print("\n| way | CPU s | MiB | million rows/s |\n|---|---|---|---|")
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(table.num_rows)))
    ways = [(way, settings, table) for way, settings in WAYS.items()]
    ways.append(("zstd, not sorted by parcel", WAYS["zstd"], shuffled))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "one.parquet"
    for way, settings, rows in ways:
        begun = time.process_time()
        pq.write_table(rows, file, row_group_size=ROW_GROUP, **settings)
        took = time.process_time() - begun
        print(f"| {way} | {took:.2f} | {file.stat().st_size / 2**20:.1f} | {rows.num_rows / took / 1e6:.2f} |", flush=True)
        file.unlink()


def ask_all(out: Path, made: Monitored, group: int) -> None:
    """Write all tables in row groups of a size; then ask."""
    begun, used = time.perf_counter(), time.process_time()
    if not out.exists():
        write_results(out, Monitored(**{**_values(made), "file": {"row_group_size": group}}))
    took, cpu = time.perf_counter() - begun, time.process_time() - used
    folders = sorted((out / "results").iterdir())
    sizes = {each.name: sum(file.stat().st_size for file in each.rglob("*.parquet")) / 2**20 for each in folders}
    rows = sum(pq.read_metadata(file).num_rows for file in (out / "results" / "parcels").rglob("*.parquet"))
    print(f"\ngroups of {group:,} rows: {rows:,} rows of parcels; made and written in {took:.0f} s ({cpu:.0f} s of CPU); MiB: "
          + ", ".join(f"{name} {size:.1f}" for name, size in sizes.items()))  # fmt: skip
    print("\n| question | first s | again s | CPU s | rows | peak MiB |\n|---|---|---|---|---|---|")
    for title, wants in ASKED.items():
        values = {"parcel": str(made.ids[made.parcels // 2])} if "parcel" in wants else {}
        values |= {"since": str(made.days[20]), "until": str(made.days[22])} if "since" in wants else {}
        first, again = (_asked(out, title.split()[0], values) for _ in range(2))
        told = f"{first['s']:.2f} | {again['s']:.2f} | {again['cpu']:.2f} | {again['rows']:,} | {again['mib']:.0f}"
        print(f"| {title} | {told} |", flush=True)
    read, there = row_groups_read(out, str(made.ids[made.parcels // 2]))
    print(f"\nseason_curve reads {read} of {there} row groups")


def row_groups_read(out: Path, parcel: str) -> tuple[int, int]:
    """Row groups of all tables that the season curve of a parcel reads, and that there are."""
    query = read_queries()["season_curve"]
    with open_monitoring(out).connected(query.tables) as connection:
        plan = connection.execute(f"EXPLAIN ANALYZE {query.sql}", {**WHOLE_TIME, "parcel": parcel}).fetchall()[0][1]
    found = re.findall(r"Row Groups Scanned: (\d+) / (\d+)", plan)
    return sum(int(read) for read, _ in found), sum(int(there) for _, there in found)


def _asked(out: Path, name: str, values: dict[str, str]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", ASKER, str(out), name, json.dumps(values)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def _values(made: Monitored) -> dict[str, Any]:
    return {name: getattr(made, name) for name in made.__dataclass_fields__}


if __name__ == "__main__":
    main()
