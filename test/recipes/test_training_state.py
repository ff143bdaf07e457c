from __future__ import annotations

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
