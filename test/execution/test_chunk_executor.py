"""Tests of what the executors share, through a subclass of a few lines."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor

from torchrl_vla.execution import (
    AsyncExecutor,
    ChunkExecutor,
    Executor,
    MultiStepActorWrapper,
    RealTimeChunking,
    TemporalEnsemble,
)
from torchrl_vla.schema import (
    ExecutionError,
    MissingKeyError,
    PolicySpace,
    SpaceError,
)
from torchrl_vla.testing import check_executor


class FirstOnly(ChunkExecutor):
    """Call the policy at every step and execute the first action."""

    def _serve(self, tensordict, begins):
        chunk, outputs, serial = self._call_policy(tensordict, None)
        self._state = Served(torch.full((*begins.shape, 1), serial))
        decided = torch.ones_like(begins)
        return self._write(tensordict, chunk[..., 0, :], decided, outputs)


@dataclass
class Served:
    serials: Tensor

    @property
    def batch_size(self):
        return self.serials.shape[:-1]


def make():
    policy = TensorDictModule(
        lambda clock: clock[..., None, None].expand(*clock.shape, 2, 1),
        in_keys=["clock"],
        out_keys=["action_chunk"],
    )
    return FirstOnly(policy)


def step(num_envs, begins):
    return TensorDict(
        {
            "clock": torch.arange(float(num_envs)),
            "is_init": torch.full((num_envs, 1), begins),
        },
        [num_envs],
    )


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**31))
def test_a_subclass_of_a_few_lines_is_an_executor(chunk_size, num_envs, seed):
    check_executor(
        FirstOnly,
        chunk_size=chunk_size,
        replan_interval=1,
        num_envs=num_envs,
        num_steps=12,
        seed=seed,
    )


def test_a_subclass_writes_every_one_of_its_out_keys():
    executor = make()
    td = executor(step(2, True))
    assert executor.out_keys == [
        "action",
        "is_decision",
        "decision_index",
        "observation_needed",
    ]
    assert set(executor.out_keys) <= set(td.keys())
    assert executor.in_keys == ["clock", "is_init"]


def test_errors_name_the_subclass():
    executor = make()
    with pytest.raises(MissingKeyError, match=r"^FirstOnly: .*Append InitTracker\(\)"):
        executor(step(1, True).exclude("is_init"))
    executor(step(2, True))
    with pytest.raises(ExecutionError, match=r"^FirstOnly: expected batch size \[2\]"):
        executor(step(3, False))
    foreign = step(2, False)
    foreign["decision_index"] = torch.tensor([[-1], [-1]])
    with pytest.raises(
        ExecutionError, match=r"^FirstOnly: .*decisions.*FirstOnly\(pol"
    ):
        executor(foreign)


def test_numbers_of_decisions_are_unique_among_executors():
    first, second = make(), make()
    numbers = [
        executor(step(1, True))["decision_index"].item()
        for executor in (first, second, first, second)
    ]
    assert len(set(numbers)) == 4


@pytest.mark.parametrize("kind", [Executor, ChunkExecutor])
def test_the_base_classes_cannot_be_made(kind):
    with pytest.raises(TypeError, match=r"abstract (class|method)"):
        kind(make().policy)


EXECUTORS = {
    "multi-step": MultiStepActorWrapper,
    "ensemble": lambda policy: TemporalEnsemble(policy, action_reference="absolute"),
    "asynchronous": lambda policy: AsyncExecutor(
        policy, request_at=1, action_reference="absolute"
    ),
    "real-time": lambda policy: RealTimeChunking(
        policy, replan_interval=1, inference_delay=1, action_reference="absolute"
    ),
}


def make_policy(number):
    policy = TensorDictModule(
        lambda clock: torch.full((*clock.shape, 3, 2), number), ["clock"], ["action"]
    )
    policy.optional_in_keys = ["guide_chunk", "guide_weight"]
    return policy


@pytest.mark.parametrize("name", EXECUTORS)
def test_a_policy_of_model_space_is_refused_by_every_executor(name):
    policy = make_policy(0.0)
    policy.policy_space = PolicySpace("model", "abc", "mean_std")
    with pytest.raises(
        SpaceError, match=r"expected a policy in robot space.*space\.executor\(policy"
    ):
        EXECUTORS[name](policy)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", EXECUTORS)
def test_actions_that_are_not_finite_are_refused_by_every_executor(name, number):
    executor = EXECUTORS[name](make_policy(number))
    with pytest.raises(
        ExecutionError,
        match=f"finite actions at 'action', got {number} at env index 0, step 0, dim",
    ):
        executor(step(2, True))
