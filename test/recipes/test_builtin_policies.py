from __future__ import annotations

import pytest
from own_parts import make_env

from torchrl_vla.envs import TabletopEnv
from torchrl_vla.errors import SettingsError
from torchrl_vla.evaluation import evaluate
from torchrl_vla.recipes.builtin_policies import make_builtin_policy
from torchrl_vla.recipes.own_policies import load_any_executor


@pytest.mark.parametrize(("source", "rate"), [("random", 0.0), ("scripted", 1.0)])
def test_the_floor_and_the_expert_of_an_environment(source, rate):
    env = TabletopEnv(4, image_size=16)
    policy = make_builtin_policy(source, env)
    assert evaluate(env, policy, 8, progress=False).success_rate == rate


def test_an_environment_of_ones_own_has_both():
    env = make_env(4, seed=0)
    scripted = load_any_executor("scripted", env)
    chance = load_any_executor("random", env)
    assert evaluate(env, scripted, 8, progress=False).success_rate == 1.0
    assert evaluate(env, chance, 8, progress=False).success_rate < 1.0


def test_they_say_that_they_read_no_image():
    env = TabletopEnv(2, image_size=16, render_on_demand=True)
    for source in ("random", "scripted"):
        step = make_builtin_policy(source, env)(env.reset())
        assert step["observation_needed"].tolist() == [[False], [False]]


def test_an_environment_without_an_expert_says_who_has_one():
    class Plain(TabletopEnv):
        make_expert = None

    with pytest.raises(SettingsError, match="scripted expert at --env, got Plain"):
        make_builtin_policy("scripted", Plain(2, image_size=16))


def test_options_without_an_effect_are_refused():
    env = TabletopEnv(2, image_size=16)
    message = r"expected no \['device', 'replan_interval'\] \(--replan-interval, --dev"
    with pytest.raises(SettingsError, match=message):
        load_any_executor("random", env, replan_interval=2, device="cpu")
