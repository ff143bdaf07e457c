"""Off-policy learning around a frozen policy of LeRobot."""

from __future__ import annotations

import pytest
import torch
from tabletop_smolvla import make_tabletop_smolvla

from torchrl_vla.envs import TabletopEnv
from torchrl_vla.evaluation import evaluate
from torchrl_vla.policies import (
    make_noise_space_policy,
    make_residual_policy,
)
from torchrl_vla.recipes import (
    FinetuneSettings,
    NoiseSpace,
    Residual,
    finetune,
    load_checkpoint,
    load_executor,
)
from torchrl_vla.testing import check_policy

pytestmark = pytest.mark.lerobot

SMALL = {"members": 2, "hidden": 16, "updates_per_decision": 0.5}


def make_env():
    return TabletopEnv(3, image_size=32, max_steps=8, num_blocks=2, seed=0)


@pytest.mark.parametrize("make", [make_residual_policy, make_noise_space_policy])
def test_an_untrained_one_keeps_the_contract_and_acts_as_smolvla(make, tiny_vlm):
    base = make_tabletop_smolvla(tiny_vlm, make_env()).eval()
    policy = make(base, make_env(), bound=0.5).eval()
    check_policy(policy, make_env().reset(), row_tolerance=1e-3)
    seen = make_env().reset()
    with torch.no_grad():
        found, expected = (p(seen.clone())["action_chunk"] for p in (policy, base))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("algorithm", [Residual(**SMALL), NoiseSpace(**SMALL)])
def test_smolvla_stays_as_it_is_and_what_is_around_it_learns(
    algorithm, tiny_vlm, tmp_path
):
    base = make_tabletop_smolvla(tiny_vlm, make_env())
    before = {name: value.clone() for name, value in base.state_dict().items()}
    settings = FinetuneSettings(
        algorithm=algorithm, iterations=2, minibatch_size=6, eval_episodes=3
    )
    env = make_env()
    result = finetune(base, None, env, tmp_path, settings, progress=False)
    assert all(torch.equal(v, before[n]) for n, v in base.state_dict().items())
    assert result.log[-1]["loss_qvalue"] > 0
    assert result.log[-1]["updates"] > 0
    again, space = load_checkpoint(tmp_path / "policy")
    assert space is None
    metadata = make_env().metadata
    executor = load_executor(tmp_path / "policy", metadata=metadata)
    found = evaluate(make_env(), executor, 3, progress=False)
    assert [e.success for e in found.episodes] == [
        e.success for e in result.after.episodes
    ]
    assert type(again).__name__ in ("ResidualPolicy", "NoiseSpacePolicy")
