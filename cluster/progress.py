"""How far a run is: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from typing import TextIO

BAR_EVERY_S, LINE_EVERY_S = 0.2, 5.0
BAR_WIDTH = 30


class Progress:
    """Counts shards and pixels; writes `progress k/N shards, MPix/s, time left` every few seconds."""

    def __init__(self, shards: int, pixels: int, stream: TextIO = sys.stderr):
        self.shards, self.pixels, self.stream = shards, pixels, stream
        self.done_shards = self.done_pixels = 0
        self.began = self.written = time.monotonic()
        self.bar, self.ended = stream.isatty(), shards == 0

    def add(self, pixels: int) -> None:
        """One more shard of that many pixels is done."""
        self.done_shards += 1
        self.done_pixels += pixels
        self.tick()

    def tick(self) -> None:
        """Write, if it is time to."""
        now = time.monotonic()
        finished = self.done_shards == self.shards
        if self.ended or not (finished or now - self.written >= (BAR_EVERY_S if self.bar else LINE_EVERY_S)):
            return
        self.written, self.ended = now, finished
        self._write(now)

    def close(self) -> None:
        """End the bar's line."""
        if self.bar and self.done_shards:
            self.stream.write("\n")

    def _write(self, now: float) -> None:
        seconds = max(now - self.began, 1e-9)
        left = clock((self.pixels - self.done_pixels) * seconds / self.done_pixels) if self.done_pixels else "unknown time"
        text = f"{self.done_shards}/{self.shards} shards, {self.done_pixels / seconds / 1e6:.2f} MPix/s, {left} left"
        if self.bar:
            self.stream.write(bar(self.done_shards, self.shards, text))
        else:
            self.stream.write(f"progress {text}\n")
        self.stream.flush()


def bar(done: int, total: int, text: str) -> str:
    """A bar and a text that take the place of a terminal's line."""
    filled = BAR_WIDTH * done // max(total, 1)
    return f"\r[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {text}\x1b[K"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss under an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
