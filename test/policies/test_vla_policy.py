from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_vla.policies import (
    ContinuousVLAWrapper,
    StochasticVLAWrapper,
    TokenVLAWrapper,
    VLAWrapperBase,
)
from torchrl_vla.schema import ObservationKeys, SchemaError

H, A = 2, 3


class Constant(ContinuousVLAWrapper):
    """Predicts whatever it was given."""

    def __init__(self, chunk, **keys):
        super().__init__(action_dim=A, chunk_size=H, **keys)
        self.chunk = chunk

    def predict_chunk(self, tensordict):
        return self.chunk


def test_the_base_is_abstract_and_so_are_its_heads():
    for cls in (
        VLAWrapperBase,
        ContinuousVLAWrapper,
        StochasticVLAWrapper,
        TokenVLAWrapper,
    ):
        with pytest.raises(TypeError, match="abstract"):
            cls(action_dim=1, chunk_size=1)


@pytest.mark.parametrize("name", ["action_dim", "chunk_size"])
@pytest.mark.parametrize("value", [0, -1, 2.0, None])
def test_sizes_are_positive_ints(name, value):
    sizes = {"action_dim": 2, "chunk_size": 3, name: value}

    class Some(ContinuousVLAWrapper):
        def predict_chunk(self, tensordict):
            raise NotImplementedError

    with pytest.raises(
        ValueError,
        match=rf"^Some: expected a positive int at argument '{name}', got {value}\.$",
    ):
        Some(**sizes)


def test_in_keys_are_what_the_policy_reads_in_one_spelling():
    policy = Constant(
        None,
        keys=ObservationKeys(None, ("observation", ("proprioception",)), ("task",)),
        chunk_key=("out", ("chunk",)),
    )
    assert policy.in_keys == [("observation", "proprioception"), "task"]
    assert policy.out_keys == [("out", "chunk")]
    assert Constant(None).in_keys == [
        ("observation", "image"),
        ("observation", "state"),
        "language_instruction",
    ]


def test_a_chunk_is_written_under_its_key_as_it_was_predicted():
    chunk = torch.randn(4, H, A)
    td = Constant(chunk, chunk_key=("plan", "chunk"))(TensorDict(batch_size=[4]))
    assert td["plan", "chunk"] is chunk
    assert set(td.keys(True, True)) == {("plan", "chunk")}


@pytest.mark.parametrize("shape", [(H, A), (4, A, H), (4, H + 1, A), (4, 1, H, A)])
def test_a_chunk_of_another_shape_is_refused(shape):
    with pytest.raises(
        SchemaError,
        match=r"^Constant: expected \[\*B, H, A\] = \[4, 2, 3\] from predict_chunk, "
        r"got \[.*\]\. The policy was built with chunk_size=2 and action_dim=3\.$",
    ):
        Constant(torch.zeros(shape))(TensorDict(batch_size=[4]))
