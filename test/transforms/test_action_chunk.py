from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torchrl.data import (
    LazyMemmapStorage,
    LazyTensorStorage,
    ListStorage,
    SliceSampler,
    SliceSamplerWithoutReplacement,
    TensorDictReplayBuffer,
)
from torchrl.data.replay_buffers import RandomSampler, SamplerWithoutReplacement
from torchrl.envs import Compose, TransformedEnv, check_env_specs
from torchrl.envs.transforms import ActionChunkTransform as PeerTransform

from torchrl_vla.envs import ToyVLAEnv
from torchrl_vla.schema import MissingKeyError, SchemaError
from torchrl_vla.transforms import ActionChunkKeys, ActionChunkTransform, ActionScaling


def make_frames(lengths, *, first_episode=0):
    """Make whole episodes, in order; every action is unlike every other."""
    episode = torch.cat(
        [torch.full((n,), first_episode + i) for i, n in enumerate(lengths)]
    )
    frame = torch.cat([torch.arange(n) for n in lengths])
    done = torch.cat([torch.arange(n) == n - 1 for n in lengths]).unsqueeze(-1)
    action = torch.stack([episode * 100.0 + frame, -frame.float()], -1)
    return TensorDict(
        {
            "action": action,
            "episode_index": episode,
            "frame_index": frame,
            "next": {"done": done, "terminated": done, "truncated": done & False},
        },
        [len(episode)],
    )


def oracle(sample, horizon, length_of):
    """Write out the target of every frame, one number after another."""
    chunk, is_pad = [], []
    for e, f in zip(
        sample["episode_index"].flatten().tolist(),
        sample["frame_index"].flatten().tolist(),
    ):
        steps = [f + k for k in range(horizon)]
        last = length_of[e] - 1
        chunk.append([[e * 100.0 + min(s, last), -float(min(s, last))] for s in steps])
        is_pad.append([s > last for s in steps])
    shape = (*sample["episode_index"].shape, horizon)
    return (
        torch.tensor(chunk).view(*shape, 2),
        torch.tensor(is_pad).view(shape),
    )


def assert_right(sample, horizon, length_of):
    chunk, is_pad = oracle(sample, horizon, length_of)
    assert torch.equal(sample["action_chunk"], chunk)
    assert torch.equal(sample["action_is_pad"], is_pad)


SAMPLERS = {
    "random": lambda: RandomSampler(),
    "without_replacement": lambda: SamplerWithoutReplacement(),
    "slices": lambda: SliceSampler(
        num_slices=4, traj_key="episode_index", strict_length=False
    ),
    "slices_by_done": lambda: SliceSampler(
        num_slices=4, end_key=("next", "done"), strict_length=False
    ),
    "slices_without_replacement": lambda: SliceSamplerWithoutReplacement(
        num_slices=4, traj_key="episode_index", strict_length=False
    ),
}
LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)
ORDERS = st.sampled_from(["as_is", "episodes_shuffled", "interleaved", "shuffled"])


def reorder(frames, order, seed):
    generator = torch.Generator().manual_seed(seed)
    if order == "shuffled":
        return frames[torch.randperm(len(frames), generator=generator)]
    if order == "episodes_shuffled":
        rank = torch.randperm(len(frames), generator=generator)
        key = rank[frames["episode_index"]] * 1000 + frames["frame_index"]
        return frames[key.argsort()]
    if order == "interleaved":  # several environments, one frame of each at a time
        key = frames["frame_index"] * 1000 + frames["episode_index"]
        return frames[key.argsort()]
    return frames


def make_buffer(frames, horizon, sampler=None, storage=None, batch_size=16):
    storage = storage or LazyTensorStorage(len(frames))
    buffer = TensorDictReplayBuffer(
        storage=storage,
        sampler=sampler or RandomSampler(),
        transform=ActionChunkTransform(horizon, storage=storage),
        batch_size=batch_size,
    )
    buffer.extend(frames)
    return buffer


