"""What the executors share, through a member of a few lines."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor

from torchrl_vla.execution import ChunkExecutor, Executor
from torchrl_vla.schema import ExecutionError, MissingKeyError
from torchrl_vla.testing import check_executor


class FirstOnly(ChunkExecutor):
    """Asks at every step and executes the first action."""

    def _serve(self, tensordict, begins):
        chunk, outputs, serial = self._ask(tensordict, None)
        self._state = Served(torch.full((*begins.shape, 1), serial))
        asked = torch.ones_like(begins)
        return self._write(tensordict, chunk[..., 0, :], asked, outputs)


@dataclass
class Served:
    serials: Tensor

    @property
    def batch_size(self):
        return self.serials.shape[:-1]


def make():
    actor = TensorDictModule(
        lambda clock: clock[..., None, None].expand(*clock.shape, 2, 1),
        in_keys=["clock"],
        out_keys=["action_chunk"],
    )
    return FirstOnly(actor)


def step(rows, begins):
    return TensorDict(
        {"clock": torch.arange(float(rows)), "is_init": torch.full((rows, 1), begins)},
        [rows],
    )


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**31))
def test_a_member_of_a_few_lines_is_an_executor(chunk_size, num_envs, seed):
    check_executor(
        FirstOnly,
        chunk_size=chunk_size,
        replan_interval=1,
        num_envs=num_envs,
        num_steps=12,
        seed=seed,
    )


def test_a_member_writes_every_one_of_its_out_keys():
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


def test_errors_name_the_member():
    executor = make()
    with pytest.raises(MissingKeyError, match=r"^FirstOnly: .*Append InitTracker\(\)"):
        executor(step(1, True).exclude("is_init"))
    executor(step(2, True))
    with pytest.raises(ExecutionError, match=r"^FirstOnly: expected batch size \[2\]"):
        executor(step(3, False))
    foreign = step(2, False)
    foreign["decision_index"] = torch.tensor([[-1], [-1]])
    with pytest.raises(
        ExecutionError, match=r"^FirstOnly: .*decisions.*FirstOnly\(act"
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
