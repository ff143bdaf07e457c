from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrl.data.vla import VocabTailActionTokenizer as PeerTokenizer

from torchrl_vla.schema import TokenError
from torchrl_vla.tokenizers import OpenVLAActionTokenizer

# Magnitudes like those in OpenVLA checkpoints; the last dimension is the gripper.
STATS = {
    "q01": [-0.745, -0.66, -0.9375, -0.1071428582072258, -0.20678570866584778, 0.0],
    "q99": [0.9375, 0.8758928775787354, 0.9321428537368774, 0.103, 0.183, 1.0],
    "mask": [True, True, True, True, True, False],
}
NORM_STATS = {"libero": {"action": STATS}, "bridge": {"action": STATS}}


@pytest.mark.parametrize("full_vocab_size", [None, 32000])
@pytest.mark.parametrize("threshold", [None, 0.0, 0.5])
@pytest.mark.parametrize("invert", [False, True])
def test_every_token_decodes_bit_equal_to_torchrls_float64_path(
    full_vocab_size, threshold, invert
):
    ours = OpenVLAActionTokenizer.from_norm_stats(
        NORM_STATS,
        "libero",
        full_vocab_size=full_vocab_size,
        gripper_threshold=threshold,
        gripper_invert=invert,
    )
    peer = PeerTokenizer.from_norm_stats(
        NORM_STATS,
        "libero",
        full_vocab_size=full_vocab_size,
        gripper_binarize=threshold is not None,
        gripper_binarize_threshold=threshold or 0.0,
        gripper_invert=invert,
    )
    tokens = torch.arange(ours.vocab_size - 256, ours.vocab_size)
    tokens = tokens.unsqueeze(-1).expand(-1, 6)
    decoded = ours.decode(tokens)
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, peer.decode(tokens))


@pytest.mark.parametrize("full_vocab_size", [None, 32000])
def test_actions_with_statistics_encode_as_torchrl_does(full_vocab_size):
    options = {"full_vocab_size": full_vocab_size}
    ours = OpenVLAActionTokenizer.from_norm_stats(NORM_STATS, "libero", **options)
    peer = PeerTokenizer.from_norm_stats(NORM_STATS, "libero", **options)
    actions = torch.rand(5000, 4, 6) * 2.4 - 1.2
    assert torch.equal(ours.encode(actions), peer.encode(actions))


@settings(max_examples=60, deadline=None)
@given(
    num_bins=st.integers(2, 400),
    full=st.booleans(),
    ranges=st.lists(
        st.tuples(st.floats(-10, 10), st.floats(0.1, 20)), min_size=1, max_size=4
    ),
)
def test_encode_undoes_decode(num_bins, full, ranges):
    tokenizer = OpenVLAActionTokenizer(
        num_bins,
        full_vocab_size=32000 if full else None,
        norm_low=torch.tensor([low for low, _ in ranges]),
        norm_high=torch.tensor([low + size for low, size in ranges]),
    )
    # The lowest token has no middle of its own: it decodes like the next.
    first = tokenizer.vocab_size - num_bins + 1
    tokens = torch.arange(first, tokenizer.vocab_size)
    tokens = tokens.unsqueeze(-1).repeat(1, len(ranges))
    assert torch.equal(tokenizer.encode(tokenizer.decode(tokens)), tokens)


def test_another_action_dimension_raises_rather_than_broadcasts():
    tokenizer = OpenVLAActionTokenizer.from_norm_stats(NORM_STATS, "libero")
    with pytest.raises(TokenError, match=r"expected \[\.\.\., A=6\], got shape \(4, 7"):
        tokenizer.encode(torch.zeros(4, 7))
    with pytest.raises(TokenError, match=r"expected \[\.\.\., A=6\], got shape \(4, 1"):
        tokenizer.decode(torch.zeros(4, 1, dtype=torch.int64))


def test_an_unknown_dataset_raises_with_those_there_are():
    with pytest.raises(KeyError, match=r"of \['bridge', 'libero'\], got 'droid'"):
        OpenVLAActionTokenizer.from_norm_stats(NORM_STATS, "droid")


def test_statistics_survive_json_to_the_last_bit():
    read = json.loads(json.dumps(NORM_STATS))
    a = OpenVLAActionTokenizer.from_norm_stats(NORM_STATS, "libero")
    b = OpenVLAActionTokenizer.from_norm_stats(read, "libero")
    assert torch.equal(a.norm_low, b.norm_low)
    assert a.norm_low.dtype == torch.float64


def test_it_compiles_to_one_graph():
    tokenizer = OpenVLAActionTokenizer.from_norm_stats(NORM_STATS, "libero")
    round_trip = torch.compile(
        lambda x: tokenizer.decode(tokenizer.encode(x)),
        fullgraph=True,
        backend="aot_eager",
    )
    actions = torch.rand(5, 6) - 0.5
    expected = tokenizer.decode(tokenizer.encode(actions))
    assert torch.equal(round_trip(actions), expected)


def test_a_gripper_is_binarized_and_inverted():
    tokenizer = OpenVLAActionTokenizer(
        3,  # middles -0.5 and 0.5
        norm_low=[0.0],
        norm_high=[1.0],
        norm_mask=[False],
        gripper_threshold=0.0,
        gripper_invert=True,
    )
    assert tokenizer.decode(torch.tensor([[2], [1]])).tolist() == [[1.0], [-1.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm_low": [0.0], "norm_high": [1.0, 2.0]}, r"one shape \[A\], got \(1,\)"),
        (
            {"norm_low": [2.0], "norm_high": [1.0]},
            r"q01 <= q99, got q01=\[2.0\]",
        ),
        (
            {"norm_low": [float("nan")], "norm_high": [1.0]},
            "finite 'q01', got",
        ),
    ],
)
def test_statistics_that_are_impossible_raise(options, message):
    with pytest.raises(ValueError, match=message):
        OpenVLAActionTokenizer(**options)