@pytest.mark.parametrize("sampler", SAMPLERS)
@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.integers(1, 12), ORDERS, st.integers(0, 2**31))
def test_targets_equal_the_oracle_for_every_sampler_and_order(
    sampler, lengths, horizon, order, seed
):
    torch.manual_seed(seed)
    if sampler == "slices_by_done":  # TorchRL cannot slice a single frame by its end
        lengths = [*lengths, 1]
    frames = reorder(make_frames(lengths), order, seed)
    buffer = make_buffer(frames, horizon, SAMPLERS[sampler]())
    for _ in range(3):
        sample = buffer.sample()
        assert_right(sample, horizon, dict(enumerate(lengths)))


@settings(max_examples=10, deadline=None)
@given(LENGTHS, st.integers(1, 12), ORDERS, st.integers(0, 2**31))
def test_targets_equal_the_oracle_from_disk(lengths, horizon, order, seed):
    frames = reorder(make_frames(lengths), order, seed)
    buffer = make_buffer(frames, horizon, storage=LazyMemmapStorage(len(frames)))
    assert_right(buffer.sample(), horizon, dict(enumerate(lengths)))
    assert_right(buffer[:], horizon, dict(enumerate(lengths)))


@pytest.mark.parametrize("time_first", [True, False])
@settings(max_examples=15, deadline=None)
# TorchRL cannot write [n, 1] to a storage of two dimensions.
@given(st.integers(2, 4), st.integers(2, 9), st.integers(1, 12))
def test_targets_equal_the_oracle_in_storages_of_two_dimensions(
    time_first, n_envs, n_steps, horizon
):
    frames = make_frames([n_steps] * n_envs).view(n_envs, n_steps)
    if time_first:
        frames = frames.transpose(0, 1).contiguous()
    storage = LazyTensorStorage(frames.numel(), ndim=2)
    buffer = TensorDictReplayBuffer(
        storage=storage,
        transform=ActionChunkTransform(horizon, storage=storage),
        batch_size=16,
        dim_extend=0,
    )
    buffer.extend(frames)
    assert_right(buffer.sample(), horizon, dict.fromkeys(range(n_envs), n_steps))


@settings(max_examples=20, deadline=None)
@given(LENGTHS, st.integers(1, 12), st.integers(5, 25))
def test_a_ring_buffer_keeps_right_targets_while_it_grows_and_overwrites(
    lengths, horizon, capacity
):
    stream = make_frames(lengths * 3)
    storage = LazyTensorStorage(capacity)
    buffer = TensorDictReplayBuffer(
        storage=storage,
        transform=ActionChunkTransform(horizon, storage=storage),
        batch_size=16,
    )
    written = 0
    for block in stream.split(4):
        buffer.extend(block)
        written += len(block)
        seen = stream[max(0, written - capacity) : written]
        # So far, the last stored frame of an episode is its end.
        length_of = {
            e: int(seen["frame_index"][seen["episode_index"] == e].max()) + 1
            for e in seen["episode_index"].tolist()
        }
        assert_right(buffer.sample(), horizon, length_of)


def test_episode_ids_may_be_any_numbers():
    frames = make_frames([3, 4])
    ids = torch.tensor([2**62, -(2**61)])
    frames["episode_index"] = ids[frames["episode_index"]]
    sample = make_buffer(frames, 2)[:]
    assert sample["action_is_pad"][:, 1].tolist() == [0, 0, 1, 0, 0, 0, 1]


def test_needless_padding_at_a_slices_end_is_gone():
    sampler = SliceSampler(slice_len=4, traj_key="episode_index")
    sample = make_buffer(make_frames([100, 100]), 4, sampler, batch_size=64).sample()
    inside = sample["frame_index"] <= 96
    assert inside.sum() >= 32
    assert not sample["action_is_pad"][inside].any()


