"""How long a task may take: an hour at first, then what the run itself has measured."""

from __future__ import annotations

from cluster.deadlines import HOUR_S, LEAST_S, Deadlines

MPIX = 1_000_000


def test_before_a_shard_is_finished_it_has_an_hour_or_more_if_it_is_large():
    deadlines = Deadlines()
    assert deadlines.of_shard(MPIX) == HOUR_S
    assert deadlines.of_shard(64 * MPIX) == 6400.0


def test_then_ten_times_what_the_slowest_took_and_at_least_ten_minutes():
    deadlines = Deadlines()
    deadlines.add(4 * MPIX, 8.0)
    assert deadlines.of_shard(4 * MPIX) == LEAST_S
    deadlines.add(4 * MPIX, 400.0)
    deadlines.add(4 * MPIX, 9.0)
    assert deadlines.of_shard(4 * MPIX) == 4000.0
    assert deadlines.of_shard(16 * MPIX) == 16000.0


def test_a_publication_has_more_time_the_more_it_publishes():
    deadlines = Deadlines()
    assert deadlines.of_publication(MPIX) < HOUR_S + 1
    assert deadlines.of_publication(100_000 * MPIX) == HOUR_S + 10_000
