"""The versions of what makes a result."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import rasterio
import torch

PACKAGES = ("tilewright", "numpy", "rasterio", "openvino", "nncf")


def software() -> dict[str, str]:
    """The versions that a result may depend on, by name, of what is installed here."""
    own = {"python": platform.python_version(), "torch": torch.__version__, "gdal": rasterio.__gdal_version__}
    return own | {package: found for package in PACKAGES if (found := _installed(package))}


@cache
def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def other_versions(before: Mapping[str, str]) -> str:
    """What has another version here than when something was begun, as a person would say it; nothing where all are the same."""
    now = software()
    return ", ".join(f"{name} {before[name]} (here {now[name]})" for name in sorted(now) if before.get(name, now[name]) != now[name])
