"""Law 5 on a local disk: created once, replaced as a whole, and nothing temporary ever seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import Refused
from pipeline.imagery import storage

PROJECT = Path(__file__).parents[2]


def create_together(path: str, writer: int, start: threading.Barrier) -> bool:
    start.wait()
    return storage.create_json(Path(path), {"writer": writer, "filler": "x" * 50_000})


def test_the_second_writer_loses_and_changes_nothing(tmp_path: Path):
    path = tmp_path / "made" / "on" / "the" / "way" / "plan.json"
    assert storage.create_json(path, {"writer": 1})
    before = path.read_bytes(), path.stat().st_ino
    assert not storage.create_json(path, {"writer": 2})
    assert (path.read_bytes(), path.stat().st_ino) == before
    assert os.listdir(path.parent) == ["plan.json"], "the loser's file is gone"


def test_of_eight_threads_exactly_one_wins(tmp_path: Path):
    for attempt in range(5):
        path, start = tmp_path / f"{attempt}.json", threading.Barrier(8)
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda writer, path=path, start=start: create_together(str(path), writer, start), range(8)))
        assert sum(won) == 1
        assert storage.read_json(path)["writer"] == won.index(True)
    assert storage.names(tmp_path) == set(os.listdir(tmp_path)) == {f"{attempt}.json" for attempt in range(5)}


def test_of_eight_processes_exactly_one_wins(tmp_path: Path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom pipeline.imagery import storage\n"
        "folder, writer = Path(sys.argv[1]), int(sys.argv[2])\n(folder / f'ready-{writer}').touch()\n"
        "while not (folder / 'go').exists(): time.sleep(0.0002)\n"
        "sys.exit(0 if storage.create_json(folder / 'out' / 'plan.json', {'writer': writer}) else 9)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(writer)], cwd=PROJECT) for writer in range(8)]
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("ready-*"))) < 8:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (tmp_path / "go").touch()
    codes = [writer.wait(timeout=60) for writer in writers]
    assert sorted(codes) == [0] + 7 * [9]
    assert storage.read_json(tmp_path / "out" / "plan.json") == {"writer": codes.index(0)}
    assert os.listdir(tmp_path / "out") == ["plan.json"]


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path):
    path, stop, torn = tmp_path / "run.json", threading.Event(), []
    storage.replace_json(path, {"a": 0, "filler": "x" * 100_000, "b": 0})

    def read() -> None:
        while not stop.is_set():
            content = json.loads(path.read_text())
            if content["a"] != content["b"]:
                torn.append(content)

    with ThreadPoolExecutor(2) as pool:
        reading = [pool.submit(read) for _ in range(2)]
        for number in range(60):
            storage.replace_json(path, {"a": number, "filler": "x" * 100_000, "b": number})
        stop.set()
        for reader in reading:
            reader.result()
    assert not torn and storage.read_json(path)["a"] == 59
    assert os.listdir(tmp_path) == ["run.json"]


def test_a_finished_file_is_published_once_or_in_place(tmp_path: Path):
    first, second, third = (storage.temporary(tmp_path, "mask.tif") for _ in range(3))
    for number, finished in enumerate((first, second, third)):
        finished.write_text(str(number))
    path = tmp_path / "out" / "mask.tif"
    assert storage.publish_once(first, path) and path.read_text() == "0"
    assert not storage.publish_once(second, path) and path.read_text() == "0"
    storage.publish(third, path)
    assert path.read_text() == "2"
    assert not (first.exists() or second.exists() or third.exists())


def test_temporary_files_are_unique_never_listed_and_swept(tmp_path: Path):
    folder = tmp_path / "parts"
    made = {storage.temporary(folder, "r0c0.tif") for _ in range(50)}
    assert len(made) == 50 and folder.is_dir()
    for path in made:
        path.touch()
    (folder / "r0c0.tif").touch()
    (folder / ".hidden").touch()
    assert storage.names(folder) == {"r0c0.tif", ".hidden"}
    storage.sweep(folder)
    assert set(os.listdir(folder)) == {"r0c0.tif", ".hidden"}, "only what is temporary goes"
    storage.sweep(folder / "missing")
    assert storage.names(folder / "missing") == set()


def test_temporary_folders_go_and_those_of_killed_runs_are_swept(tmp_path: Path):
    with storage.temporary_folder(tmp_path / "made") as shop:
        (shop / "rows.parquet").touch()
        assert storage.names(tmp_path / "made") == set()
    assert not shop.exists()
    for name in ("young", "old"):
        left = tmp_path / "results" / f".{name}.tmp"
        left.mkdir(parents=True)
        (left / "rows.parquet").touch()
        (tmp_path / "results" / "areas").mkdir(exist_ok=True)
        (tmp_path / "results" / "areas" / f".{name}-file.tmp").touch()
    (tmp_path / "results" / "areas" / "old.parquet").touch()
    yesterday = time.time() - 25 * 3600
    for path in tmp_path.rglob("*old*"):
        os.utime(path, (yesterday, yesterday))
    storage.sweep_old(tmp_path)
    left = {str(path.relative_to(tmp_path / "results")) for path in (tmp_path / "results").rglob("*")}
    assert left == {"areas", "areas/old.parquet", "areas/.young-file.tmp", ".young.tmp", ".young.tmp/rows.parquet"}
    storage.sweep(tmp_path / "results")
    assert not (tmp_path / "results" / ".young.tmp").exists()
    storage.sweep_old(tmp_path / "missing")


def test_a_discarded_file_is_gone_whatever_happens(tmp_path: Path):
    path = storage.temporary(tmp_path, "part")
    with pytest.raises(KeyError), storage.discarded(path):
        path.touch()
        raise KeyError
    assert os.listdir(tmp_path) == []
    with storage.discarded(path):
        path.touch()
        storage.publish(path, tmp_path / "kept")
    assert os.listdir(tmp_path) == ["kept"]


def test_a_version_changes_with_the_content(tmp_path: Path):
    path = tmp_path / "scene.tif"
    path.write_bytes(b"one")
    versions = [storage.version(path), storage.version(path)]
    assert versions[0] == versions[1]
    path.write_bytes(b"three")
    versions.append(storage.version(path))
    time.sleep(0.02)  # the clock of a file system ticks in milliseconds
    path.write_bytes(b"seven")
    versions.append(storage.version(path))
    assert len(set(versions[1:])) == 3


def test_sha256_is_that_of_the_bytes(tmp_path: Path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert storage.sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1


def test_json_is_read_as_it_was_written(tmp_path: Path):
    content = {"naïve": [1, 2.5, None, True], "nested": {"Ω": "π"}}
    storage.create_json(tmp_path / "a.json", content)
    assert storage.read_json(tmp_path / "a.json") == content
    assert storage.read_json(tmp_path / "missing.json") is None


@pytest.mark.parametrize("damaged", [b"", b'{"a": 1', b"\xff\xfe\x00", b"{}}"])
def test_damaged_json_is_refused_by_name(tmp_path: Path, damaged: bytes):
    path = tmp_path / "plan.json"
    path.write_bytes(damaged)
    with pytest.raises(Refused, match=r"plan\.json is not valid JSON.*remove it"):
        storage.read_json(path)


def test_check_writable_leaves_nothing_behind(tmp_path: Path):
    storage.check_writable(tmp_path / "not" / "yet" / "there")
    storage.check_writable(tmp_path)
    assert os.listdir(tmp_path) == []


def test_check_writable_refuses_a_file(tmp_path: Path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(Refused, match=r"cannot write to .*file.* is a file, not a folder"):
            storage.check_writable(place)


def test_check_writable_refuses_a_folder_without_permission(tmp_path: Path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(Refused, match=r"cannot write to .*locked.*: Permission denied; choose another --output"):
        storage.check_writable(locked / "out")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to: /proc")
def test_check_writable_refuses_a_folder_where_nobody_may_write():
    with pytest.raises(Refused, match=r"cannot write to /proc/.*; choose another --output"):
        storage.check_writable(Path("/proc/out"))


@pytest.mark.parametrize("place", ["https://example.com/a.tif", "gs://bucket/a"])
def test_other_schemes_are_refused_by_name(place: str):
    with pytest.raises(Refused, match=f"{place}: {place.split(':')[0]}:// is not supported"):
        storage.place_of(place)


def test_local_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (
        storage.local_path("a/../b.tif")
        == storage.local_path("~/b.tif")
        == storage.local_path(f"file://{tmp_path}/b.tif")
        == tmp_path / "b.tif"
    )


def test_free_space_is_asked_of_the_disk_that_would_hold_it(tmp_path: Path):
    assert storage.free_bytes(tmp_path / "a" / "b") == pytest.approx(storage.free_bytes(tmp_path), rel=0.1)


def test_what_another_run_sweeps_away_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs that share a folder sweep it when they are done, whoever writes there."""
    honest, swept = storage._sync, []

    def swept_before(path: Path) -> None:
        if path.suffix == ".tmp" and len(swept) < 2:
            swept.append(path)
            storage.sweep(tmp_path)
        honest(path)

    monkeypatch.setattr(storage, "_sync", swept_before)
    storage.replace_json(tmp_path / "run.json", {"outcome": "done"})
    assert storage.create_json(tmp_path / "dataset.json", {"bundle": 1})
    assert len(swept) == 2
    assert storage.read_json(tmp_path / "run.json") == {"outcome": "done"} and storage.read_json(tmp_path / "dataset.json") == {"bundle": 1}


def end_of(place: storage.Place, size: int) -> bytes:
    """As a Parquet footer is read."""
    with storage.sought(place) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return file.read()


def test_the_end_of_a_file(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"0123456789")
    assert [end_of(tmp_path / "file", size) for size in (4, 10, 40)] == [b"6789", b"0123456789", b"0123456789"]
    with pytest.raises(FileNotFoundError):
        end_of(tmp_path / "missing", 4)
