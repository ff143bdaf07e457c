"""A small policy that writes tokens one after the other."""

from __future__ import annotations

import torch
from action_chunks import smooth_chunks
from tensordict import TensorDict
from torch import nn

from torchrl_vla.policies import TokenSequenceVLAWrapper
from torchrl_vla.schema import ObservationKeys
from torchrl_vla.tokenizers import (
    BEASTActionTokenizer,
    FASTActionTokenizer,
    UniformActionTokenizer,
)

CHUNKS = smooth_chunks(300)


class MarkovDecoder:
    """Logits from the condition, the last token and the place; a sum by hand."""

    def __init__(self, policy, condition):
        self.policy, self.condition = policy, condition

    def _logits(self, last, place):
        table, places = self.policy.table.weight, self.policy.places.weight
        return self.condition + table[last] + places[place]

    def begin(self):
        start = self.condition.new_full(
            (len(self.condition),), self.policy.vocab_size, dtype=torch.int64
        )
        return self._logits(start, 0), 1

    def step(self, state, tokens):
        return self._logits(tokens, state), state + 1

    def along(self, tokens):
        logits, _ = self.begin()
        found = [logits]
        for place in range(1, tokens.shape[-1]):
            found.append(self._logits(tokens[:, place - 1], place))
        return torch.stack(found, 1)


class MarkovVLA(TokenSequenceVLAWrapper):
    """Reads the state alone; each token depends on the one before."""

    def __init__(self, *, action_dim, chunk_size, action_tokenizer, sampling=None):
        super().__init__(
            action_dim=action_dim,
            chunk_size=chunk_size,
            action_tokenizer=action_tokenizer,
            sampling=sampling,
            keys=ObservationKeys(image=None, instruction=None),
        )
        vocabulary = self.action_tokenizer.vocab_size
        self.state = nn.Linear(2, vocabulary)
        self.table = nn.Embedding(vocabulary + 1, vocabulary)
        self.places = nn.Embedding(self.action_tokenizer.sequence_length, vocabulary)

    @property
    def config(self):
        return {
            "action_dim": self.action_dim,
            "chunk_size": self.chunk_size,
            "action_tokenizer": self.action_tokenizer,
            "sampling": self.sampling,
        }

    def make_decoder(self, tensordict):
        state = tensordict["observation", "state"].reshape(-1, 2)
        # Row by row: a matrix product rounds a row as its batch has it do.
        weight = self.state.weight
        condition = (state[:, None, :] * weight).sum(-1) + self.state.bias
        return MarkovDecoder(self, condition)


def observations(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    state = torch.randn(n, 2, generator=generator)
    return TensorDict({"observation": {"state": state}}, [n])


def make(kind="fast", sampling=None):
    tokenizer = {
        "fast": lambda: FASTActionTokenizer.fit(CHUNKS, vocab_size=120),
        "beast": lambda: BEASTActionTokenizer.fit(CHUNKS, num_basis=6, num_bins=16),
        "bins": lambda: UniformActionTokenizer(6, low=-1.0, high=1.0),
    }[kind]()
    torch.manual_seed(0)
    return MarkovVLA(
        action_dim=2, chunk_size=8, action_tokenizer=tokenizer, sampling=sampling
    )
