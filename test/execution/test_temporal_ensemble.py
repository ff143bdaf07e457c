from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.envs import InitTracker, TransformedEnv

from torchrl_vla.envs.toy import ToyVLAEnv
from torchrl_vla.execution import TemporalEnsemble
from torchrl_vla.schema import ExecutionError
from torchrl_vla.testing import ServedStep, check_executor, predicted_action


def reference(horizon, m):
    """Keep every chunk of the episode and average those that reach this step."""

    def run(starts):
        out, began = [], {}
        for step, line in enumerate(starts):
            served = []
            for row, starts_here in enumerate(line):
                began[row] = step if starts_here else began[row]
                # The oldest chunk that reaches this step is the first.
                chunks = range(max(began[row], step - horizon + 1), step + 1)
                said = [predicted_action(at, row, step - at) for at in chunks]
                weights = [math.exp(-m * i) for i in range(len(said))]
                mean = sum(w * a for w, a in zip(weights, said)) / sum(weights)
                served.append(ServedStep(mean, planned_at=step, is_asked=True))
            out.append(served)
        return out

    return run


@settings(max_examples=40, deadline=None)
@given(
    horizon=st.integers(1, 7),
    m=st.sampled_from([0.0, 0.01, 1.0, -0.5]),
    num_envs=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_equals_the_weighted_mean_of_every_chunk_that_reaches_now(
    horizon, m, num_envs, seed
):
    check_executor(
        lambda actor: TemporalEnsemble(
            actor, action_reference="absolute", coefficient=m
        ),
        chunk_size=horizon,
        reference=reference(horizon, m),
        num_envs=num_envs,
        num_steps=20,
        seed=seed,
    )


def replay(chunks):
    """Return an actor that says the given chunks one after the other."""
    said = iter(chunks)
    return TensorDictModule(
        lambda _: next(said), in_keys=["clock"], out_keys=["action_chunk"]
    )


def step(rows, begins):
    return TensorDict(
        {
            "clock": torch.zeros(rows, 1),
            "is_init": torch.full((rows, 1), begins, dtype=torch.bool),
        },
        [rows],
    )


def test_old_predictions_weigh_more():
    # At step 1 chunks 0 and 1 say 3 and 0 with weights 1 and 1/2; at step 2 chunks 0,
    # 1 and 2 say 8, 4 and 2 with weights 1, 1/2 and 1/4.
    chunks = [
        torch.tensor([[[7.0], [3], [8]]]),
        torch.tensor([[[0.0], [4], [0]]]),
        torch.tensor([[[2.0], [0], [0]]]),
    ]
    executor = TemporalEnsemble(
        replay(chunks), action_reference="delta", coefficient=math.log(2)
    )
    actions = [executor(step(1, t == 0))["action"].item() for t in range(3)]
    # exp(-log 2) is 1/2 to one rounding of float32.
    assert actions == pytest.approx([7, 2, (8 + 2 + 0.5) / 1.75], rel=1e-6)


@pytest.mark.parametrize("batch_size", [[], [3], [2, 2]])
def test_any_batch_of_environments_is_served_and_every_step_is_a_decision(batch_size):
    actor = TensorDictModule(
        lambda state: state[..., None, :4] + torch.full((5, 1), 0.01),
        in_keys=[("observation", "state")],
        out_keys=["action_chunk"],
    )
    env = TransformedEnv(ToyVLAEnv(batch_size=batch_size), InitTracker())
    rollout = env.rollout(6, TemporalEnsemble(actor, action_reference="absolute"))
    assert rollout["is_decision"].all()
    assert rollout["observation_needed"].all()
    assert rollout["action"].shape == (*batch_size, 6, 4)
    assert torch.isfinite(rollout["action"]).all()


def test_half_precision_is_averaged_in_single_precision():
    # 1000 + 1 is no bfloat16: a running mean in it would stay at 1000.
    chunks = [torch.full((1, 4, 1), v, dtype=torch.bfloat16) for v in (1e3, 1016, 1032)]
    executor = TemporalEnsemble(
        replay(chunks), action_reference="absolute", coefficient=0.0
    )
    actions = [executor(step(1, t == 0))["action"] for t in range(3)]
    assert [a.item() for a in actions] == [1000, 1008, 1016]
    assert actions[0].dtype == torch.bfloat16


def test_no_graph_grows_from_step_to_step():
    weight = torch.ones((), requires_grad=True)
    actor = TensorDictModule(
        lambda clock: weight * torch.ones(1, 3, 1),
        in_keys=["clock"],
        out_keys=["action_chunk"],
    )
    executor = TemporalEnsemble(actor, action_reference="absolute")
    assert [executor(step(1, t == 0))["action"].requires_grad for t in range(2)] == [
        False,
        False,
    ]


@pytest.mark.parametrize("m", [math.nan, math.inf, -math.inf])
def test_a_coefficient_that_is_not_finite_is_refused(m):
    with pytest.raises(
        ValueError, match=r"expected a finite coefficient, got (nan|-?inf)"
    ):
        TemporalEnsemble(replay([]), action_reference="absolute", coefficient=m)


def test_weights_that_overflow_are_refused_before_an_action_is_sent():
    executor = TemporalEnsemble(
        replay([torch.zeros(1, 100, 1)]), action_reference="absolute", coefficient=-1.0
    )
    with pytest.raises(ExecutionError, match=r"H=100 actions, whose weights overflow"):
        executor(step(1, True))


def test_chunks_with_different_anchors_are_never_averaged():
    with pytest.raises(ValueError, match=r"^TemporalEnsemble: .*got 'relative'"):
        TemporalEnsemble(replay([]), action_reference="relative")
    with pytest.raises(
        ValueError, match=r"\['absolute', 'delta', 'relative'\], got 'w"
    ):
        TemporalEnsemble(replay([]), action_reference="world")


def test_a_chunk_of_another_length_is_refused():
    executor = TemporalEnsemble(
        replay([torch.zeros(1, 3, 1), torch.zeros(1, 2, 1)]),
        action_reference="absolute",
    )
    executor(step(1, True))
    with pytest.raises(ExecutionError, match=r"chunk of 3 actions .* got 2.*No action"):
        executor(step(1, False))


def test_whole_numbers_are_refused():
    executor = TemporalEnsemble(
        replay([torch.zeros(1, 3, 1, dtype=torch.int64)]), action_reference="absolute"
    )
    with pytest.raises(ExecutionError, match=r"chunk of floats .*got torch\.int64"):
        executor(step(1, True))
