from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import TransformedEnv, check_env_specs, step_mdp

from torchrl_vla.envs import TabletopEnv
from torchrl_vla.schema import MissingKeyError, SchemaError
from torchrl_vla.transforms import ActionChunkTransform, ObservationHistory


def expected(values: list[float], t: int, n: int) -> tuple[list[float], list[bool]]:
    """The last ``n`` of ``values[: t + 1]``, the first repeated before the start."""
    steps = range(t - n + 1, t + 1)
    return [values[max(s, 0)] for s in steps], [s < 0 for s in steps]


def frame(values: list[float]) -> TensorDict:
    state = torch.tensor(values).unsqueeze(-1)
    return TensorDict({"observation": {"state": state}}, [len(values)])


def read(td: TensorDict, row: int) -> tuple[list[float], list[bool]]:
    history = td["observation_history", "state"][row, :, 0].tolist()
    return history, td["history_is_pad"][row].tolist()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(-9, 9).map(float), min_size=1, max_size=7),
    st.integers(1, 5),
)
def test_a_loop_of_begin_and_follow_keeps_the_last_frames(values, n):
    transform = ObservationHistory(n)
    previous = transform.begin(frame([values[0]]))
    assert read(previous, 0) == expected(values, 0, n)
    for t, value in enumerate(values[1:], 1):
        previous = transform.follow(frame([value]), previous)
        assert read(previous, 0) == expected(values, t, n)


def test_an_environment_that_is_reset_alone_starts_its_own_history_again():
    env = TransformedEnv(TabletopEnv(3, image_size=8), ObservationHistory(3))
    td = env.reset(episode_seeds=torch.arange(3))
    seen = [[], [], []]
    for t in range(6):
        if t == 3:
            td["_reset"] = torch.tensor([False, True, False]).unsqueeze(-1)
            td = env.reset(td, episode_seeds=torch.arange(3) + 5)
            seen[1].clear()
        for row in range(3):
            seen[row].append(td["observation", "image"][row])
            images, is_pad = expected(seen[row], len(seen[row]) - 1, 3)
            history = td["observation_history", "image"][row]
            assert torch.equal(history, torch.stack(images))
            assert td["history_is_pad"][row].tolist() == is_pad
        td["action"] = torch.full_like(env.action_spec.zero(), 0.5)
        td = step_mdp(env.step(td))


def test_rows_that_do_not_step_keep_their_history():
    env = TransformedEnv(TabletopEnv(2, image_size=8), ObservationHistory(2))
    td = env.reset(episode_seeds=torch.arange(2))
    td["action"] = torch.ones_like(env.action_spec.zero())
    td["_step"] = torch.tensor([True, False])
    after = env.step(td)["next"]
    assert after["history_is_pad"].tolist() == [[False, False], [True, False]]


def test_the_specs_hold_for_images_and_states():
    env = TransformedEnv(TabletopEnv(2, image_size=8), ObservationHistory(3))
    check_env_specs(env)
    spec = env.observation_spec["observation_history", "image"]
    assert spec.shape == (2, 3, 3, 8, 8)
    assert spec.dtype == torch.uint8


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_a_buffer_gives_what_the_episode_showed_in_any_order_of_rows(lengths, n, rng):
    rows = [(e, f) for e, length in enumerate(lengths) for f in range(length)]
    rng.shuffle(rows)
    episode, step = (torch.tensor(column) for column in zip(*rows))
    state = (100.0 * episode + step).unsqueeze(-1)
    storage = LazyTensorStorage(len(rows))
    buffer = TensorDictReplayBuffer(
        storage=storage, transform=ObservationHistory(n, storage=storage)
    )
    data = {"episode_index": episode, "frame_index": step, "action": state}
    buffer.extend(TensorDict({**data, "observation": {"state": state}}, [len(rows)]))
    sample = buffer[:]
    for row, (e, f) in enumerate(rows):
        values = [100.0 * e + s for s in range(lengths[e])]
        assert read(sample, row) == expected(values, f, n)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(0, 4),
)
def test_a_chunk_that_begins_in_the_past_is_padded_at_both_ends(lengths, size, past):
    past = min(past, size - 1)
    rows = [(e, f) for e, length in enumerate(lengths) for f in range(length)]
    episode, step = (torch.tensor(column) for column in zip(*rows))
    action = (100.0 * episode + step).unsqueeze(-1)
    storage = LazyTensorStorage(len(rows))
    chunks = ActionChunkTransform(size, storage=storage, first_step=-past)
    buffer = TensorDictReplayBuffer(storage=storage, transform=chunks)
    data = {"episode_index": episode, "frame_index": step, "action": action}
    buffer.extend(TensorDict(data, [len(rows)]))
    sample = buffer[:]
    for row, (e, f) in enumerate(rows):
        steps = range(f - past, f - past + size)
        clamped = [100.0 * e + min(max(s, 0), lengths[e] - 1) for s in steps]
        assert sample["action_chunk"][row, :, 0].tolist() == clamped
        outside = [not 0 <= s < lengths[e] for s in steps]
        assert sample["action_is_pad"][row].tolist() == outside


def test_a_chunk_without_the_frames_own_action_is_refused():
    for first_step in (1, -4):
        with pytest.raises(ValueError, match=r"first_step in -3 .. 0.*got"):
            ActionChunkTransform(4, first_step=first_step)
    with pytest.raises(MissingKeyError, match=r"storage=buffer.storage.*first_step=-1"):
        ActionChunkTransform(4, first_step=-1)(TensorDict(action=torch.zeros(1, 5, 2)))


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="n_steps"):
        ObservationHistory(0)
    with pytest.raises(MissingKeyError, match=r"expected 'observation'.*'state'"):
        ObservationHistory(2).begin(TensorDict(state=torch.zeros(1, 1)))
    with pytest.raises(MissingKeyError, match=r"observation_history.*begin"):
        ObservationHistory(2).follow(frame([1.0]), frame([0.0]))
    with pytest.raises(MissingKeyError, match=r"storage=buffer\.storage"):
        ObservationHistory(2)(frame([1.0]))
    storage = LazyTensorStorage(2)
    transform = ObservationHistory(2, storage=storage)
    buffer = TensorDictReplayBuffer(storage=storage, transform=transform)
    indices = {"episode_index": torch.zeros(2).long(), "frame_index": torch.arange(2)}
    buffer.extend(TensorDict(indices, [2]))
    with pytest.raises(SchemaError, match="expected 'observation' in the storage"):
        buffer[:]