def test_a_storage_of_windows_is_gathered_across_windows():
    windows = make_frames([8]).view(2, 4)
    storage = LazyTensorStorage(2)
    buffer = TensorDictReplayBuffer(
        storage=storage, transform=ActionChunkTransform(3, storage=storage)
    )
    buffer.extend(windows)
    assert_right(buffer[:], 3, {0: 8})


def test_extend_stores_what_it_was_given():
    frames = make_frames([3, 5])
    buffer = make_buffer(frames, 4)
    assert "action_chunk" not in buffer.storage[:]
    assert torch.equal(buffer.storage[:]["action"], frames["action"])


def test_the_storage_can_be_named_later():
    transform = ActionChunkTransform(2)
    assert transform.storage is None
    buffer = make_buffer(make_frames([3]), 2)
    transform.storage = buffer.storage
    assert transform.storage is buffer.storage
    frames = buffer.storage[:].select("action", "episode_index", "frame_index")
    assert_right(transform(frames), 2, {0: 3})


def test_a_flat_sample_without_a_storage_raises_and_names_what_is_missing():
    storage = LazyTensorStorage(8)
    buffer = TensorDictReplayBuffer(
        storage=storage, transform=ActionChunkTransform(4), batch_size=4
    )
    buffer.extend(make_frames([3, 5]).exclude("frame_index"))
    message = (
        r"expected windows \[\*B, T, A\] at 'action', got shape \(4, 2\), which is a "
        r"flat sample. Pass storage=.*missing from this sample: \['frame_index'\]"
    )
    with pytest.raises(MissingKeyError, match=message):
        buffer.sample()


@pytest.mark.parametrize("key", ["action", "episode_index", "frame_index"])
def test_a_storage_without_a_key_raises_and_names_it(key):
    buffer = make_buffer(make_frames([3, 5]).exclude(key), 4)
    with pytest.raises(MissingKeyError, match=rf"got no \['{key}'\]. Available"):
        buffer.sample()


def test_a_hole_in_an_episode_raises():
    frames = make_frames([3, 5])
    with pytest.raises(SchemaError, match="frame 1 of episode 1 followed by frame 3"):
        make_buffer(frames[frames["action"][:, 0] != 102], 2).sample()


def test_a_frame_stored_twice_raises():
    frames = make_frames([3, 5])
    with pytest.raises(SchemaError, match="frame 0 of episode 0 twice"):
        make_buffer(torch.cat([frames, frames[:1]]), 2).sample()


def test_a_done_inside_an_episode_raises_unless_ignored():
    frames = make_frames([3, 5])
    frames["next", "done"][4] = True
    buffer = make_buffer(frames, 2)
    with pytest.raises(SchemaError, match="got it at frame 1 of episode 1, which goes"):
        buffer.sample()
    keys = ActionChunkKeys(done=None)
    transform = ActionChunkTransform(2, storage=buffer.storage, keys=keys)
    assert_right(transform(buffer.storage[:]), 2, {0: 3, 1: 5})


def test_indices_of_another_shape_than_the_actions_raise():
    frames = make_frames([3])
    frames["frame_index"] = frames["frame_index"].unsqueeze(-1)
    with pytest.raises(
        SchemaError, match=r"indices of one shape \[\*B\] in the storage, got .*3, 1"
    ):
        make_buffer(frames, 2).sample()


def test_scaling_before_chunking_raises_rather_than_mix_two_spaces():
    storage = LazyTensorStorage(8)
    scaling = ActionScaling(1.0, 2.0)
    chunks = ActionChunkTransform(2, storage=storage)
    buffer = TensorDictReplayBuffer(
        storage=storage, transform=Compose(scaling, chunks), batch_size=8
    )
    buffer.extend(make_frames([3, 5]))
    with pytest.raises(SchemaError, match="Put this transform before those that"):
        buffer.sample()


