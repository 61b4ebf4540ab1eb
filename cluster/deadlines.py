"""How long a task may take before its actor is killed and the task is begun again, and how often it is."""

from __future__ import annotations

HOUR_S = 3600.0
LEAST_S = 600.0  # whatever was measured: storage may stall for minutes and come back
TIMES = 10  # what the slowest shard took
SLOWEST_SHARD = 10_000  # px/s, for the first shards: a U-Net 64..1024 in fp32 does 73,000 on one core (tests/benchmarks/RESULTS.md)
SLOWEST_PUBLICATION = 10_000_000  # px/s: joining parts was measured at 6,473 million
NODE_TIMEOUT_S, TELL_EVERY_S = 600.0, 20.0  # without what is needed, and between words on it: a cloud's GPU may take 5 to 10 minutes
GROW_S = 300.0  # work that each worker must have left for a node to be started, which may take as long
ATTEMPTS = 3  # to do a task, before it is given up


class Deadlines:
    """Deadlines of a run's tasks, by their pixels and by what its finished shards took.

    A shard has an hour, or a second for each 10,000 px if that is more, until the first one is finished; from then on
    ten times what the slowest took a pixel, and at least ten minutes. A publication has an hour and a second for each 10 MPix.
    """

    def __init__(self) -> None:
        self._slowest: float | None = None  # seconds a pixel

    def add(self, pixels: int, seconds: float) -> None:
        """A shard of that many pixels was finished in that time."""
        self._slowest = max(self._slowest or 0.0, seconds / pixels)

    def of_shard(self, pixels: int) -> float:
        """Seconds that a shard may take from now on."""
        if self._slowest is None:
            return max(HOUR_S, pixels / SLOWEST_SHARD)
        return max(LEAST_S, TIMES * self._slowest * pixels)

    def of_publication(self, pixels: int) -> float:
        """Seconds that a scene's publication may take."""
        return HOUR_S + pixels / SLOWEST_PUBLICATION
