"""Processes are ended by number and beginning: those that were meant, all that they started, and no other."""

from __future__ import annotations

import os
import sys
import time

from cluster.processes import Process, alive, answers, descendants, end, free_port, seen
from tests.processes import end_group, start, wait_for

FAMILY = """
import signal, subprocess, sys, time
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(100)"
child = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
print("ready", flush=True)
time.sleep(100)
"""


def test_a_process_and_what_it_started_are_ended_wherever_they_went():
    parent = start([sys.executable, "-c", FAMILY])
    try:
        assert parent.stdout and parent.stdout.readline() == "ready\n"
        (child,) = descendants(parent.pid)
        assert os.getpgid(child) != os.getpgid(parent.pid)
        leader = seen(parent.pid)
        assert leader
        end([leader], 5)
        wait_for(lambda: not alive([parent.pid, child]), 5)
    finally:
        end_group(parent)


def test_who_has_the_number_by_now_is_left_alone():
    other = start(["sh", "-c", "sleep 100 & wait"])
    try:
        wait_for(lambda: descendants(other.pid), 10)
        child, now = descendants(other.pid), seen(other.pid)
        assert now
        began = time.monotonic()
        end([Process(other.pid, now.began - 1)], 5)
        assert time.monotonic() - began < 4, "nobody is waited for"
        time.sleep(0.3)
        assert other.poll() is None and alive(child), "nor what it started"
    finally:
        end_group(other)


def test_who_has_ended_is_not_seen():
    done = start(["true"])
    wait_for(lambda: seen(done.pid) is None, 10)  # it is a zombie until it is waited for
    done.wait()
    assert seen(done.pid) is None
    me = seen(os.getpid())
    assert me and me == seen(os.getpid())
    assert not answers(free_port())
