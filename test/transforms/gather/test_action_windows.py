from __future__ import annotations

import torch

from torchrl_vla.transforms.gather.action_windows import runs, window_chunks


def test_a_cut_window_pads_with_the_last_action_before_the_cut():
    actions = torch.arange(5.0).view(1, 5, 1)
    ends = torch.tensor([[False, True, False, False, False]])
    chunk, is_pad = window_chunks(actions, 3, ends=ends)
    expected = [[0, 1, 1], [1, 1, 1], [2, 3, 4], [3, 4, 4], [4, 4, 4]]
    assert chunk[0, :, :, 0].tolist() == expected
    assert is_pad[0].sum(-1).tolist() == [1, 2, 0, 1, 2]
    assert not ends[0, -1]  # the caller's tensor is left alone


def test_the_two_paths_agree():
    actions = torch.randn(3, 7, 2)
    ends = torch.zeros(3, 7, dtype=torch.bool)
    uncut = window_chunks(actions, 4, ends=ends)
    ends[0, 2] = True
    cut = window_chunks(actions, 4, ends=ends)
    assert torch.equal(uncut[0][1:], cut[0][1:])
    assert torch.equal(uncut[1][1:], cut[1][1:])


def test_gradients_reach_the_actions():
    actions = torch.zeros(1, 3, 1, requires_grad=True)
    chunk, is_pad = window_chunks(actions, 2)
    chunk[~is_pad].sum().backward()
    assert actions.grad.flatten().tolist() == [1, 2, 2]


def test_runs_are_a_view():
    actions = torch.arange(8.0).view(4, 2)
    view = runs(actions, 3)
    assert view.tolist() == [[0, 1, 2, 3, 4, 5], [2, 3, 4, 5, 6, 7]]
    assert view.data_ptr() == actions.data_ptr()
