"""The border of padding masks, which every cloning loss shares."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import NonTensorStack, TensorDict

from torchrl_vla.objectives import (
    BCLoss,
    DiffusionBCLoss,
    FlowMatchingLoss,
    TokenBCLoss,
)
from torchrl_vla.objectives.pad_masks import read_pad_mask
from torchrl_vla.policies import (
    BackboneConfig,
    TinyDiffusionVLA,
    TinyFlowVLA,
    TinyTokenVLA,
    TinyVLA,
)
from torchrl_vla.schema import SchemaError
from torchrl_vla.tokenizers import UniformActionTokenizer

SIZES = {
    "action_dim": 2,
    "chunk_size": 4,
    "backbone": BackboneConfig(state_dim=6, cameras=(), hidden=8),
}
TOKENIZER = UniformActionTokenizer(64, low=-1.0, high=1.0)
LOSSES = {
    BCLoss: lambda: TinyVLA(**SIZES),
    FlowMatchingLoss: lambda: TinyFlowVLA(**SIZES),
    DiffusionBCLoss: lambda: TinyDiffusionVLA(**SIZES),
    TokenBCLoss: lambda: TinyTokenVLA(action_tokenizer=TOKENIZER, **SIZES),
}


def batch(pad):
    n = len(pad)
    data = TensorDict({"observation": {"state": torch.randn(n, 6)}}, [n])
    data["language_instruction"] = NonTensorStack(*["pick"] * n)
    data["action_chunk"] = torch.randn(n, 4, 2)
    data["action_tokens"] = torch.zeros(n, 4, 2, dtype=torch.int64)
    return data.set("action_is_pad", torch.tensor(pad))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_mask_that_can_only_be_inverted_raises_in_every_loss(loss):
    made = loss(LOSSES[loss]())
    ends = [[False, False, True, True], [False] * 4, [True] * 4]
    assert made(batch(ends))["loss_bc"].isfinite()
    inverted = [[True, True, False, False], *ends[1:]]
    with pytest.raises(
        SchemaError, match=rf"{loss.__name__}: .*position 0 .*1 of 3 .*pass ~valid"
    ):
        made(batch(inverted))


@given(
    st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=4),
    st.integers(0, 3),
)
def test_a_sample_that_learns_anything_learns_the_frames_own_action(flags, own_step):
    data = batch(flags)
    legal = any(not all(row) for row in flags) and not any(
        row[own_step] and not all(row[own_step:]) for row in flags
    )
    arguments = data, "action_is_pad", data["action_chunk"], "Loss", own_step
    if legal:
        assert read_pad_mask(*arguments).tolist() == flags
        return
    with pytest.raises(SchemaError, match=r"True \(padded\)"):
        read_pad_mask(*arguments)
