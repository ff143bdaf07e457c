from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import NonTensorStack, TensorDict

from torchrl_vla.data import DemonstrationDataset, collect, frames_of_rollout
from torchrl_vla.data.rollout_frames import frame_statistics
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.schema import (
    FeatureStatistics,
    InstructionTable,
    MissingKeyError,
    RobotDatasetMetadata,
    SchemaError,
)

TABLE = InstructionTable(["push"])


def make_rollout(done, is_init=None, success=None, **more):
    """Steps ``[N, T]`` whose action is their place in the flat rollout."""
    done = torch.tensor(done).bool()
    shape = done.shape
    success = done if success is None else torch.tensor(success).bool()
    place = torch.arange(float(shape.numel())).view(*shape, 1)
    no = torch.zeros(*shape, 1, dtype=torch.bool)
    out = TensorDict(
        {
            "observation": {"state": place + 0.5},
            "language_instruction": TABLE.ids.expand(shape),
            "action": place,
            "next": {
                "reward": -place,
                "done": done.unsqueeze(-1),
                "terminated": done.unsqueeze(-1),
                "truncated": no,
                "success": success.unsqueeze(-1),
            },
            **{key: torch.tensor(value) for key, value in more.items()},
        },
        shape,
    )
    if is_init is not None:
        out["is_init"] = torch.tensor(is_init).bool().unsqueeze(-1)
    return out


def numbers(frames):
    keys = ("episode_index", "frame_index", "action")
    return list(zip(*(frames[key].flatten().tolist() for key in keys)))


def naive(done, is_init, waiting):
    """Row by row: (episode, frame, place) of each frame."""
    found, episode = [], -1
    for row in range(len(done)):
        begun, frame = False, 0
        for t in range(len(done[0])):
            if is_init[row][t] or (t > 0 and done[row][t - 1]):
                begun, fresh = True, True
            if begun and not waiting[row][t]:
                if fresh:
                    episode, frame, fresh = episode + 1, 0, False
                found.append((episode, frame, float(row * len(done[0]) + t)))
                frame += 1
    return found


def test_rows_become_numbered_episodes():
    rollout = make_rollout([[0, 1, 0, 0], [1, 0, 0, 1]])
    frames = frames_of_rollout(rollout, TABLE)
    expected = [(0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 3)]
    expected += [(2, 0, 4), (3, 0, 5), (3, 1, 6), (3, 2, 7)]
    assert numbers(frames) == expected
    assert torch.equal(frames["observation", "state"], frames["action"] + 0.5)
    assert torch.equal(frames["next", "reward"], -frames["action"])


def test_what_began_before_the_rollout_is_left_out():
    rollout = make_rollout([[0, 1, 0], [0, 0, 0]], [[0, 0, 1], [1, 0, 0]])
    frames = frames_of_rollout(rollout, TABLE)
    assert numbers(frames) == [(0, 0, 2), (1, 0, 3), (1, 1, 4), (1, 2, 5)]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_the_frames_are_those_of_a_walk_along_each_row(data):
    count, n_time = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 7))
    row = st.lists(st.booleans(), min_size=n_time, max_size=n_time)
    done, waiting = ([data.draw(row) for _ in range(count)] for _ in range(2))
    is_init = [[True, *data.draw(row)[1:]] for _ in range(count)]
    rollout = make_rollout(done, is_init)
    rollout["is_waiting"] = torch.tensor(waiting).unsqueeze(-1)
    expected = naive(done, is_init, waiting)
    if expected:
        assert numbers(frames_of_rollout(rollout, TABLE)) == expected
    else:
        with pytest.raises(SchemaError, match=r"the start of an episode"):
            frames_of_rollout(rollout, TABLE)


def test_texts_become_ids_of_the_table():
    table = InstructionTable()
    rollout = make_rollout([[0, 1], [0, 1]]).exclude("language_instruction")
    texts = [NonTensorStack("reach", "reach"), NonTensorStack("push", "push")]
    rollout["language_instruction"] = NonTensorStack(*texts)
    frames = frames_of_rollout(rollout, table)
    decoded = table.decode(frames["language_instruction"])
    assert decoded == ["reach", "reach", "push", "push"]


