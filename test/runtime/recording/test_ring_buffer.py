from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from torchrl_vla.runtime import FrameRing


def frame(number: int, size: int = 1000) -> TensorDict:
    return TensorDict(
        {"x": torch.zeros(size, dtype=torch.uint8), "n": torch.tensor(number)}
    )


def test_exactly_the_last_30_seconds_are_kept():
    ring = FrameRing(seconds=30, megabytes=100, rate_hz=10)
    for number in range(1000):
        ring.add(frame(number))
    assert [int(f["n"]) for f in ring.take()] == list(range(700, 1000))


def test_ten_times_the_memory_is_held_at_the_cap():
    ring = FrameRing(seconds=1e6, megabytes=2, rate_hz=10)
    for number in range(2000):
        ring.add(frame(number, 10_000))
        assert ring.bytes <= 2e6
    kept = [int(f["n"]) for f in ring.take()]
    assert kept == list(range(2000 - 199, 2000))  # 10,008 bytes each
    assert ring.bytes == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 3000), max_size=40), st.integers(1, 10))
def test_both_bounds_hold_and_the_newest_frames_are_kept(sizes, most):
    ring = FrameRing(seconds=most, megabytes=0.005, rate_hz=1)
    for number, size in enumerate(sizes):
        ring.add(frame(number, size))
    kept = [int(f["n"]) for f in ring.take()]
    total, expected = 0, []
    for number, size in reversed(list(enumerate(sizes))):
        total += size + 8
        if total > 5000 or len(expected) == most:
            break
        expected.insert(0, number)
    assert kept == expected


def test_bounds_that_are_not_positive_are_refused():
    with pytest.raises(ValueError, match="positive numbers"):
        FrameRing(0, 1, 1)
