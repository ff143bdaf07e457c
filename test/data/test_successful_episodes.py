from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from torchrl_vla.data import (
    DemonstrationDataset,
    select_successes,
    successful_episodes,
)
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.recipes import (
    TrainingSettings,
    make_policy,
    train_behavior_cloning,
)
from torchrl_vla.schema import MissingKeyError, SchemaError
from torchrl_vla.spaces import ModelSpace


def make_frames(episodes):
    """Frames of ``(number, [(success, done), ...])``."""
    rows = [(number, *flags) for number, steps in episodes for flags in steps]
    number, success, done = zip(*rows)
    return TensorDict(
        {
            "episode_index": torch.tensor(number),
            "next": {
                "success": torch.tensor(success).unsqueeze(-1),
                "done": torch.tensor(done).unsqueeze(-1),
            },
        },
        [len(rows)],
    )


def test_episodes_that_ended_and_succeeded_are_found():
    frames = make_frames(
        [
            (4, [(False, False), (True, True)]),  # at the end
            (2, [(True, False), (False, True)]),  # on the way
            (7, [(False, False), (False, True)]),  # a failure
            (9, [(True, False), (True, False)]),  # cut off
        ]
    )
    assert successful_episodes(frames).tolist() == [2, 4]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=3),
        min_size=1,
        max_size=5,
    )
)
def test_the_rows_may_be_in_any_order(episodes):
    frames = make_frames(list(enumerate(episodes)))
    order = torch.randperm(len(frames), generator=torch.Generator().manual_seed(0))
    expected = [
        number
        for number, steps in enumerate(episodes)
        if any(success for success, _ in steps) and any(done for _, done in steps)
    ]
    if expected:
        assert successful_episodes(frames[order]).tolist() == expected
    else:
        with pytest.raises(SchemaError, match=rf"got {len(episodes)} episodes"):
            successful_episodes(frames[order])


def test_data_without_a_success_are_refused():
    frames = make_frames([(0, [(False, True)]), (1, [(True, False)])])
    message = r"got 2 episodes, of which 1 ended and 1 succeeded"
    with pytest.raises(SchemaError, match=message):
        successful_episodes(frames)


@pytest.mark.parametrize(
    "key", ["episode_index", ("next", "success"), ("next", "done")]
)
def test_data_without_success_flags_are_refused(key):
    frames = make_frames([(0, [(True, True)])]).exclude(key)
    with pytest.raises(MissingKeyError, match=r"expected .*'success'.* got only"):
        successful_episodes(frames)


def test_what_a_policy_did_well_is_cloned_in_three_lines():
    torch.manual_seed(0)
    env = TabletopEnv(8, image_size=8, seed=0)
    teacher = env.make_expert(noise=1.0)
    # Collect with a policy, keep what worked, clone it:
    rollout = env.rollout(25, teacher, break_when_any_done=False)
    whole = DemonstrationDataset.from_rollout(rollout, env.metadata, env.instructions)
    kept = select_successes(whole)
    assert 0 < kept.num_episodes < whole.num_episodes
    per_episode = {
        number: kept.frames[kept.frames["episode_index"] == number]
        for number in kept.frames["episode_index"].unique().tolist()
    }
    for episode in per_episode.values():
        assert episode["next", "done"].flatten().tolist()[-1]
        assert episode["next", "success"].any()
        assert episode["frame_index"].tolist() == list(range(len(episode)))
    assert kept.metadata == whole.metadata
    policy = make_policy(kept, chunk_size=3, hidden=16, depth=1)
    log = train_behavior_cloning(
        policy,
        kept,
        TrainingSettings(steps=40, batch_size=32, lr=3e-3, log_interval=10),
        space=ModelSpace(whole.metadata),
        progress=False,
    )
    assert log.losses[-1][1] < 0.95 * log.losses[0][1]
