"""The versions of what makes a result."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import rasterio
import torch

PACKAGES = ("tilewright", "numpy", "rasterio", "openvino", "nncf")


@cache
def software() -> Mapping[str, str]:
    """The versions that a result may depend on, by name, of what is installed here."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "gdal": rasterio.__gdal_version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def other_versions(before: Mapping[str, str]) -> str:
    """What has another version here than when something was begun, as a person would say it; nothing where all are the same."""
    now = software()
    return ", ".join(f"{name} {before[name]} (here {now[name]})" for name in sorted(now) if before.get(name, now[name]) != now[name])