def test_scaling_after_chunking_scales_padded_slots_like_the_others():
    storage = LazyTensorStorage(8)
    chunks = ActionChunkTransform(6, storage=storage)
    buffer = TensorDictReplayBuffer(
        storage=storage,
        transform=Compose(chunks, ActionScaling(1.0, 2.0)),
        batch_size=8,
    )
    buffer.extend(make_frames([3, 5]))
    sample = buffer.sample()
    chunk, _ = oracle(sample, 6, {0: 3, 1: 5})
    assert torch.equal(sample["action_chunk"], (chunk - 1) / 2)
    assert torch.equal(sample["action_chunk"][:, 0], sample["action"])


def test_another_buffers_storage_raises():
    buffer = make_buffer(make_frames([3, 5]), 2)
    foreign = ActionChunkTransform(2, storage=buffer.storage)
    with pytest.raises(MissingKeyError, match="got frame 0 of episode 7 at index"):
        foreign(make_frames([3], first_episode=7))
    lookalike = make_frames([3])
    lookalike["action"] += 1
    with pytest.raises(SchemaError, match="got another one in the sample"):
        foreign(lookalike)


def test_actions_that_are_nan_are_left_for_the_validation_to_report():
    frames = make_frames([3])
    frames["action"][1] = torch.nan
    assert make_buffer(frames, 2)[:]["action_chunk"][0, 1].isnan().all()


def test_arguments_that_cannot_be_raise():
    with pytest.raises(
        ValueError, match="positive int at argument 'chunk_size', got 0"
    ):
        ActionChunkTransform(0)
    with pytest.raises(TypeError, match=r"expected a TensorStorage .* got ListStorage"):
        ActionChunkTransform(2, storage=ListStorage(4))


# Alone, on windows


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**31))
def test_windows_equal_the_oracle_and_torchrl(n_rows, n_steps, horizon, seed):
    generator = torch.Generator().manual_seed(seed)
    done = torch.rand(n_rows, n_steps, generator=generator) < 0.25
    action = torch.randn(n_rows, n_steps, 2, generator=generator)
    data = TensorDict(
        {"action": action, "next": {"done": done.unsqueeze(-1)}}, [n_rows, n_steps]
    )
    peer = PeerTransform(horizon, chunk_key="action_chunk")(data.clone())
    ours = ActionChunkTransform(horizon)(data)
    for row in range(n_rows):
        for t in range(n_steps):
            end = t
            while end < n_steps - 1 and not done[row, end]:
                end += 1
            for k in range(horizon):
                assert ours["action_is_pad"][row, t, k] == (t + k > end)
                expected = action[row, min(t + k, end)]
                assert torch.equal(ours["action_chunk"][row, t, k], expected)
    assert torch.equal(ours["action_chunk"], peer["action_chunk"])
    assert torch.equal(ours["action_is_pad"], peer["action_is_pad"])


def test_a_window_without_done_is_padded_at_its_end_only():
    data = TensorDict({"action": torch.arange(4.0).view(1, 4, 1)}, [1, 4])
    data = ActionChunkTransform(3)(data)
    rows = [[0, 1, 2], [1, 2, 3], [2, 3, 3], [3, 3, 3]]
    assert data["action_chunk"][0, :, :, 0].tolist() == rows
    pads = [[0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 1]]
    assert data["action_is_pad"][0].tolist() == pads


def test_a_window_is_cut_where_the_episode_changes():
    frames = make_frames([3, 2, 4]).exclude("next").view(1, 9)
    assert_right(ActionChunkTransform(3)(frames), 3, {0: 3, 1: 2, 2: 4})


def test_windows_in_a_flat_tensordict_and_in_deeper_batches_work():
    action = torch.randn(5, 4, 2)
    flat = ActionChunkTransform(3)(TensorDict({"action": action}, [5]))
    assert flat["action_chunk"].shape == (5, 4, 3, 2)
    deep = TensorDict({"action": action.view(1, 5, 4, 2)}, [1, 5, 4])
    deep = ActionChunkTransform(3)(deep)
    assert torch.equal(deep["action_chunk"][0], flat["action_chunk"])
    assert torch.equal(deep["action_is_pad"][0], flat["action_is_pad"])


