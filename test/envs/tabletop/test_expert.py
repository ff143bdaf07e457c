from __future__ import annotations

import pytest
import torch

from torchrl_vla.envs import TabletopEnv
from torchrl_vla.envs.tabletop.expert import TabletopExpert
from torchrl_vla.evaluation import evaluate


@pytest.mark.parametrize(
    ("task", "noise", "expected"),
    [
        ("reach", 0.0, 1.0),
        ("reach", 0.3, 0.99),
        ("push", 0.0, 0.98),
        ("push", 0.3, 0.94),
    ],
)
def test_the_expert_succeeds(task, noise, expected):
    env = TabletopEnv(200, tasks=(task,), image_size=8)
    expert = env.make_expert(noise=noise)
    result = evaluate(env, expert, 400, seed=3, progress=False)
    assert result.success_rate >= expected


def test_the_expert_takes_the_straight_way_to_a_block():
    env = TabletopEnv(50, image_size=8)
    env.reset(episode_seeds=torch.arange(50))
    action = env.make_expert()(env.reset(episode_seeds=torch.arange(50)))["action"]
    to_block = env.scene.target_block - env.scene.gripper
    far = to_block.norm(dim=-1) > 0.1
    expected = to_block / to_block.norm(dim=-1, keepdim=True)
    assert torch.allclose(action[far], expected[far], atol=1e-6)


def test_noise_changes_what_is_executed_and_not_what_was_meant():
    env = TabletopEnv(500, image_size=8)
    data = env.reset(episode_seeds=torch.arange(500))
    meant = env.make_expert()(data.clone())["action"]
    noisy = env.make_expert(noise=0.2, seed=1)(data.clone())
    assert torch.equal(noisy["expert_action"], meant)
    difference = noisy["action"] - meant
    inside = noisy["action"].abs().amax(-1) < 1.0  # not clipped
    assert difference[inside].std().item() == pytest.approx(0.2, rel=0.2)
    assert noisy["action"].abs().max() <= 1.0
    again = env.make_expert(noise=0.2, seed=1)(data.clone())
    assert torch.equal(again["action"], noisy["action"])


def test_negative_noise_is_refused():
    with pytest.raises(ValueError, match=r"expected noise >= 0, got -0\.1"):
        TabletopExpert(TabletopEnv(1), noise=-0.1)
