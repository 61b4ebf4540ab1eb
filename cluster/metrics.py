"""What a run counts for Prometheus: Ray exports it on every node, with `ray_` before a name and `_total` after a counter's.

The share of time in which the device waits is that of stage "wait" in "wait" and "device" (cluster/dashboard.json).
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge

from pipeline.inference.segment import ShardResult
from pipeline.inference.stages import totals
from pipeline.models.bundle import Bundle

MODEL_DIGITS = 16


class Metrics:
    """Counters of a run, which its driver adds to as shards end; `model` tells those of several models apart."""

    def __init__(self, bundle: Bundle):
        tags = {"model": bundle.model_id[:MODEL_DIGITS]}
        self._pixels = _counter("pixels", "Pixels of shards that were segmented.", tags)
        self._shards = _counter("shards", "Shards that ended, by what became of them: done or failed.", tags, "outcome")
        self._retries = _counter("retries", "Shards that were begun again.", tags)
        self._seconds = _counter("stage_seconds", "Seconds of workers by stage, which overlap.", tags, "stage")
        self._read = _counter("read_bytes", "Bytes of windows, decoded, that were read of scenes.", tags)
        self._written = _counter("written_bytes", "Bytes of parts, compressed, that were written.", tags)
        self._left = Gauge("tilewright_shards_left", "Shards of the run that have not ended.", tuple(tags))
        self._left.set_default_tags(tags)

    def add(self, result: ShardResult | None, attempts: int, left: int) -> None:
        """A shard has ended, with a result or without, after so many attempts, and so many are left."""
        self._shards.inc(1, {"outcome": "done" if result else "failed"})
        self._left.set(left)
        if attempts > 1:
            self._retries.inc(attempts - 1)
        if result is None:
            return
        self._pixels.inc(result.pixels)
        for stage, seconds in totals(result.spans).items():
            if seconds:
                self._seconds.inc(seconds, {"stage": stage})
        for counter, size in ((self._read, result.read_bytes), (self._written, result.written_bytes)):
            if size:
                counter.inc(size)


def _counter(name: str, description: str, tags: dict[str, str], *more: str) -> Counter:
    counter = Counter(f"tilewright_{name}", description, (*tags, *more))
    counter.set_default_tags(tags)
    return counter