def test_a_single_rollout_is_a_window_because_its_time_is_named():
    rollout = TensorDict({"action": torch.randn(4, 2)}, [4], names=["time"])
    assert ActionChunkTransform(3)(rollout)["action_chunk"].shape == (4, 3, 2)


def test_writing_into_a_chunk_changes_no_other():
    data = TensorDict({"action": torch.zeros(1, 4, 1)}, [1, 4])
    chunk = ActionChunkTransform(3)(data)["action_chunk"]
    chunk[0, 0] = 1.0
    assert chunk.sum() == 3
    assert data["action"].sum() == 0


def test_a_window_with_a_jump_raises():
    frames = make_frames([6])[torch.tensor([0, 1, 3, 4])].exclude("next").view(1, 4)
    with pytest.raises(SchemaError, match=r"got a jump after index \[0, 1\]"):
        ActionChunkTransform(2)(frames)


def test_a_done_that_does_not_line_up_raises():
    data = TensorDict({"action": torch.zeros(2, 4, 1), "next": {}}, [2])
    data["next", "done"] = torch.zeros(2, 3, 1, dtype=torch.bool)
    with pytest.raises(SchemaError, match=r"expected \(2, 4\), .* got \(2, 3, 1\)"):
        ActionChunkTransform(2)(data)


def test_data_without_an_action_raise():
    with pytest.raises(MissingKeyError, match=r"got no \['action'\]. Available: \['x'"):
        ActionChunkTransform(2)(TensorDict({"x": torch.zeros(2, 3)}, [2]))


def test_every_key_can_be_another():
    data = TensorDict({"expert": {"action": torch.zeros(2, 4, 1)}}, [2, 4])
    keys = ActionChunkKeys(
        action=("expert", "action"), chunk=("vla", "chunk"), pad="pad"
    )
    data = ActionChunkTransform(3, keys=keys)(data)
    assert data["vla", "chunk"].shape == (2, 4, 3, 1)
    assert data["pad"].shape == (2, 4, 3)


def test_in_an_environment_it_does_nothing():
    env = TransformedEnv(ToyVLAEnv(action_dim=2, state_dim=4, seed=0))
    before = set(map(str, env.rollout(3).keys(True, True)))
    env.append_transform(ActionChunkTransform(4))
    check_env_specs(env)
    assert set(map(str, env.rollout(3).keys(True, True))) == before


def test_a_frame_that_was_not_drawn_is_not_cloned():
    frames = make_frames([4])
    frames["image_is_stale"] = torch.tensor([[False], [True], [True], [False]])
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(4), batch_size=4)
    buffer.append_transform(ActionChunkTransform(2, storage=buffer.storage))
    buffer.extend(frames)
    message = r"^ActionChunkTransform: expected images.*True in 2 of 4 frames"
    with pytest.raises(SchemaError, match=message):
        buffer[:]
    assert buffer[torch.tensor([0, 3])]["action_chunk"].shape == (2, 2, 2)


def test_torchrls_spellings_of_the_keys_are_accepted():
    chunks = ActionChunkTransform(
        2, action_key="arm", chunk_key=("vla_action", "chunk"), pad_key="pad"
    )
    window = TensorDict({"arm": torch.arange(3.0).view(1, 3, 1)}, [1, 3])
    data = chunks(window)
    assert data["vla_action", "chunk"][0, :, 1, 0].tolist() == [1.0, 2.0, 2.0]
    assert data["pad"][0, :, 1].tolist() == [False, False, True]
    with pytest.raises(ValueError, match=r"keys= alone, got \['chunk_key'\] as arg"):
        ActionChunkTransform(2, keys=ActionChunkKeys(), chunk_key="plan")
