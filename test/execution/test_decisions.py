from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_vla.execution import select_decisions
from torchrl_vla.schema import ExecutionError, MissingKeyError


def make_rollout(is_decision, reward, success):
    mask = torch.tensor(is_decision).bool()
    n_rows, n_steps = mask.shape
    clock = torch.arange(n_rows * n_steps).reshape(n_rows, n_steps, 1)
    return TensorDict(
        {
            "is_decision": mask.unsqueeze(-1),
            "clock": clock,
            "next": {
                "reward": torch.tensor(reward).float().unsqueeze(-1),
                "success": torch.tensor(success).bool().unsqueeze(-1),
                "clock": clock + 1,
            },
        },
        batch_size=mask.shape,
    )


def test_each_decision_carries_what_followed_from_it():
    rollout = make_rollout(
        [[1, 0, 0, 1, 0], [0, 0, 1, 1, 0]],  # row 1 begins inside an older chunk
        [[1, 2, 4, 8, 16], [32, 64, 128, 256, 512]],
        [[0, 1, 0, 0, 0], [1, 0, 0, 0, 1]],
    )
    decisions = select_decisions(rollout, chunk_size=3)
    after = decisions["next"]
    assert decisions["clock"].flatten().tolist() == [0, 3, 7, 8]
    assert after["clock"].flatten().tolist() == [3, 5, 8, 10]
    assert after["reward"].flatten().tolist() == [7, 24, 128, 768]
    assert after["executed_steps"].flatten().tolist() == [3, 2, 1, 2]
    assert after["success"].flatten().tolist() == [True, False, False, True]
    assert after["is_executed"].int().tolist() == [
        [1, 1, 1],
        [1, 1, 0],
        [1, 0, 0],
        [1, 1, 0],
    ]


def test_rollout_of_one_unbatched_environment_is_selected_too():
    rollout = make_rollout([[1, 0, 1]], [[1, 2, 4]], [[0, 0, 0]])[0]
    decisions = select_decisions(rollout, chunk_size=2)
    assert decisions["next", "reward"].tolist() == [[3.0], [4.0]]


def test_rows_without_any_decision_vanish():
    rollout = make_rollout([[0, 0], [1, 0]], [[1, 2], [4, 8]], [[0, 0], [0, 0]])
    decisions = select_decisions(rollout, chunk_size=2)
    assert decisions["next", "reward"].tolist() == [[12.0]]
    nothing = select_decisions(rollout[:1], chunk_size=2)
    assert nothing.batch_size == (0,)


def test_selecting_does_not_change_the_rollout():
    rollout = make_rollout([[1, 0]], [[1, 2]], [[0, 1]])
    before = rollout.clone()
    select_decisions(rollout, chunk_size=2)
    assert (rollout == before).all()


def test_a_decision_longer_than_its_chunk_is_refused():
    rollout = make_rollout([[1, 0, 0]], [[1, 2, 4]], [[0, 0, 0]])
    with pytest.raises(
        ExecutionError, match=r"at most chunk_size=2 steps, got one of 3"
    ):
        select_decisions(rollout, chunk_size=2)


def test_rollout_without_mask_is_refused():
    with pytest.raises(MissingKeyError, match=r"at 'is_decision', got only \['a'\]"):
        select_decisions(TensorDict({"a": torch.zeros(1, 2)}, [1, 2]), chunk_size=2)
