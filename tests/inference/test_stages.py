"""Spans of stages: their sums, and a trace that a viewer opens."""

from __future__ import annotations

import json
import threading
import time

import pytest

from pipeline.inference.stages import STAGES, Span, Stages, events, totals


def test_spans_are_collected_from_any_thread_also_when_work_fails():
    stages = Stages()
    with stages("device"):
        time.sleep(0.02)

    def fail() -> None:
        with pytest.raises(ValueError), stages("write"):
            raise ValueError

    other = threading.Thread(target=fail)
    other.start()
    other.join()
    device, write = stages.spans
    assert (device.stage, write.stage) == ("device", "write") and device.seconds >= 0.02 and abs(device.began - time.time()) < 5
    assert device.thread != write.thread


def test_totals_name_every_stage():
    spans = [Span("read", 0.0, 1.5, 1), Span("read", 2.0, 0.5, 2), Span("wait", 0.0, 0.25, 1)]
    assert totals(spans) == dict.fromkeys(STAGES, 0.0) | {"read": 2.0, "wait": 0.25}


def test_events_are_those_of_a_chrome_trace():
    name, event = json.loads(json.dumps(list(events("host 17 x", [Span("device", 1.5, 0.25, 2**40 + 3)]))))
    assert name["args"]["name"] == "host 17 x"
    assert event == {"ph": "X", "pid": 17, "tid": 3, "name": "device", "ts": 1500000, "dur": 250000}
