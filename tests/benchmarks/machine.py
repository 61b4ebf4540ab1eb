"""What a benchmark says of the machine it ran on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from pipeline.inference.plan import memory_allotted, software
from pipeline.models.engine import describe_device


def describe_machine() -> str:
    """CPU, cores, memory and versions, on one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    versions = ", ".join(f"{package} {version}" for package, version in software().items())
    memory = memory_allotted() / 2**30
    return f"{name} ({describe_device('cpu')}), {os.cpu_count()} cores, {memory:.0f} GiB; {versions}"
