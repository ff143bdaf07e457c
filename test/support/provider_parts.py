"""A host's functions around a provider of actions."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule

from torchrl_vla.execution import EmbodimentActionTranslator, EmbodimentContract

CALLS: list[list[int]] = []


def make_policy(horizon=4):
    """chunk[h] = state + h / 10, of two dimensions."""

    def chunk(state):
        CALLS.append(list(state.shape))
        ahead = torch.arange(horizon).view(-1, 1) / 10
        return state[..., None, :2] + ahead

    return TensorDictModule(chunk, [("observation", "state")], ["action_chunk"])


def make_contract(**options):
    return EmbodimentContract(
        "arm", 2, action_low=(-9, -9), action_high=(9, 9), **options
    )


def make_translator(**options):
    contract = make_contract(metadata={"units": "rad", "api_key": "hidden"}, **options)
    return EmbodimentActionTranslator(contract, lambda chunk, _: chunk * 10)


def make_observation(value=1.0):
    return TensorDict({"observation": {"state": torch.full((3,), value)}})


def make_nothing():
    raise OSError("no such checkpoint")
