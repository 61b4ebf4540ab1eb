"""What tests of whole trainings share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.training.labelled import small_halo


@pytest.fixture(scope="module")
def small_halo_sample() -> Iterator[None]:
    with small_halo():
        yield
