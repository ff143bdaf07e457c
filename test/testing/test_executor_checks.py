from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict.nn import TensorDictModuleBase

from torchrl_vla.execution import MultiStepActorWrapper
from torchrl_vla.testing import check_executor


@given(data=st.data(), chunk_size=st.integers(1, 6), seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_the_multi_step_actor_passes(data, chunk_size, seed):
    interval = data.draw(st.none() | st.integers(1, chunk_size))
    check_executor(
        lambda actor: MultiStepActorWrapper(actor, replan_interval=interval),
        chunk_size=chunk_size,
        replan_interval=interval,
        num_envs=data.draw(st.integers(1, 5)),
        num_steps=25,
        seed=seed,
    )


class Plain(TensorDictModuleBase):
    """A right executor, slow and short; the wrong ones below inherit from it."""

    out = ("action_tokens", "log_probs")
    interval = 3

    def __init__(self, actor):
        super().__init__()
        self.actor = actor
        self.in_keys = [*actor.in_keys, "is_init"]
        self.out_keys = ["action", "is_decision", *self.out]
        self.plan = self.left = None

    def asks(self, td):
        is_init = td["is_init"].squeeze(-1)
        return is_init if self.left is None else is_init | (self.left == 0)

    def ask(self, td, rows):
        return self.actor(td[rows].select("observation"))

    def serve(self, td):
        position = self.interval - self.left
        return self.plan["action_chunk"][torch.arange(len(td)), position]

    def forward(self, td):
        rows = self.asks(td)
        if self.plan is None:
            self.left = torch.zeros(len(td), dtype=torch.int64)
            self.plan = self.ask(td, torch.ones_like(rows))
        elif rows.any():
            answer = self.ask(td, rows)
            self.plan = self.plan.clone()
            self.plan[rows] = answer
        self.left = self.left.masked_fill(rows, self.interval)
        td["action"] = self.serve(td)
        td["is_decision"] = rows.unsqueeze(-1)
        self.left = self.left - 1
        return td.update(self.plan.select(*self.out))


class IgnoresResets(Plain):
    def asks(self, td):
        first = self.left is None
        return torch.ones(len(td)).bool() if first else self.left == 0


class ForEver(Plain):
    """Never finds its actions used up."""

    def asks(self, td):
        return td["is_init"].squeeze(-1)

    def serve(self, td):
        self.left = self.left.clamp(min=1)
        return super().serve(td)


class ResetsEveryone(Plain):
    def asks(self, td):
        rows = super().asks(td)
        return rows | rows.any()


class AsksAlways(Plain):
    def asks(self, td):
        return torch.ones(len(td), dtype=torch.bool)


class AsksAboutAll(Plain):
    """Asks about rows that have actions left, and throws the answers away."""

    def ask(self, td, rows):
        return self.actor(td.select("observation"))[rows]


class Backwards(Plain):
    def serve(self, td):
        return self.plan["action_chunk"][torch.arange(len(td)), self.left - 1]


class FreshTokens(Plain):
    """The tokens of now, not of the chunk in execution."""

    def forward(self, td):
        td = super().forward(td)
        return td.set("action_tokens", td["observation"].long())


class KeepsTheChunk(Plain):
    out = ("action_chunk", "action_tokens", "log_probs")


class NoMask(Plain):
    def forward(self, td):
        td = super().forward(td)
        return td.set("is_decision", torch.ones_like(td["is_decision"]))


class WritesAgain(Plain):
    """Serves every action from one buffer."""

    def forward(self, td):
        td = super().forward(td)
        if not hasattr(self, "buffer"):
            self.buffer = torch.zeros_like(td["action"])
        return td.set("action", self.buffer.copy_(td["action"]))


@pytest.mark.parametrize(
    ("executor", "complaint"),
    [
        (
            IgnoresResets,
            r"^IgnoresResets: expected the actor to be asked about rows \[",
        ),
        (ForEver, "expected the actor to be asked about rows"),
        (ResetsEveryone, "expected the actor to be asked about rows"),
        (AsksAlways, r"asked about rows \[1\] at step 1, got \[0, 1, 2\]"),
        (AsksAboutAll, r"expected the actor to be asked about rows .* got \[0, 1, 2\]"),
        (
            Backwards,
            r"^Backwards: expected \[0.0, 1.0, 2.0\] at 'action' of step 0, got",
        ),
        (FreshTokens, r"\[0, 101, 2\] at 'action_tokens' of step 1, got \[100, 101"),
        (
            KeepsTheChunk,
            "expected no 'action_chunk' in what it writes: a rollout would",
        ),
        (NoMask, r"\[False, True, False\] at 'is_decision' of step 1, got \[True"),
        (
            WritesAgain,
            "expected 'action' of step 0 to stay as it was handed out, got oth",
        ),
    ],
)
def test_a_broken_executor_is_found(executor, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_executor(executor, chunk_size=3, seed=1)


def test_a_right_executor_is_not_called_broken():
    check_executor(Plain, chunk_size=3, seed=1)
    check_executor(Plain, chunk_size=5, replan_interval=3)


@pytest.mark.parametrize("interval", [1, 2, 4])
def test_another_interval_is_found(interval):
    with pytest.raises(
        AssertionError, match="expected the actor to be asked about row"
    ):
        check_executor(Plain, chunk_size=4, replan_interval=interval)
