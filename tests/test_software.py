"""The versions that are written beside a result."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from pipeline import software as module
from pipeline.software import other_versions, software


def test_it_names_what_a_result_depends_on(monkeypatch: pytest.MonkeyPatch):
    found = software()
    assert found["numpy"] == version("numpy") and found["tilewright"] == version("tilewright") and {"python", "torch", "gdal"} <= set(found)
    monkeypatch.setattr(module, "PACKAGES", ("numpy", "no-such-package"))
    assert "no-such-package" not in software()


def test_only_what_both_know_and_is_not_the_same_differs():
    now = software()
    assert other_versions(now) == "" and other_versions({}) == "" and other_versions({**now, "gone": "1"}) == ""
    older = {**now, "torch": "1.0", "gdal": "2.0"}
    assert other_versions(older) == f"gdal 2.0 (here {now['gdal']}), torch 1.0 (here {now['torch']})"
