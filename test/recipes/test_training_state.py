from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from torchrl_vla.recipes import ResumeError, TrainingState


def make(folder, lr=0.1, settings=None):
    torch.manual_seed(0)
    layer = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=lr)
    parts = {"layer": layer, "optimizer": optimizer}
    return layer, optimizer, TrainingState(folder, parts, settings or {"lr": lr})


def train(layer, optimizer, steps):
    for step in range(steps):
        loss = (layer(torch.tensor([1.0, float(step)])) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_it_restores_weights_and_the_optimizer_s_memory(tmp_path):
    layer, optimizer, state = make(tmp_path)
    train(layer, optimizer, 3)
    state.write(3)
    train(layer, optimizer, 2)
    again, its_optimizer, restored = make(tmp_path)
    assert restored.read() == 3
    train(again, its_optimizer, 2)
    assert torch.equal(again.weight, layer.weight)
    assert torch.equal(again.bias, layer.bias)


def test_there_is_nothing_to_restore_at_first(tmp_path):
    assert make(tmp_path)[2].read() is None


def test_a_process_killed_while_writing_leaves_the_state_before(tmp_path, monkeypatch):
    layer, optimizer, state = make(tmp_path)
    state.write(1)

    def half(value, file):
        file.write(b"half")
        raise KeyboardInterrupt

    train(layer, optimizer, 1)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(KeyboardInterrupt):
            state.write(2)
    assert make(tmp_path)[2].read() == 1


def test_other_settings_are_listed(tmp_path):
    make(tmp_path, settings={"lr": 0.1, "epochs": 2})[2].write(1)
    state = make(tmp_path, settings={"lr": 0.2, "epochs": 2})[2]
    with pytest.raises(ResumeError, match=r"got others .*\{'lr': \(0\.1, 0\.2\)\}"):
        state.read()


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_a_state_that_was_cut_off_is_refused_with_the_way_out(tmp_path, part):
    *_, state = make(tmp_path)
    state.write(1)
    os.truncate(state.path, int(state.path.stat().st_size * part))
    with pytest.raises(ResumeError, match=r"training_state\.pt', got .*another folder"):
        make(tmp_path)[2].read()


def test_a_state_of_other_parts_is_refused_by_their_name(tmp_path):
    *_, state = make(tmp_path)
    state.parts["layer"] = nn.Linear(3, 1)
    state.write(1)
    with pytest.raises(ResumeError, match=r"a state that fits at 'layer' in .*Runt"):
        make(tmp_path)[2].read()
    torch.save({"iteration": 1}, state.path)
    with pytest.raises(ResumeError, match=r"expected 'settings' in .*only \['iter"):
        make(tmp_path)[2].read()
