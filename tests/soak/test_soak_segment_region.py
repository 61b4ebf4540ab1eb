"""The short form of the soak; `soak_segment_region.py --rounds 200` is the long one."""

from __future__ import annotations

import sys

import pytest

from tests.processes import run
from tests.soak import soak_segment_region


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_rounds():
    done = run([sys.executable, soak_segment_region.__file__, "--rounds", 3, "--seed", 11])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 rounds, 0 ended otherwise than they must" in done.stdout
