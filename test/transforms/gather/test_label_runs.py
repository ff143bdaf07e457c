from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from torchrl_vla.schema import SchemaError
from torchrl_vla.transforms import ActionChunkKeys, ActionChunkTransform
from torchrl_vla.transforms.gather.label_runs import LabelRuns

flags = st.lists(st.booleans(), min_size=1, max_size=8)


def naive(labels, size, first_step=0):
    """Slot by slot: is_pad of each frame of one episode."""
    rows = []
    for frame in range(len(labels)):
        row = []
        for slot in range(first_step, first_step + size):
            span = range(min(frame, frame + slot), max(frame, frame + slot) + 1)
            row.append(not all(0 <= i < len(labels) and labels[i] for i in span))
        rows.append(row)
    return rows


def frames_of(labels, episode=0):
    count = len(labels)
    return TensorDict(
        {
            "action": torch.arange(float(count)).unsqueeze(-1) + 100 * episode,
            "is_labeled": torch.tensor(labels).unsqueeze(-1),
            "episode_index": torch.full((count,), episode),
            "frame_index": torch.arange(count),
        },
        [count],
    )


def chunks_of(frames, size, first_step=0, **options):
    storage = LazyTensorStorage(len(frames))
    transform = ActionChunkTransform(
        size, storage=storage, first_step=first_step, **options
    )
    buffer = TensorDictReplayBuffer(storage=storage, transform=transform)
    buffer.extend(frames)
    return buffer[:]


@settings(max_examples=40, deadline=None)
@given(flags, flags, st.integers(1, 4), st.integers(0, 2**31))
def test_a_chunk_ends_before_the_first_action_without_a_label(one, two, size, seed):
    frames = torch.cat([frames_of(one), frames_of(two, episode=1)])
    order = torch.randperm(len(frames), generator=torch.Generator().manual_seed(seed))
    out = chunks_of(frames[order], size)[order.argsort()]
    expected = naive(one, size) + naive(two, size)
    assert out["action_is_pad"].tolist() == expected
    for row, (own, pad) in enumerate(zip(frames["action"], expected)):
        valid = pad.index(True) if True in pad else size
        # What follows the last label repeats it; a frame without one stands alone.
        steps = torch.arange(size).clamp_max(max(valid - 1, 0))
        assert torch.equal(out["action_chunk"][row, :, 0], own + steps)


@settings(max_examples=30, deadline=None)
@given(flags, st.integers(1, 4), st.data())
def test_a_chunk_that_begins_in_the_past_begins_after_the_last_gap(labels, size, data):
    first_step = data.draw(st.integers(1 - size, 0))
    out = chunks_of(frames_of(labels), size, first_step)
    assert out["action_is_pad"].tolist() == naive(labels, size, first_step)


@settings(max_examples=30, deadline=None)
@given(flags, st.integers(1, 4))
def test_windows_give_the_chunks_of_the_storage(labels, size):
    frames = frames_of(labels)
    stored = chunks_of(frames, size)
    window = ActionChunkTransform(size)(frames.unsqueeze(0))[0]
    assert torch.equal(window["action_is_pad"], stored["action_is_pad"])
    assert torch.equal(window["action_chunk"], stored["action_chunk"])


def test_labels_are_ignored_when_it_is_said():
    out = chunks_of(frames_of([True, False, True]), 2, keys=ActionChunkKeys(label=None))
    assert out["action_is_pad"].tolist() == [[False] * 2, [False] * 2, [False, True]]


def test_labels_of_another_dtype_raise():
    frames = frames_of([True, False])
    frames["is_labeled"] = frames["is_labeled"].float()
    with pytest.raises(SchemaError, match=r"bool \[2\], .* got torch.float32 \[2, 1\]"):
        chunks_of(frames, 2)


def test_rows_in_another_order_are_followed_by_position():
    labels = LabelRuns(torch.tensor([False, True, True]), torch.tensor([2, 0, 1]))
    # By position: True, False, True
    assert labels.left(torch.arange(3)).tolist() == [0, 0, 0]
    assert labels.at(torch.arange(3)).tolist() == [True, False, True]
