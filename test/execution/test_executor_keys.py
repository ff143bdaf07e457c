from __future__ import annotations

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule

from torchrl_vla.execution import (
    ActionInterpolation,
    ExecutorKeys,
    MultiStepActorWrapper,
    TemporalEnsemble,
)

KEYS = ExecutorKeys(
    chunk=("plan", ("chunk",)),
    action=("robot", "command"),
    is_init="begins",
    is_decision="decides",
    decision_index="number",
)


def make_policy():
    return TensorDictModule(
        lambda state: state.unsqueeze(-2).expand(-1, 2, -1),
        ["state"],
        [("plan", "chunk")],
    )


def test_nested_keys_are_flattened_and_the_defaults_are_the_schemas():
    assert KEYS.chunk == ("plan", "chunk")
    assert ExecutorKeys() == ExecutorKeys(
        None, "action", "is_init", "is_decision", "decision_index"
    )


def test_every_key_of_an_executor_can_be_another():
    inner = MultiStepActorWrapper(make_policy(), keys=KEYS)
    for executor in (
        inner,
        TemporalEnsemble(make_policy(), action_reference="absolute", keys=KEYS),
        ActionInterpolation(inner, 2, action_reference="absolute"),
    ):
        td = TensorDict({"state": torch.ones(1, 1)}, [1])
        td["begins"] = torch.ones(1, 1).bool()
        td = executor(td)
        assert td["robot", "command"].tolist() == [[1.0]]
        assert td["decides"].item() is True
        assert td["number"].shape == (1, 1)
        assert not {"action", "is_decision", "decision_index"} & set(td.keys())
