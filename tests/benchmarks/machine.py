"""What a benchmark says of the machine it ran on."""

from __future__ import annotations

import os

from pipeline.inference.plan import memory_allotted
from pipeline.models.engine import describe_device, processor_name
from pipeline.software import software


def describe_machine() -> str:
    """CPU, cores, memory and versions, on one line."""
    versions = ", ".join(f"{package} {version}" for package, version in software().items())
    memory = memory_allotted() / 2**30
    return f"{processor_name()} ({describe_device('cpu')}), {os.cpu_count()} cores, {memory:.0f} GiB; {versions}"
