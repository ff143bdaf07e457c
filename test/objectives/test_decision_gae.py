from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import TensorDictModule

from torchrl_vla.objectives import DecisionGAE
from torchrl_vla.schema import MissingKeyError, SchemaError

CRITIC = TensorDictModule(lambda state: 2 * state, ["state"], ["state_value"])


def decisions(rows: int, steps: int, seed: int) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(rows, steps, *shape, generator=generator)

    done = draw(1) < 0.3
    return TensorDict(
        {
            "state": draw(1),
            "next": {
                "state": draw(1),
                "reward": draw(1),
                "done": done,
                "terminated": done & (draw(1) < 0.5),
                "executed_steps": (draw(1) * 8).long() + 1,
            },
        },
        batch_size=[rows, steps],
    )


def naive(
    data: TensorDict, gamma: float, lmbda: float, end: str = "terminated"
) -> list[list[float]]:
    out = []
    for row in data:
        advantage, line = 0.0, []
        for step in reversed(list(row.unbind(0))):
            after = step["next"]
            discount = gamma ** after["executed_steps"].item()
            going_on = 0.0 if after[end] else 2 * after["state"].item()
            delta = after["reward"].item() + discount * going_on
            delta -= 2 * step["state"].item()
            carried = 0.0 if after["done"] else discount * lmbda * advantage
            advantage = delta + carried
            line.append(advantage)
        out.append(line[::-1])
    return out


@given(
    rows=st.integers(1, 4),
    steps=st.integers(1, 6),
    seed=st.integers(0, 1000),
    gamma=st.floats(0.5, 1.0),
    lmbda=st.floats(0.0, 1.0),
    strict=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_it_is_gae_with_a_discount_per_decision(
    rows, steps, seed, gamma, lmbda, strict
):
    data = decisions(rows, steps, seed)
    end = "done" if strict else "terminated"  # where nothing follows
    expected = torch.tensor(naive(data, gamma, lmbda, end)).unsqueeze(-1)
    DecisionGAE(CRITIC, gamma=gamma, lmbda=lmbda, truncated_is_failure=strict)(data)
    torch.testing.assert_close(data["advantage"], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        data["value_target"], expected + 2 * data["state"], atol=1e-5, rtol=1e-4
    )


def test_hesitating_at_the_time_limit_is_worth_nothing_where_that_is_a_failure():
    data = decisions(1, 1, 0)
    data["state"].zero_()
    data["next", "state"].fill_(1.0)  # the critic: worth 2
    data["next", "reward"].zero_()
    data["next", "done"].fill_(True)
    data["next", "terminated"].zero_()  # ran out of time
    data["next", "executed_steps"].fill_(1)
    for is_failure, expected in ((True, 0.0), (False, 1.0)):
        gae = DecisionGAE(CRITIC, gamma=0.5, truncated_is_failure=is_failure)
        assert gae(data.clone())["advantage"].item() == expected


def test_success_is_worth_more_the_fewer_steps_it_takes():
    data = decisions(1, 1, 0).expand(8, 1).clone()
    data["state"].zero_()
    data["next", "state"].fill_(1.0)  # worth 2, after k steps
    data["next", "reward"].zero_()
    data["next", "done"].zero_()
    data["next", "terminated"].zero_()
    data["next", "executed_steps"] = torch.arange(1, 9).view(8, 1, 1)
    DecisionGAE(CRITIC, gamma=0.5, lmbda=1.0)(data)
    torch.testing.assert_close(
        data["advantage"].flatten(), 2 * 0.5 ** torch.arange(1.0, 9.0)
    )


def test_the_critic_gets_no_gradient():
    weight = torch.ones((), requires_grad=True)
    critic = TensorDictModule(lambda s: weight * s, ["state"], ["state_value"])
    data = DecisionGAE(critic)(decisions(2, 3, 0))
    assert not data["advantage"].requires_grad
    assert not data["value_target"].requires_grad


def test_a_batch_without_time_is_refused():
    with pytest.raises(SchemaError, match=r"expected decisions \[\*B, T\], time last"):
        DecisionGAE(CRITIC)(decisions(2, 3, 0).reshape(-1))


def test_decisions_without_their_length_are_refused():
    data = decisions(2, 3, 0)
    del data["next", "executed_steps"]
    with pytest.raises(MissingKeyError, match=r"expected \('next', 'executed_steps'\)"):
        DecisionGAE(CRITIC)(data)


@pytest.mark.parametrize("name", ["gamma", "lmbda"])
def test_a_discount_above_one_is_refused(name):
    with pytest.raises(ValueError, match=rf"expected {name} in \[0, 1\], got 1\.5"):
        DecisionGAE(CRITIC, **{name: 1.5})
