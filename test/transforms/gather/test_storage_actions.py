from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage, TensorDictReplayBuffer, TensorStorage

from torchrl_vla.transforms.gather.storage_actions import StorageActions


def make(storage):
    return StorageActions(
        storage,
        action_key="action",
        episode_key="episode_index",
        frame_key="frame_index",
        done_key=("next", "done"),
    )


def make_frames(n):
    return TensorDict(
        {
            "action": torch.arange(float(n)).view(n, 1),
            "episode_index": torch.zeros(n, dtype=torch.int64),
            "frame_index": torch.arange(n),
        },
        [n],
    )


def gather(stored, frame, size=2):
    chunk, is_pad = stored.gather(torch.tensor([0]), torch.tensor([frame]), size)
    return chunk.flatten().tolist(), is_pad.flatten().tolist()


def test_the_index_is_built_once_and_again_after_every_kind_of_write():
    storage = LazyMemmapStorage(6)
    buffer = TensorDictReplayBuffer(storage=storage)
    buffer.extend(make_frames(3))
    stored = make(storage)
    assert gather(stored, 2) == ([2, 2], [False, True])
    first = stored._seen
    assert gather(stored, 1) == ([1, 2], [False, False])
    assert stored._seen is first
    buffer.extend(make_frames(4)[3:])
    assert gather(stored, 2) == ([2, 3], [False, False])
    buffer.set_("action", torch.full((4, 1), 9.0))
    assert gather(stored, 2) == ([9, 9], [False, False])
    buffer.empty()
    buffer.extend(make_frames(2))
    assert gather(stored, 1) == ([1, 1], [False, True])


def test_a_tensordict_on_disk_serves_as_it_is(tmp_path):
    frames = make_frames(5).memmap(tmp_path)
    stored = make(TensorStorage(frames))
    assert gather(stored, 3, 3) == ([3, 4, 4], [False, False, True])


def test_the_actions_are_a_view_of_the_storage_and_no_copy():
    storage = LazyMemmapStorage(5)
    TensorDictReplayBuffer(storage=storage).extend(make_frames(5))
    stored = make(storage)
    gather(stored, 0)
    column = storage[:]["action"]
    assert stored._actions.data_ptr() == column.data_ptr()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.integers(1, 8),
    st.booleans(),
)
def test_runs_are_copied_and_patched_as_if_every_action_were_looked_up(
    lengths, size, in_order
):
    episode = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])
    frame = torch.cat([torch.arange(n) for n in lengths])
    frames = TensorDict(
        {
            "action": torch.stack([episode, frame], -1).float(),
            "episode_index": episode,
            "frame_index": frame,
        },
        [len(episode)],
    )
    stored = make(TensorStorage(frames if in_order else frames.flip(0).clone()))
    chunk, is_pad = stored.gather(episode, frame, size)
    for row, (e, f) in enumerate(zip(episode.tolist(), frame.tolist())):
        last = lengths[e] - 1
        wanted = [[e, min(f + k, last)] for k in range(size)]
        assert chunk[row].tolist() == wanted
        assert is_pad[row].tolist() == [f + k > last for k in range(size)]
