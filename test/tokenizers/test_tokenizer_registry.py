from __future__ import annotations

import json

import pytest
import torch

from torchrl_vla.schema import TokenError
from torchrl_vla.tokenizers import (
    ActionTokenizerBase,
    OpenVLAActionTokenizer,
    UniformActionTokenizer,
    VocabTailActionTokenizer,
    tokenizer_from_config,
)

TOKENIZERS = [
    UniformActionTokenizer(7, low=-1.0, high=0.1),
    UniformActionTokenizer(7, low=[-1.0, 0.1], high=[1.0, 0.7]),
    VocabTailActionTokenizer(5),
    VocabTailActionTokenizer(5, full_vocab_size=32000),
    OpenVLAActionTokenizer(
        5,
        norm_low=[0.1, 0.0],
        norm_high=[0.7, 1.0],
        norm_mask=[True, False],
        gripper_threshold=0.25,
        gripper_invert=True,
    ),
]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_tokenizer_comes_back_from_json_as_it_was(tokenizer):
    config = tokenizer.to_config()
    read = tokenizer_from_config(json.loads(json.dumps(config)))
    assert type(read) is type(tokenizer)
    assert read.to_config() == config
    actions = torch.rand(50, 2) * 3 - 1.5
    tokens = tokenizer.encode(actions)
    assert torch.equal(read.encode(actions), tokens)
    assert torch.equal(read.decode(tokens), tokenizer.decode(tokens))


class Sign(ActionTokenizerBase):
    vocab_size = 2

    def __init__(self, size):
        super().__init__()
        self.size = size

    def encode(self, actions):
        return (actions > 0).long()

    def decode(self, tokens):
        return (tokens * 2.0 - 1.0) * self.size

    def to_config(self):
        return self.config_of(size=self.size)


def test_a_tokenizer_of_ones_own_is_found_by_its_module(monkeypatch):
    config = Sign(3.0).to_config()
    assert config == {"class": f"{__name__}:Sign", "size": 3.0}
    monkeypatch.setitem(__import__("sys").modules, __name__, _ThisModule)
    read = tokenizer_from_config(config)
    assert read.decode(torch.tensor([0, 1])).tolist() == [-3.0, 3.0]


class _ThisModule:
    Sign = Sign


@pytest.mark.parametrize(
    "name", ["Missing", "no_module:Sign", "json:loads", "json:missing", "", None]
)
def test_a_class_that_is_no_tokenizer_raises(name):
    message = r"one of \['BEASTActionTokenizer', 'FASTActionTokenizer', .* got '"
    with pytest.raises(TokenError, match=message):
        tokenizer_from_config({"class": name})


def test_a_tokenizer_without_a_config_says_so():
    class Unsaved(Sign):
        to_config = ActionTokenizerBase.to_config

    message = r"Unsaved.to_config: expected an implementation, got none.*config_of"
    with pytest.raises(TokenError, match=message):
        Unsaved(1.0).to_config()
