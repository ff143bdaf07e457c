from __future__ import annotations

import torch

from torchrl_vla.policies import ByteTextEncoder
from torchrl_vla.policies.encoders.text_features import TextEncoder


def test_the_byte_encoder_is_one_with_states_of_its_bytes():
    encoder = ByteTextEncoder(8, max_bytes=6, width=4)
    assert isinstance(encoder, TextEncoder)
    rows = encoder.prepare(["ab", "abcd"])
    assert torch.equal(encoder.encode(["ab", "abcd"]), encoder(rows))
    assert encoder(rows).shape == (2, encoder.num_features)
    tokens = encoder.encode_tokens(rows)
    assert tokens.states.shape == (2, 6, 4)
    assert tokens.is_pad.tolist() == [
        [False, False, True, True, True, True],
        [False, False, False, False, True, True],
    ]


def test_an_encoder_without_token_states_says_none():
    class Length(TextEncoder):
        def prepare(self, texts):
            return torch.tensor([[float(len(text))] for text in texts])

        def forward(self, rows):
            return rows

    encoder = Length(1)
    assert encoder.encode_tokens(encoder.prepare(["a"])) is None