def test_the_target_is_the_experts_and_the_flags_are_kept():
    flags = [[[True], [False]]]
    rollout = make_rollout(
        [[0, 1]],
        expert_action=[[[7.0], [8.0]]],
        is_labeled=flags,
        is_intervention=flags,
        episode_seed=[[3, 3]],
    )
    frames = frames_of_rollout(rollout, TABLE)
    assert frames["action"].flatten().tolist() == [7.0, 8.0]
    assert frames["is_labeled"].flatten().tolist() == [True, False]
    assert frames["is_intervention"].flatten().tolist() == [True, False]
    assert frames["episode_seed"].tolist() == [3, 3]


def test_a_rollout_of_an_environment_is_what_collect_would_have_stored(tmp_path):
    env = TabletopEnv(2, image_size=8, seed=0)
    collected = collect(
        env, env.make_expert(), 2, folder=tmp_path, successes_only=False, progress=False
    )
    data = env.reset(episode_seeds=torch.tensor([0, 1]))
    rollout = env.rollout(
        60,
        env.make_expert(),
        auto_reset=False,
        tensordict=data,
        break_when_any_done=False,
    )
    dataset = DemonstrationDataset.from_rollout(rollout, env.metadata, env.instructions)
    ours = {
        seed: dataset.frames[dataset.frames["episode_seed"] == seed] for seed in (0, 1)
    }
    for number, seed in enumerate((0, 1)):
        theirs = collected.frames[collected.frames["episode_index"] == number]
        mine = ours[seed][: len(theirs)].exclude("episode_index")
        for key, value in theirs.exclude("episode_index").items(True, True):
            assert torch.equal(value.as_subclass(torch.Tensor), mine[key]), key


def test_statistics_that_the_metadata_have_are_kept():
    own = FeatureStatistics.from_samples(torch.tensor([[0.0], [9.0]]))
    metadata = RobotDatasetMetadata("d", action_statistics=own)
    rollout = make_rollout([[0, 1]])
    dataset = DemonstrationDataset.from_rollout(rollout, metadata, TABLE)
    assert dataset.metadata.action_statistics == own
    assert dataset.metadata.state_statistics.mean.tolist() == [1.0]


def test_the_statistics_of_actions_are_those_of_the_labeled_ones():
    frames = TensorDict(
        {
            "action": torch.tensor([[1.0], [50.0], [3.0]]),
            "is_labeled": torch.tensor([[True], [False], [True]]),
            "observation": {"state": torch.tensor([[1.0], [2.0], [6.0]])},
        },
        [3],
    )
    found = frame_statistics(frames)
    assert found["action_statistics"].mean.tolist() == [2.0]
    assert found["action_statistics"].count == 2
    assert found["state_statistics"].mean.tolist() == [3.0]
    frames["is_labeled"] = torch.zeros(3, 1, dtype=torch.bool)
    assert frame_statistics(frames)["action_statistics"].mean.tolist() == [18.0]


def test_images_of_an_earlier_step_are_refused():
    rollout = make_rollout([[0, 1]], image_is_stale=[[[False], [True]]])
    with pytest.raises(SchemaError, match=r"frames_of_rollout: .* True in 1 of 2"):
        frames_of_rollout(rollout, TABLE)


def test_a_rollout_without_success_is_refused():
    rollout = make_rollout([[0, 1]]).exclude(("next", "success"))
    with pytest.raises(MissingKeyError, match=r"got none of \[\('next', 'success'\)\]"):
        frames_of_rollout(rollout, TABLE)


def test_a_single_step_is_refused():
    with pytest.raises(SchemaError, match=r"a rollout \[\*B, T\], got a step"):
        frames_of_rollout(make_rollout([[1]])[0, 0], TABLE)
