from __future__ import annotations

import pytest
import torch
from torchrl.data.vla import VocabTailActionTokenizer as PeerTokenizer

from torchrl_vla.schema import TokenError
from torchrl_vla.tokenizers import VocabTailActionTokenizer


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


@pytest.mark.parametrize("num_bins", [2, 3, 256, 400])
@pytest.mark.parametrize("full_vocab_size", [None, 32000])
def test_encode_undoes_decode(num_bins, full_vocab_size):
    tokenizer = VocabTailActionTokenizer(num_bins, full_vocab_size=full_vocab_size)
    # The lowest token has no middle of its own: it decodes like the next.
    first = tokenizer.vocab_size - num_bins + 1
    tokens = torch.arange(first, tokenizer.vocab_size)
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_bins": 1}, "expected 2 <= num_bins <= full_vocab_size, got num_bins=1"),
        ({"full_vocab_size": 255}, "got num_bins=256, full_vocab_size=255"),
    ],
)
def test_arguments_that_cannot_be_raise(options, message):
    with pytest.raises(ValueError, match=message):
        VocabTailActionTokenizer(**options)


def test_the_action_tokens_are_those_that_decode():
    tokenizer = VocabTailActionTokenizer(4, full_vocab_size=10)
    mask = tokenizer.is_action_token
    assert mask.tolist() == [False] * 6 + [True] * 4
    tokenizer.decode(mask.nonzero())
    with pytest.raises(TokenError, match=r"tokens in \[6, 10\)"):
        tokenizer.decode((~mask).nonzero()[-1:])
    assert VocabTailActionTokenizer(4).is_action_token is None
