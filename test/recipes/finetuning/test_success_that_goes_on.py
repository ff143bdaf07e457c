"""Training where the episode goes on after its success, as in Fetch or PointMaze."""

from __future__ import annotations

import pytest
import torch
from point_robot import GoesOn, Point, act_by, make_point, towards

from torchrl_vla.recipes import GRPO, RLOO, make_decision_env
from torchrl_vla.recipes.finetuning.advantage_estimation import count_outcomes


def half(state):
    """Two rows of each group of four solve the task, two stand still."""
    solves = (torch.arange(len(state)) % 4 < 2).float().view(-1, 1)
    return (towards(state) / 2 * solves).unsqueeze(-2).expand(-1, 2, 4)


def roll_out(cls, reward="success"):
    env = make_decision_env(
        make_point(cls, 8), None, chunk_size=2, seed=0, group_size=4, reward=reward
    )
    policy = act_by(half, "action_chunk")
    return env.rollout(10, policy, break_when_any_done=False)


@pytest.mark.parametrize("cls", [Point, GoesOn])
def test_every_successful_episode_is_paid_once(cls):
    rollout = roll_out(cls)
    first_done = rollout["next", "done"].long().argmax(1).flatten()
    returns = [
        rollout["next", "reward"][row, : end + 1].sum().item()
        for row, end in enumerate(first_done)
    ]
    assert returns == [1.0, 1.0, 0.0, 0.0] * 2


@pytest.mark.parametrize("reward", ["success", "environment"])
@pytest.mark.parametrize("cls", [Point, GoesOn])
@pytest.mark.parametrize("algorithm", [GRPO(group_size=4), RLOO(group_size=4)])
def test_groups_with_successes_and_failures_teach(cls, reward, algorithm):
    rollout = roll_out(cls, reward)
    kept = algorithm.estimate_advantages(rollout, None)
    assert len(kept) > 0
    wins = kept["advantage"][kept["advantage"] > 0]
    assert 0 < len(wins) < len(kept)


def test_an_outcome_is_success_at_any_step():
    rollout = roll_out(GoesOn)
    assert not (rollout["next", "success"] & rollout["next", "done"]).all()
    assert count_outcomes(rollout) == (8, 4)
