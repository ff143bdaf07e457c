"""What a user does: build and load on the CPU, then move by hand."""

from __future__ import annotations

import device_lane
import pytest


@pytest.fixture(autouse=True)
def _created_on_the_cpu():
    with device_lane.created_on_the_cpu():
        yield
