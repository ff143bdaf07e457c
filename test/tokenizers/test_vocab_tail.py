from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrl.data.vla import VocabTailActionTokenizer as PeerTokenizer

from torchrl_vla.schema import TokenError
from torchrl_vla.tokenizers import VocabTailActionTokenizer

# Magnitudes like those in OpenVLA checkpoints; the last dimension is the gripper.
STATS = {
    "q01": [-0.745, -0.66, -0.9375, -0.1071428582072258, -0.20678570866584778, 0.0],
    "q99": [0.9375, 0.8758928775787354, 0.9321428537368774, 0.103, 0.183, 1.0],
    "mask": [True, True, True, True, True, False],
}
NORM_STATS = {"libero": {"action": STATS}, "bridge": {"action": STATS}}


def pair(num_bins=256, **options):
    return (
        VocabTailActionTokenizer(num_bins, **options),
        PeerTokenizer(num_bins, **options),
    )


def test_the_openvla_mapping_by_hand():
    tokenizer = VocabTailActionTokenizer(3)  # edges -1, 0, 1; middles -0.5, 0.5
    actions = torch.tensor([-1.0, -0.1, 0.0, 0.9, 1.0, -9.0, 9.0])
    assert tokenizer.encode(actions).tolist() == [2, 2, 1, 1, 0, 2, 0]
    assert tokenizer.decode(torch.tensor([0, 1, 2])).tolist() == [0.5, 0.5, -0.5]


