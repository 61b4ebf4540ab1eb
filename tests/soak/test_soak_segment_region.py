"""The short form of the soak; `soak_segment_region.py --rounds 200` is the long one."""

from __future__ import annotations

import sys

import pytest

from tests.processes import end_group, start
from tests.soak import soak_segment_region


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_rounds():
    soak = start([sys.executable, soak_segment_region.__file__, "--rounds", 2, "--seed", 11])
    try:
        said, error = soak.communicate(timeout=850)
    finally:
        end_group(soak)
    assert soak.returncode == 0, said + error
    assert "2 rounds, 0 ended otherwise than they must" in said
