"""Agreement of the docstrings' Reads and Writes with the keys of instances."""

from __future__ import annotations

import re

import pytest
from tiny_options import make_tiny
from torch import nn

from torchrl_vla.envs import TabletopEnv, TabletopExpert
from torchrl_vla.execution import MultiAction
from torchrl_vla.objectives import BCLoss, FlowMatchingLoss, TokenBCLoss
from torchrl_vla.policies import TinyFlowVLA, TinyTokenVLA, TinyVLA
from torchrl_vla.schema import RobotDatasetMetadata
from torchrl_vla.tokenizers import UniformActionTokenizer
from torchrl_vla.transforms import (
    ActionScaling,
    ActionTokenizerTransform,
    FromTorchRLNames,
    ObservationHistory,
    PreviousAction,
    StateScaling,
    SuccessReward,
    ToTorchRLNames,
)

TOKENIZER = UniformActionTokenizer(4, low=-1.0, high=1.0)
ROBOT = RobotDatasetMetadata("robot", action_names=("x",), state_names=("x",))
TINY = {"action_dim": 1, "chunk_size": 2, "state_dim": 1, "hidden": 8}

OBJECTS = {
    "ActionScaling": lambda: ActionScaling(0.0, 1.0),
    "StateScaling": lambda: StateScaling(0.0, 1.0),
    "ActionTokenizerTransform": lambda: ActionTokenizerTransform(TOKENIZER),
    "ObservationHistory": lambda: ObservationHistory(2),
    "SuccessReward": SuccessReward,
    "RobotConversion": lambda: ROBOT.conversion_to(ROBOT),
    "PreviousAction": lambda: PreviousAction(ROBOT),
    "ToTorchRLNames": ToTorchRLNames,
    "FromTorchRLNames": FromTorchRLNames,
    "MultiAction": lambda: MultiAction(2),
    "BCLoss": lambda: BCLoss(make_tiny(TinyVLA, **TINY)),
    "TokenBCLoss": lambda: TokenBCLoss(
        make_tiny(TinyTokenVLA, **TINY, action_tokenizer=TOKENIZER)
    ),
    "FlowMatchingLoss": lambda: FlowMatchingLoss(make_tiny(TinyFlowVLA, **TINY)),
    "TabletopExpert": lambda: TabletopExpert(TabletopEnv(1)),
}


def keys_of(component: nn.Module) -> set[str]:
    """Return the last part of every key of an instance, without a policy's own."""
    policy = getattr(component, "actor_network", None)
    passed_on = set() if policy is None else set(policy.in_keys)
    keys = set()
    for name in ("in_keys", "out_keys", "in_keys_inv", "out_keys_inv"):
        keys |= set(getattr(component, name, ())) - passed_on
    return {key if isinstance(key, str) else key[-1] for key in keys}


@pytest.mark.parametrize("name", OBJECTS)
def test_the_docstring_names_every_key_of_an_instance(name):
    component = OBJECTS[name]()
    documented = type(component).__doc__.split("**Reads**")[1].split("Args:")[0]
    words = set(re.findall(r"\w+", documented))
    assert keys_of(component) <= words
