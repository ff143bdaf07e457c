"""Policies as a user writes them: no base class, importable by name."""

from __future__ import annotations

import torch
from torch import nn


class TenLines(nn.Module):
    chunk_size, action_dim = 3, 2
    in_keys = [("observation", "state")]

    def __init__(self, width=8):
        super().__init__()
        self.width = width
        self.net = nn.Sequential(nn.LazyLinear(width), nn.Tanh(), nn.Linear(width, 6))

    def forward(self, tensordict):
        return self.net(tensordict["observation", "state"]).unflatten(-1, (3, 2))


class Sized(nn.Module):
    """Its arguments are in ``config``."""

    def __init__(self, sizes, scale=1.0):
        super().__init__()
        self.config = {"sizes": sizes, "scale": scale}
        self.layer = nn.Linear(*sizes)
        self.chunk_size, self.action_dim = 1, sizes[1]

    def forward(self, tensordict):
        state = tensordict["observation", "state"]
        chunk = self.config["scale"] * self.layer(state).unsqueeze(-2)
        return tensordict.set("action_chunk", chunk)


class Silent(nn.Module):
    """Does not keep what it was built with."""

    chunk_size, action_dim = 1, 2

    def __init__(self, size):
        super().__init__()
        self.layer = nn.Linear(size, 2)

    def forward(self, tensordict):
        return self.layer(tensordict["observation", "state"]).unsqueeze(-2)


class LowRank(nn.Module):
    """LoRA by parametrization."""

    def __init__(self, rows, columns):
        super().__init__()
        self.a = nn.Parameter(torch.randn(rows, 1))
        self.b = nn.Parameter(torch.randn(1, columns))

    def forward(self, weight):
        return weight + self.a @ self.b


def make_silent(metadata):
    return Silent(metadata.state_dim)


def needs_more(metadata, secret):
    return Silent(secret)
