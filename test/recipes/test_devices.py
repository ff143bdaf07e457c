from __future__ import annotations

import pytest
from torch import nn

from torchrl_vla.envs import TabletopEnv, ToyVLAEnv
from torchrl_vla.recipes.devices import on_device, parse_device
from torchrl_vla.recipes.finetuning.finetune_settings import SettingsError
from torchrl_vla.rollout import check_device


def test_an_environment_on_the_device_stays_as_it_is():
    env = TabletopEnv(2, image_size=16)
    assert on_device(env, None) is env
    assert on_device(env, "cpu") is env


def test_the_tabletop_moves_to_the_device_as_it_simulates_there(monkeypatch):
    moved = []
    monkeypatch.setattr(TabletopEnv, "to", lambda env, to: (moved.append(to), env)[1])
    env = TabletopEnv(2, image_size=16)
    assert on_device(env, "meta") is env
    assert moved == ["meta"]
    toy = ToyVLAEnv()
    assert on_device(toy, "meta").base_env is toy


@pytest.mark.parametrize("name", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(SettingsError, match=f"train: expected a device .*'{name}'"):
        parse_device("train", name)


def test_a_policy_on_another_device_is_refused():
    env = TabletopEnv(2, image_size=16)
    check_device("evaluate", nn.Linear(1, 1), env)
    check_device("evaluate", nn.Identity(), env)
    with pytest.raises(SettingsError, match=r"evaluate: expected the policy on 'cpu'"):
        check_device("evaluate", nn.Linear(1, 1, device="meta"), env)
