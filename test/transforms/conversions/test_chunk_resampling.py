from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrl_vla.transforms.conversions.chunk_resampling import (
    resample_chunk,
    resampled_size,
)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.sampled_from([0.2, 0.5, 2 / 3, 1.0, 1.5, 2.0, 5.0, 29.97 / 10]),
    st.integers(0, 100),
)
def test_it_agrees_with_numpys_interpolation(size, ratio, seed):
    generator = torch.Generator().manual_seed(seed)
    chunk = torch.rand(2, size, 3, generator=generator, dtype=torch.float64)
    ours, is_pad = resample_chunk(chunk, None, ratio)
    times = np.arange(ours.shape[1]) / ratio
    assert is_pad is None
    assert times[-1] <= size - 1 + 1e-6 < times[-1] + 1 / ratio
    for row in range(2):
        for dim in range(3):
            values = chunk[row, :, dim].numpy()
            expected = np.interp(times, np.arange(size), values)
            np.testing.assert_allclose(ours[row, :, dim].numpy(), expected, atol=1e-6)


def test_slots_after_the_last_real_action_repeat_it_whatever_the_padding_holds():
    chunk = torch.tensor([[0.0], [2.0], [4.0], [float("nan")]])
    is_pad = torch.tensor([False, False, False, True])
    slower, mask = resample_chunk(chunk, is_pad, 2 / 3)
    # Times 0, 1.5 and 3: the last is after the episode's end.
    assert slower.flatten().tolist() == [0.0, 3.0, 4.0]
    assert mask.tolist() == [False, False, True]


def test_a_time_between_a_real_and_a_padded_action_is_padded():
    chunk, is_pad = torch.tensor([[0.0], [9.0]]), torch.tensor([False, True])
    faster, mask = resample_chunk(chunk, is_pad, 2.0)
    assert faster.flatten().tolist() == [0.0, 0.0, 0.0]
    assert mask.tolist() == [False, True, True]


def test_padding_before_an_episode_repeats_its_first_action():
    chunk = torch.tensor([[9.0], [1.0], [2.0]])
    faster, mask = resample_chunk(chunk, torch.tensor([True, False, False]), 2.0)
    assert faster.flatten().tolist() == [1.0, 1.0, 1.0, 1.5, 2.0]
    assert mask.tolist() == [True, True, False, False, False]


def test_a_chunk_of_padding_stays_one():
    chunk = torch.zeros(2, 3, 1)
    is_pad = torch.tensor([[True] * 3, [False] * 3])
    _, mask = resample_chunk(chunk, is_pad, 2.0)
    assert mask.tolist() == [[True] * 5, [False] * 5]


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize("factor", [1, 2, 3, 10])
def test_a_faster_rate_comes_back_to_the_same_number_of_actions(size, factor):
    assert resampled_size(resampled_size(size, factor), 1 / factor) == size
