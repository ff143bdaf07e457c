from __future__ import annotations

import pytest
import torch

from torchrl_vla.tokenizers import ActionTokenizerBase


def test_the_base_class_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        ActionTokenizerBase()


def test_a_tokenizer_of_ones_own_has_three_methods():
    class Sign(ActionTokenizerBase):
        vocab_size = 2

        def encode(self, actions):
            self._check_actions(actions)
            return (actions > 0).long()

        def decode(self, tokens):
            self._check_tokens(tokens, 0, 2)
            return tokens * 2.0 - 1.0

    tokens = Sign().encode(torch.tensor([-3.0, 3.0]))
    assert tokens.tolist() == [0, 1]
    assert Sign().decode(tokens).tolist() == [-1.0, 1.0]
