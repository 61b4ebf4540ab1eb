"""OUT/results holds the tables of the model in charge, each whole; what is the same is not touched."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from pipeline.imagery import storage
from pipeline.results.mirror import mirror_tables
from pipeline.results.tables import read_rows, write_monitoring


def put(folder: Path, name: str, input_id: str, region: str = "here") -> Path:
    path = folder / name / f"{region}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_monitoring(pa.table({"model": [input_id]}), path, input_id)
    return path


def test_tables_are_copied_once_replaced_and_taken_away(tmp_path: Path):
    ours, results = tmp_path / "ours", tmp_path / "results"
    put(ours, "areas/date=2017-05-01", "one")
    put(ours, "seasons", "two")
    assert mirror_tables(ours, results, "here") == 2
    assert read_rows(results / "seasons" / "here.parquet") == [{"model": "two"}]
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*.parquet")}
    assert mirror_tables(ours, results, "here") == 0
    assert before == {path: path.stat().st_mtime_ns for path in results.rglob("*.parquet")}
    put(ours, "seasons", "three")
    gone = put(results, "areas/date=2016-05-01", "of another model")
    kept = put(results, "areas/date=2016-05-01", "of another region", "there")
    assert mirror_tables(ours, results, "here") == 2
    assert read_rows(results / "seasons" / "here.parquet") == [{"model": "three"}]
    assert not gone.exists() and kept.exists()
    assert not [name for folder in storage.all_folders(results) for name in folder.glob(".*")]  # type: ignore[union-attr]
