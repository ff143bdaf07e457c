from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrl.data.vla import UniformActionTokenizer as PeerTokenizer

from torchrl_vla.schema import MetadataError, RobotDatasetMetadata, TokenError
from torchrl_vla.tokenizers import UniformActionTokenizer

LOW, HIGH = torch.tensor([-1.0, 0.0, -2.5]), torch.tensor([1.0, 0.08, 7.0])


def make(num_bins=256):
    return UniformActionTokenizer(num_bins, low=LOW, high=HIGH)


def test_tokens_and_actions_are_the_bins_and_their_middles():
    tokenizer = UniformActionTokenizer(4, low=0.0, high=8.0)
    actions = torch.tensor([0.0, 1.9, 2.0, 7.9, 8.0, -3.0, 1e30])
    assert tokenizer.encode(actions).tolist() == [0, 0, 1, 3, 3, 0, 3]
    assert tokenizer.decode(torch.tensor([0, 1, 2, 3])).tolist() == [1, 3, 5, 7]


@pytest.mark.parametrize("num_bins", [1, 2, 255, 256])
def test_tokens_and_actions_are_bit_equal_to_torchrl(num_bins):
    peer, ours = PeerTokenizer(num_bins, low=LOW, high=HIGH), make(num_bins)
    span = HIGH - LOW
    inside = torch.rand(4000, 3) * span * 1.2 + LOW - 0.1 * span
    edges = LOW + torch.arange(num_bins + 1)[:, None] / num_bins * span
    near = [torch.nextafter(edges, torch.tensor(x)) for x in (-torch.inf, torch.inf)]
    actions = torch.cat([inside, edges, *near])
    assert torch.equal(ours.encode(actions), peer.encode(actions))
    tokens = torch.arange(num_bins).unsqueeze(-1).expand(-1, 3)
    assert torch.equal(ours.decode(tokens), peer.decode(tokens))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300),
    st.lists(
        st.tuples(st.floats(-100, 100), st.floats(1, 200)), min_size=1, max_size=4
    ),
)
def test_encode_undoes_decode(num_bins, ranges):
    low = torch.tensor([start for start, _ in ranges])
    high = torch.tensor([start + size for start, size in ranges])
    tokens = torch.arange(num_bins).unsqueeze(-1).repeat(1, len(ranges))
    tokenizer = UniformActionTokenizer(num_bins, low=low, high=high)
    assert torch.equal(tokenizer.encode(tokenizer.decode(tokens)), tokens)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=9))
def test_decode_undoes_encode_within_half_a_bin(shares):
    tokenizer = make(64)
    actions = LOW + torch.tensor(shares).unsqueeze(-1) * (HIGH - LOW)
    error = (tokenizer.decode(tokenizer.encode(actions)) - actions).abs()
    # float32 rounding of the middles, beside the half bin that binning costs
    assert (error <= (HIGH - LOW) / 64 / 2 * (1 + 1e-4)).all()


@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 3), (2, 5, 4, 3)])
def test_shapes_are_kept(shape):
    tokens = make().encode(torch.zeros(shape))
    assert tokens.shape == shape
    assert tokens.dtype == torch.int64
    actions = make().decode(tokens)
    assert actions.shape == shape
    assert actions.dtype == torch.float32


def test_one_pair_of_bounds_serves_any_dimension_and_one_is_expanded():
    tokenizer = UniformActionTokenizer(8, low=-1.0, high=1.0)
    assert tokenizer.action_dim is None
    assert tokenizer.encode(torch.zeros(2, 5)).shape == (2, 5)
    expanded = UniformActionTokenizer(8, low=-1.0, high=1.0, action_dim=5)
    assert expanded.action_dim == 5
    assert expanded.vocab_size == 8


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_an_action_that_is_no_number_raises_with_its_index(bad):
    actions = torch.zeros(2, 4, 3)
    actions[1, 2, 0] = bad
    message = r"Uniform.*encode: expected finite actions, got .* at index \[1, 2, 0\]"
    with pytest.raises(TokenError, match=message):
        make().encode(actions)


def test_huge_finite_actions_whose_sum_overflows_are_clamped():
    assert make().encode(torch.full((4, 3), 3e38)).unique().tolist() == [255]


@pytest.mark.parametrize("bad", [-1, 256, 10**12])
def test_a_foreign_token_raises_with_its_index(bad):
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    tokens[1, 1] = bad
    message = rf"tokens in \[0, 256\), got {bad} at index \[1, 1\]"
    with pytest.raises(TokenError, match=message):
        make().decode(tokens)


def test_tokens_that_are_not_int64_raise():
    with pytest.raises(TokenError, match=r"expected int64 tokens, got torch.float32"):
        make().decode(torch.zeros(3))


def test_another_action_dimension_raises_rather_than_broadcasts():
    with pytest.raises(TokenError, match=r"expected \[\.\.\., A=3\], got shape \(4, 1"):
        make().encode(torch.zeros(4, 1))
    with pytest.raises(TokenError, match=r"expected \[\.\.\., A=3\], got shape \(7,"):
        make().decode(torch.zeros(7, dtype=torch.int64))


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))]
)
def test_bounds_that_cannot_be_raise(low, high):
    with pytest.raises(
        ValueError, match=r"expected (low < high|finite '(low|high)'), got"
    ):
        UniformActionTokenizer(8, low=low, high=high)


def test_other_arguments_that_cannot_be_raise():
    with pytest.raises(ValueError, match="expected num_bins >= 1, got 0"):
        UniformActionTokenizer(0, low=0.0, high=1.0)
    with pytest.raises(ValueError, match=r"one shape, got \(2,\) and \(3,\)"):
        UniformActionTokenizer(8, low=torch.zeros(2), high=torch.ones(3))
    with pytest.raises(ValueError, match="256 bins that float32 can tell apart"):
        UniformActionTokenizer(256, low=1e6, high=1e6 + 1)


def test_metadata_gives_the_bounds():
    metadata = RobotDatasetMetadata(
        "d", action_low=(-1.0, 0.0), action_high=(1.0, 4.0), action_dim=2
    )
    tokenizer = UniformActionTokenizer.from_metadata(metadata, 4)
    assert tokenizer.encode(torch.tensor([0.6, 0.6])).tolist() == [3, 0]
    with pytest.raises(MetadataError, match="expected action_low and action_high in"):
        UniformActionTokenizer.from_metadata(RobotDatasetMetadata("d"), 4)


def test_it_compiles_to_one_graph():
    tokenizer = make()
    round_trip = torch.compile(
        lambda x: tokenizer.decode(tokenizer.encode(x)),
        fullgraph=True,
        backend="aot_eager",
    )
    actions = LOW + torch.rand(5, 3) * (HIGH - LOW)
    expected = tokenizer.decode(tokenizer.encode(actions))
    assert torch.equal(round_trip(actions), expected)
    actions[0, 0] = torch.nan
    with pytest.raises(RuntimeError, match="expected finite actions, got NaN"):
        round_trip(actions)
