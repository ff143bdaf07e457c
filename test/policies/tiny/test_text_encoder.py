from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrl_vla.policies import ByteTextEncoder

PAD = 256


def test_bytes_are_utf8_padded_with_a_value_that_no_byte_has():
    data = ByteTextEncoder(4, max_bytes=5).to_bytes(["ab", "é!"])
    assert data.dtype == torch.int64
    assert data.tolist() == [
        [97, 98, PAD, PAD, PAD],
        [0xC3, 0xA9, 33, PAD, PAD],
    ]


def test_a_zero_byte_is_not_padding():
    encoder = ByteTextEncoder(4, max_bytes=4)
    short, long = encoder(encoder.to_bytes(["a", "a\0"]))
    assert not torch.allclose(short, long, atol=1e-4)


@given(texts=st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=4))
@settings(max_examples=50, deadline=None)
def test_two_texts_share_bytes_only_if_they_are_one_text(texts):
    rows = ByteTextEncoder(4, max_bytes=32).to_bytes(texts).tolist()
    for text, row in zip(texts, rows):
        for other, other_row in zip(texts, rows):
            assert (row == other_row) == (text == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("pick the red cube", "pick the rad cube"),
        ("put A on B", "put B on A"),
        ("reach the red block", "reach the red block "),
        ("öffne die Tür", "offne die Tur"),
    ],
)
def test_texts_that_differ_little_are_encoded_apart(one, other):
    torch.manual_seed(0)
    encoder = ByteTextEncoder(16)
    first, second = encoder(encoder.to_bytes([one, other]))
    assert (first - second).abs().max() > 1e-3


def test_padding_has_no_influence():
    torch.manual_seed(0)
    long = ByteTextEncoder(8, max_bytes=64)
    short = ByteTextEncoder(8, max_bytes=16)
    weights = long.state_dict()
    weights["position"] = weights["position"][:16]
    short.load_state_dict(weights)
    texts = ["open the door", "a"]
    torch.testing.assert_close(
        short(short.to_bytes(texts)), long(long.to_bytes(texts)), rtol=1e-5, atol=1e-6
    )


def test_every_byte_gets_a_gradient_and_the_padding_none():
    encoder = ByteTextEncoder(8, max_bytes=8)
    encoder(encoder.to_bytes(["abc"])).square().sum().backward()
    touched = encoder.embedding.weight.grad.abs().sum(-1).nonzero().flatten().tolist()
    assert touched == [ord("a"), ord("b"), ord("c")]
    assert (
        encoder.position.grad.abs().sum(-1).gt(0).tolist() == [True] * 3 + [False] * 5
    )


def test_a_text_may_fill_the_encoder_but_not_exceed_it():
    encoder = ByteTextEncoder(4, max_bytes=4)
    assert encoder.to_bytes(["abcd"]).tolist() == [[97, 98, 99, 100]]
    with pytest.raises(
        ValueError,
        match=r"^ByteTextEncoder: expected 1 to max_bytes=4 bytes of text, got 5 in "
        r"'abcé'\. Build the policy with text_max_bytes=5 or more, or shorten",
    ):
        encoder.to_bytes(["ab", "abcé"])


def test_an_empty_text_is_refused():
    with pytest.raises(
        ValueError, match=r"1 to max_bytes=128 bytes of text, got 0 in ''"
    ):
        ByteTextEncoder(4).to_bytes([""])
