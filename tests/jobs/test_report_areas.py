"""The job that asks and reports: what it prints and writes, local and on object storage, and what it refuses."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest

from jobs import report_areas
from tests.results.monitored import Monitored, write_results
from tests.servers import Store, get_bytes, put_file

MADE = Monitored(parcels=80, dates=6, classes=3, odd_id="<b>\x1b[31mred")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("it's [here]") / "out"
    write_results(out, MADE)
    return out


def run(*arguments: object) -> int:
    return report_areas.main([str(argument) for argument in arguments])


def test_query_alone_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--query") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["area_by_class", "changed_parcels", "data_gaps", "districts_by_change", "season_curve"]


def test_the_forms_hold_the_same_rows(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(out, "--query", "data_gaps", "--format", "csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == MADE.parcels and {row["parcel_id"] for row in rows} == set(MADE.ids)
    assert run(out, "--query", "data_gaps", "--output", tmp_path / "gaps.parquet") == 0
    frame = pd.read_parquet(tmp_path / "gaps.parquet")
    assert frame.parcel_id.tolist() == [row["parcel_id"] for row in rows]
    assert frame.longest_gap_days.tolist() == [int(row["longest_gap_days"]) for row in rows]
    assert run(out, "--query", "data_gaps") == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == 52 and "the first 50 rows are shown" in shown and rows[0]["parcel_id"] in shown


def test_text_of_strangers_cannot_reach_the_terminal(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(out, "--query", "season_curve", "--parcel", MADE.odd_id, "--until", MADE.days[0]) == 0
    assert run(out, "--query", "data_gaps") == 0
    assert run(out, "--query", "season_curve", "--parcel", "no\x1b[2J") == 2
    told = capsys.readouterr()
    assert "\x1b" not in told.out + told.err


def test_what_is_wrong_is_one_line_and_exit_code_2(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    other = tmp_path / "segmented"
    (other / "results" / "parcels").mkdir(parents=True)
    (other / "results" / "parcels" / "scene.parquet").write_bytes(b"")
    (other / "dataset.json").write_text("{}")
    cases = {
        "there is no such query": [out, "--query", "areas"],
        "holds no results of a monitoring": [tmp_path / "empty", "--query", "data_gaps"],
        "is not there": [tmp_path / "nowhere", "--query", "data_gaps"],
        "is an OUT of segment_region": [other, "--query", "data_gaps"],
        "is a file": [other / "dataset.json", "--query", "data_gaps"],
        "has no region elsewhere": [out, "--query", "data_gaps", "--of", "elsewhere"],
        "say which with --query": [out, "--since", "2017-04-01"],
        "say where with --output": [out, "--query", "data_gaps", "--format", "parquet"],
    }
    for told, arguments in cases.items():
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1
    with pytest.raises(SystemExit, match="2"):
        run(out, "--query", "data_gaps", "--since", "yesterday")
    assert "write YYYY-MM-DD" in capsys.readouterr().err


def test_on_object_storage(
    out: Path, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    for file in sorted(file for file in out.rglob("*") if file.is_file()):
        put_file(store, file, f"monitored/season/{file.relative_to(out).as_posix()}")
    for query, more in {"area_by_class": [], "data_gaps": [], "season_curve": ["--parcel", MADE.ids[7]]}.items():
        assert run(out, "--query", query, "--format", "csv", *more) == 0
        expected = capsys.readouterr().out
        assert run("s3://monitored/season", "--query", query, "--format", "csv", *more) == 0
        assert capsys.readouterr().out == expected and len(expected.splitlines()) > 3
    store.calm()
    assert (
        run("s3://monitored/season", "--query", "area_by_class", "--since", MADE.days[4], "--output", "s3://monitored/areas.parquet") == 0
    )
    read = {path for method, path in store.requests if method == "GET" and "parquet" in path and "list-type" not in path}
    days = {day for day in MADE.days if any(f"date={day}" in unquote(path) for path in read)}
    assert days == {MADE.days[0], *MADE.days[4:]}  # the schema is that of the first file
    assert run("s3://monitored/nothing", "--query", "data_gaps") == 2
    assert run(out, "--output", tmp_path / "report.html") == run("s3://monitored/season", "--output", "s3://monitored/report.html") == 0
    local, remote = (tmp_path / "report.html").read_text(), (get_bytes(store, "monitored/report.html") or b"").decode()
    made = r"made \d{4}-\d\d-\d\d \d\d:\d\d UTC"
    assert re.sub(made, "", remote) == re.sub(made, "", local) and "Season curves" in local
    assert store.url not in capsys.readouterr().err
