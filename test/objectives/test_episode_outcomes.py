from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict

from torchrl_vla.objectives import EpisodeOutcomes
from torchrl_vla.schema import SchemaError


def rollout(done, success=None, at_start=None):
    def flags(rows):
        return torch.tensor(rows).bool().unsqueeze(-1)

    data = TensorDict(next={"done": flags(done)}, batch_size=flags(done).shape[:2])
    if success is not None:
        data["next", "success"] = flags(success)
    if at_start is not None:
        data["success"] = flags(at_start)
    return data


def test_success_at_any_step_is_the_outcome():
    found = EpisodeOutcomes.from_rollout(
        rollout([[0, 0, 1, 0], [0, 1, 0, 1]], [[0, 1, 0, 0], [0, 0, 0, 1]])
    )
    assert found.number.tolist() == [[0, 0, 0, 1], [2, 2, 3, 3]]
    assert found.is_complete.tolist() == [True, False, True, True]
    assert found.success.tolist() == [True, False, False, True]


def test_success_before_the_first_step_is_one_too():
    found = EpisodeOutcomes.from_rollout(
        rollout([[0, 1, 0, 1]], [[0, 0, 0, 0]], [[1, 0, 0, 0]])
    )
    assert found.success.tolist() == [True, False]


def test_without_success_nothing_is_guessed():
    assert EpisodeOutcomes.from_rollout(rollout([[1]])).success is None


def test_a_share_of_a_task_is_no_success():
    data = rollout([[1]], [[1]])
    data["next", "success"] = torch.full((1, 1, 1), 0.5)
    with pytest.raises(SchemaError, match=r"got 0\.5 in torch\.float32\. A share of"):
        EpisodeOutcomes.from_rollout(data)


@given(
    st.lists(
        st.lists(st.tuples(st.booleans(), st.booleans()), min_size=5, max_size=5),
        min_size=1,
        max_size=4,
    )
)
def test_the_outcomes_are_those_of_a_loop_over_the_steps(rows):
    expected, current = [], None
    for row in rows:
        for done, success in row:
            if current is None:
                current = [False, False]
            current = [done, current[1] or success]
            if done:
                expected.append(current)
                current = None
        if current:
            expected.append(current)
        current = None
    found = EpisodeOutcomes.from_rollout(
        rollout(
            [[d for d, _ in row] for row in rows], [[s for _, s in r] for r in rows]
        )
    )
    got = list(
        map(list, zip(found.is_complete.tolist(), found.success.tolist(), strict=True))
    )
    assert got == expected
