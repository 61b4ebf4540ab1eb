"""Plain lines in a log every few seconds, a bar on a terminal."""

from __future__ import annotations

import io

import pytest

from cluster.progress import Progress, clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def time_passes(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("cluster.progress.time.monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_few_seconds_and_one_at_the_end(time_passes: list[float]):
    log = io.StringIO()
    progress = Progress(4, 8_000_000, log)
    for seconds in (1.0, 2.0, 3.0):  # the line at 6 s, none at 1 s and 3 s
        time_passes[0] += seconds
        progress.add(2_000_000)
    time_passes[0] += 6.0
    progress.tick()
    progress.add(2_000_000)
    progress.tick()
    assert log.getvalue().splitlines() == [
        "progress 3/4 shards, 1.00 MPix/s, 0:02 left",
        "progress 3/4 shards, 0.50 MPix/s, 0:04 left",
        "progress 4/4 shards, 0.67 MPix/s, 0:00 left",
    ]


def test_before_the_first_shard_the_time_is_unknown(time_passes: list[float]):
    log = io.StringIO()
    progress = Progress(2, 100, log)
    time_passes[0] += 6
    progress.tick()
    assert log.getvalue() == "progress 0/2 shards, 0.00 MPix/s, unknown time left\n"


def test_a_terminal_gets_a_bar(time_passes: list[float]):
    terminal = Terminal()
    progress = Progress(2, 100, terminal)
    time_passes[0] += 1
    progress.add(50)
    assert terminal.getvalue().startswith("\r[###############...............] 1/2 shards")
    progress.close()
    assert terminal.getvalue().endswith("\n")


def test_nothing_to_do_says_nothing(time_passes: list[float]):
    log = io.StringIO()
    progress = Progress(0, 0, log)
    time_passes[0] += 60
    progress.tick()
    progress.close()
    assert log.getvalue() == ""


def test_clock():
    assert [clock(seconds) for seconds in (0, 59.6, 61, 3600, 36_061)] == ["0:00", "1:00", "1:01", "1:00:00", "10:01:01"]
