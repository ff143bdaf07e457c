from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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


def one_row(**columns):
    """A rollout of one row; every column is a list over its steps."""
    length = len(columns["is_decision"])
    data = TensorDict({}, [1, length])
    after = TensorDict(
        {"reward": 2.0 ** torch.arange(length)[None, :, None]}, [1, length]
    )
    data["clock"] = torch.arange(length)[None, :, None]
    after["clock"] = data["clock"] + 1
    data["tokens"] = 100 + torch.arange(length)[None, :, None]  # an executor's output
    for name, values in columns.items():
        where = after if name == "done" else data
        dtype = torch.int64 if name == "observation_age" else torch.bool
        where[name] = torch.tensor(values)[None, :, None].to(dtype)
    return data.set("next", after)


def test_a_decision_ends_with_its_episode():
    rollout = one_row(is_decision=[1, 0, 0, 0, 1, 0], done=[0, 1, 0, 0, 0, 0])
    decisions = select_decisions(rollout, chunk_size=4)
    assert decisions["next", "executed_steps"].flatten().tolist() == [2, 2]
    assert decisions["next", "reward"].flatten().tolist() == [1 + 2, 16 + 32]
    assert decisions["next", "clock"].flatten().tolist() == [2, 6]


def test_steps_on_which_a_row_waited_are_no_part_of_a_decision():
    rollout = one_row(
        is_decision=[1, 0, 0, 0, 1, 0],
        is_waiting=[0, 0, 1, 1, 0, 0],
        done=[0, 1, 0, 0, 0, 0],
    )
    rollout["next", "reward"][0, 2:4] = 1000.0
    decisions = select_decisions(rollout, chunk_size=4)
    assert decisions["next", "reward"].flatten().tolist() == [3, 48]
    assert decisions["next", "executed_steps"].flatten().tolist() == [2, 2]
    # Without the end of the episode in the data the mask alone leaves them out.
    del rollout["next", "done"]
    again = select_decisions(rollout, chunk_size=4)
    assert again["next", "reward"].flatten().tolist() == [3, 48]
    assert again["next", "clock"].flatten().tolist() == [2, 6]


def test_each_decision_knows_its_row():
    rollout = make_rollout(
        [[1, 0, 1], [0, 0, 0], [0, 1, 0]], [[0] * 3] * 3, [[0] * 3] * 3
    )
    decisions = select_decisions(rollout, chunk_size=3)
    assert decisions["row_index"].tolist() == [0, 0, 2]
    assert decisions["row_index"].dtype == torch.int64


def test_what_was_seen_comes_from_the_step_on_which_the_policy_looked():
    rollout = one_row(
        is_decision=[1, 0, 0, 1, 0, 1],
        observation_age=[0, 0, 0, 2, 2, 1],
        done=[0] * 6,
    )
    decisions = select_decisions(rollout, chunk_size=4)
    assert decisions["clock"].flatten().tolist() == [0, 1, 4]
    assert decisions["tokens"].flatten().tolist() == [100, 103, 105]
    assert decisions["observation_age"].flatten().tolist() == [0, 2, 1]
    # Two steps from position 2 on, and one from position 1.
    assert decisions["next", "is_executed"].int().tolist() == [
        [1, 1, 1, 0],
        [0, 0, 1, 1],
        [0, 1, 0, 0],
    ]
    assert decisions["next", "reward"].flatten().tolist() == [7, 24, 32]


def test_a_decision_whose_observation_was_not_collected_is_dropped():
    rollout = one_row(is_decision=[1, 0, 1], observation_age=[1, 1, 2], done=[0] * 3)
    decisions = select_decisions(rollout, chunk_size=4)
    assert decisions["clock"].flatten().tolist() == [0]
    assert decisions["tokens"].flatten().tolist() == [102]
    assert decisions["next", "reward"].flatten().tolist() == [4]


def test_an_observation_of_the_episode_before_is_refused():
    rollout = one_row(
        is_decision=[1, 0, 1, 0], observation_age=[0, 0, 1, 1], done=[0, 1, 0, 0]
    )
    with pytest.raises(ExecutionError, match=r"'observation_age' reaches into the one"):
        select_decisions(rollout, chunk_size=4)


def test_a_chunk_entered_in_its_middle_cannot_outlast_it():
    rollout = one_row(is_decision=[1, 0, 0, 0, 0], observation_age=[2] * 5)
    with pytest.raises(ExecutionError, match=r"chunk_size=6 steps, got one of 7"):
        select_decisions(rollout, chunk_size=6)


def test_an_action_of_several_ticks_is_one_position_of_the_chunk():
    rollout = one_row(is_decision=[1, 0, 0, 0, 0, 1])
    decisions = select_decisions(rollout, chunk_size=4, ticks=2)
    assert decisions["next", "executed_steps"].flatten().tolist() == [5, 1]
    assert decisions["next", "is_executed"].int().tolist() == [
        [1, 1, 1, 0],
        [1, 0, 0, 0],
    ]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_agrees_with_a_walk_along_every_row(data):
    rows, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 10))
    flags = st.lists(st.booleans(), min_size=length, max_size=length)
    decide, done, waits = ([data.draw(flags) for _ in range(rows)] for _ in range(3))
    waits = [[w and not d for w, d in zip(*pair)] for pair in zip(waits, decide)]
    rollout = make_rollout(
        decide,
        [[2.0**t for t in range(length)]] * rows,
        [[False] * length] * rows,
    )
    rollout["is_waiting"] = torch.tensor(waits).unsqueeze(-1)
    rollout["next", "done"] = torch.tensor(done).unsqueeze(-1)
    expected = []
    for row in range(rows):
        running = None
        for t in range(length):
            if decide[row][t]:
                running = [row, t, 0, 0.0, t]
                expected.append(running)
            if running is not None and not waits[row][t]:
                running[2] += 1
                running[3] += 2.0**t
                running[4] = t
            if done[row][t]:
                running = None
    decisions = select_decisions(rollout, chunk_size=10)
    after = decisions["next"]
    got = zip(
        decisions["row_index"].tolist(),
        (decisions["clock"].flatten() % length).tolist(),
        after["executed_steps"].flatten().tolist(),
        after["reward"].flatten().tolist(),
        ((after["clock"].flatten() - 1) % length).tolist(),  # the last step's
    )
    assert [list(line) for line in got] == expected