@pytest.mark.parametrize("num_bins", [2, 3, 7, 100, 255, 256, 257, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_edge_and_its_neighbours_encode_as_torchrl_does(num_bins, dtype):
    ours, peer = pair(num_bins)
    edges = peer.bins.to(dtype)
    around = [edges]
    for direction in (-2.0, 2.0):
        near = edges
        for _ in range(3):
            near = torch.nextafter(near, torch.tensor(direction, dtype=dtype))
            around.append(near)
    actions = torch.cat([*around, torch.rand(20_000, dtype=dtype) * 2.4 - 1.2])
    assert torch.equal(ours.encode(actions), peer.encode(actions))


@pytest.mark.parametrize("full_vocab_size", [None, 32000])
def test_every_token_decodes_bit_equal_to_torchrl(full_vocab_size):
    ours, peer = pair(full_vocab_size=full_vocab_size)
    tokens = torch.arange(ours.vocab_size - 256, ours.vocab_size)
    assert torch.equal(ours.decode(tokens), peer.decode(tokens))


@pytest.mark.parametrize("full_vocab_size", [None, 32000])
@pytest.mark.parametrize(
    "gripper",
    [
        {},
        {"gripper_binarize": True},
        {"gripper_invert": True},
        {
            "gripper_binarize": True,
            "gripper_binarize_threshold": 0.5,
            "gripper_invert": True,
        },
    ],
)
def test_every_token_decodes_bit_equal_to_torchrls_float64_path(
    full_vocab_size, gripper
):
    options = {"full_vocab_size": full_vocab_size, **gripper}
    ours = VocabTailActionTokenizer.from_norm_stats(NORM_STATS, "libero", **options)
    peer = PeerTokenizer.from_norm_stats(NORM_STATS, "libero", **options)
    tokens = torch.arange(ours.vocab_size - 256, ours.vocab_size)
    tokens = tokens.unsqueeze(-1).expand(-1, 6)
    decoded = ours.decode(tokens)
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, peer.decode(tokens))


@pytest.mark.parametrize("full_vocab_size", [None, 32000])
def test_actions_with_statistics_encode_as_torchrl_does(full_vocab_size):
    options = {"full_vocab_size": full_vocab_size}
    ours = VocabTailActionTokenizer.from_norm_stats(NORM_STATS, "libero", **options)
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
    tokenizer = VocabTailActionTokenizer(
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


def test_the_lowest_two_tokens_are_one_action():
    tokenizer = VocabTailActionTokenizer(256)
    low, next_low = tokenizer.decode(torch.tensor([0, 1])).tolist()
    assert low == next_low
    assert tokenizer.encode(tokenizer.decode(torch.tensor([0]))).tolist() == [1]


def test_a_nan_raises_with_its_index():
    actions = torch.zeros(4, 7)
    actions[2, 6] = torch.nan
    message = r"VocabTail.*encode: expected finite actions, got nan at index \[2, 6\]"
    with pytest.raises(TokenError, match=message):
        VocabTailActionTokenizer().encode(actions)


@pytest.mark.parametrize("bad", [100, 31743, 32000, -1])
def test_a_text_token_raises_with_its_index(bad):
    tokenizer = VocabTailActionTokenizer(256, full_vocab_size=32000)
    tokens = torch.full((2, 7), 31999)
    tokens[0, 3] = bad
    message = rf"tokens in \[31744, 32000\), got {bad} at index \[0, 3\]. It is no act"
    with pytest.raises(TokenError, match=message):
        tokenizer.decode(tokens)


@pytest.mark.parametrize("bad", [-1, 256])
def test_a_window_token_outside_the_window_raises(bad):
    with pytest.raises(TokenError, match=rf"\[0, 256\), got {bad} at index \[1\]"):
        VocabTailActionTokenizer().decode(torch.tensor([0, bad]))


def test_another_action_dimension_raises_rather_than_broadcasts():
    tokenizer = VocabTailActionTokenizer.from_norm_stats(NORM_STATS, "libero")
    with pytest.raises(TokenError, match=r"expected \[\.\.\., A=6\], got shape \(4, 7"):
        tokenizer.encode(torch.zeros(4, 7))
    with pytest.raises(TokenError, match=r"expected \[\.\.\., A=6\], got shape \(4, 1"):
        tokenizer.decode(torch.zeros(4, 1, dtype=torch.int64))


def test_an_unknown_dataset_raises_with_those_there_are():
    with pytest.raises(KeyError, match=r"of \['bridge', 'libero'\], got 'droid'"):
        VocabTailActionTokenizer.from_norm_stats(NORM_STATS, "droid")


def test_statistics_survive_json_to_the_last_bit():
    read = json.loads(json.dumps(NORM_STATS))
    a = VocabTailActionTokenizer.from_norm_stats(NORM_STATS, "libero")
    b = VocabTailActionTokenizer.from_norm_stats(read, "libero")
    assert torch.equal(a.norm_low, b.norm_low)
    assert a.norm_low.dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_bins": 1}, "expected 2 <= num_bins <= full_vocab_size, got num_bins=1"),
        ({"full_vocab_size": 255}, "got num_bins=256, full_vocab_size=255"),
        ({"norm_low": [0.0]}, "both of norm_low and norm_high, got .*high=None"),
        ({"norm_low": [0.0], "norm_high": [1.0, 2.0]}, r"one shape \[A\], got \(1,\)"),
        ({"norm_low": [2.0], "norm_high": [1.0]}, "finite norm_low <= norm_high where"),
        ({"norm_low": [float("nan")], "norm_high": [1.0]}, "expected finite norm_low"),
        ({"gripper_invert": True}, "norm_mask beside gripper_binarize or gripper_inv"),
    ],
)
def test_arguments_that_cannot_be_raise(options, message):
    with pytest.raises(ValueError, match=message):
        VocabTailActionTokenizer(**options)


def test_it_compiles_to_one_graph():
    tokenizer = VocabTailActionTokenizer.from_norm_stats(NORM_STATS, "libero")
    round_trip = torch.compile(
        lambda x: tokenizer.decode(tokenizer.encode(x)),
        fullgraph=True,
        backend="aot_eager",
    )
    actions = torch.rand(5, 6) - 0.5
    expected = tokenizer.decode(tokenizer.encode(actions))
    assert torch.equal(round_trip(actions), expected)


def test_the_action_tokens_are_those_that_decode():
    tokenizer = VocabTailActionTokenizer(4, full_vocab_size=10)
    mask = tokenizer.is_action_token
    assert mask.tolist() == [False] * 6 + [True] * 4
    tokenizer.decode(mask.nonzero())
    with pytest.raises(TokenError, match=r"tokens in \[6, 10\)"):
        tokenizer.decode((~mask).nonzero()[-1:])
    assert VocabTailActionTokenizer(4).is_action_token is None
