from __future__ import annotations

import pytest
import torch
from tensordict import NonTensorData, NonTensorStack, TensorDict

from torchrl_vla.execution.chunk_cache import ChunkCache, take_envs


def test_rows_that_go_on_keep_their_next_actions_after_a_partial_replan():
    cache = ChunkCache(torch.tensor([[[0.0], [1], [2]], [[10.0], [11], [12]]]), {}, 1)
    assert cache.pop().flatten().tolist() == [0, 10]
    rows = torch.tensor([False, True])
    cache.replace(rows, torch.tensor([[[20.0], [21], [22]]]), {}, 2)
    assert [cache.pop().flatten().tolist() for _ in range(2)] == [[1, 20], [2, 21]]
    assert cache.any_exhausted
    assert cache.exhausted().tolist() == [True, False]
    assert cache.serials.tolist() == [[1], [2]]


def test_a_partial_replan_leaves_tensors_that_were_handed_out_alone():
    tokens = torch.tensor([5, 6])
    cache = ChunkCache(torch.zeros(2, 3, 1), {"tokens": tokens}, 1)
    handed = cache.pop(), cache.serials, cache.outputs["tokens"]
    before = [value.clone() for value in handed]
    rows = torch.tensor([True, False])
    cache.replace(rows, torch.ones(1, 3, 1), {"tokens": torch.tensor([7])}, 2)
    assert all(torch.equal(a, b) for a, b in zip(handed, before))
    assert cache.outputs["tokens"].tolist() == [7, 6]


def test_without_partial_replans_every_row_is_exhausted_at_once():
    cache = ChunkCache(torch.zeros(2, 1, 1), {}, 1)
    cache.pop()
    assert cache.any_exhausted
    assert cache.exhausted() is None


@pytest.mark.parametrize("batch_size", [(4,), (2, 2)])
def test_taking_rows_equals_masking(batch_size):
    texts = NonTensorStack(*"abcd").reshape(batch_size)
    td = TensorDict(
        {
            "id": torch.arange(4).reshape(batch_size),
            "view": {"image": torch.rand(*batch_size, 3, 2, 2)},
            "text": texts,
            "same": NonTensorData("same", batch_size=batch_size),
        },
        batch_size=batch_size,
    )
    rows = torch.tensor([True, False, True, True]).reshape(batch_size)
    taken = take_envs(td, rows)
    assert taken.batch_size == (3,)
    assert taken["id"].tolist() == [0, 2, 3]
    assert torch.equal(taken["view", "image"], td["view", "image"][rows])
    assert list(taken["text"]) == ["a", "c", "d"]
    assert taken[0]["same"] == "same"
