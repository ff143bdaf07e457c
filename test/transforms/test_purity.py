from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from torchrl_vla.tokenizers import UniformActionTokenizer
from torchrl_vla.transforms import (
    ActionChunkTransform,
    ActionScaling,
    ActionTokenizerTransform,
    StateScaling,
    SuccessReward,
)

TRANSFORMS = {
    "chunk": lambda storage: ActionChunkTransform(2, storage=storage),
    "action": lambda storage: ActionScaling(1.0, 2.0),
    "state": lambda storage: StateScaling(1.0, 2.0),
    "tokens": lambda storage: ActionTokenizerTransform(
        UniformActionTokenizer(4, low=0.0, high=8.0)
    ),
    "reward": lambda storage: SuccessReward(),
}


def make_frames():
    return TensorDict(
        {
            "action": torch.tensor([[3.0], [5.0]]),
            "observation": {"state": torch.tensor([[3.0], [5.0]])},
            "episode_index": torch.zeros(2, dtype=torch.int64),
            "frame_index": torch.arange(2),
            "next": {
                "observation": {"state": torch.tensor([[5.0], [7.0]])},
                "success": torch.tensor([[False], [True]]),
                "reward": torch.full((2, 1), 9.0),
            },
        },
        [2],
    )


@pytest.mark.parametrize("name", TRANSFORMS)
def test_what_a_transform_is_given_stays_as_it_is(name):
    storage = LazyTensorStorage(2)
    transform = TRANSFORMS[name](storage)
    buffer = TensorDictReplayBuffer(storage=storage, batch_size=2)
    buffer.extend(make_frames())
    given = make_frames()
    result = transform(given)
    assert (given == make_frames()).all()
    assert set(given.keys(True)) == set(make_frames().keys(True))
    assert result is not given


@pytest.mark.parametrize("name", TRANSFORMS)
def test_reading_a_whole_buffer_does_not_change_what_it_stores(name):
    # storage[:] is the stored tensordict itself; a transform that wrote into it would
    # be applied once more by every reading.
    storage = LazyTensorStorage(2)
    buffer = TensorDictReplayBuffer(
        storage=storage, transform=TRANSFORMS[name](storage), batch_size=2
    )
    buffer.extend(make_frames())
    first, second = buffer[:], buffer[:]
    assert (first == second).all()
    stored = storage[:]
    for key, value in make_frames().items(True, True):
        assert torch.equal(stored[key], value)
