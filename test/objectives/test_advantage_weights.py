from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn

from torchrl_vla.objectives import AdvantageWeights, BCLoss
from torchrl_vla.schema import MissingKeyError, SchemaError


def frames(*advantages):
    return TensorDict(advantage=torch.tensor(advantages).unsqueeze(-1))


def test_the_weight_is_the_clipped_exponential_of_the_advantage():
    weights = AdvantageWeights(temperature=0.5, max_weight=20.0)
    found = weights(frames(-1.0, 0.0, 1.0, 1.5))["sample_weight"]
    expected = [math.exp(-2), 1.0, math.exp(2), 20.0]  # exp(3) is 20.09
    torch.testing.assert_close(found, torch.tensor(expected))


def test_an_advantage_that_the_exponential_has_no_number_for_is_clipped():
    found = AdvantageWeights(temperature=1e-3)(frames(1e4, -1e4))["sample_weight"]
    assert found.tolist() == [20.0, 0.0]


def test_standardized_advantages_have_no_unit():
    # mean 4, deviations -3, 1, 2: the population's std is sqrt(14 / 3)
    std = math.sqrt(14 / 3)
    expected = torch.tensor([math.exp(d / std / 2) for d in (-3, 1, 2)])
    weights = AdvantageWeights(temperature=2.0, standardize=True)
    for unit in (1.0, 1000.0):
        found = weights(frames(unit, 5 * unit, 6 * unit))["sample_weight"]
        torch.testing.assert_close(found, expected)


def test_equal_advantages_give_equal_weights_when_standardized():
    found = AdvantageWeights(standardize=True)(frames(3.0, 3.0))["sample_weight"]
    assert found.tolist() == [1.0, 1.0]


def test_other_keys_and_batches_of_any_shape_are_taken():
    td = TensorDict(gain=torch.zeros(2, 3, 1), batch_size=[2, 3])
    out = AdvantageWeights(advantage_key="gain", weight_key="w")(td)
    assert torch.equal(out["w"], torch.ones(2, 3))
    assert out is td


def test_no_gradient_flows_into_the_advantage():
    td = TensorDict(advantage=torch.zeros(2, 1, requires_grad=True))
    assert not AdvantageWeights()(td)["sample_weight"].requires_grad


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=6),
    st.floats(0.5, 4),
    st.floats(0.5, 30),
)
def test_weights_are_positive_bounded_and_in_the_order_of_the_advantages(
    advantages, temperature, max_weight
):
    weights = AdvantageWeights(temperature=temperature, max_weight=max_weight)
    found = weights(frames(*sorted(advantages)))["sample_weight"]
    assert (found > 0).all()
    assert (found <= max_weight).all()
    assert (found.diff() >= 0).all()


def test_cloning_with_them_prefers_the_better_of_two_actions():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.action = nn.Parameter(torch.zeros(()))

        def forward(self, state):
            return self.action.expand(len(state), 1, 1)

    policy = TensorDictModule(Constant(), ["state"], ["action_chunk"])
    loss = BCLoss(policy, loss_function="l2")
    loss.set_keys(pad_mask=None, weight="sample_weight")
    td = frames(0.0, math.log(3.0)).auto_batch_size_(1)
    td["state"] = torch.zeros(2, 1)
    td["action_chunk"] = torch.tensor([-1.0, 1.0])[:, None, None]
    AdvantageWeights()(td)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.25)
    for _ in range(40):
        optimizer.zero_grad()
        loss(td)["loss_bc"].backward()
        optimizer.step()
    # The minimum of the weighted squares is the weighted mean, (-1 + 3) / 4.
    torch.testing.assert_close(policy(td)["action_chunk"].unique(), torch.tensor([0.5]))


def test_missing_advantages_raise():
    with pytest.raises(MissingKeyError, match=r"at 'advantage', got only \['reward'\]"):
        AdvantageWeights()(TensorDict(reward=torch.zeros(2, 1)))


@pytest.mark.parametrize(
    ("advantage", "message"),
    [
        (torch.zeros(3), r"float \[\*B, 1\] at 'advantage', got torch.float32 \[3\]"),
        (torch.zeros(3, 1).long(), r"got torch.int64 \[3, 1\]"),
        (torch.tensor([[0.0], [math.nan]]), r"finite .* got others in 1 of 2 samples"),
        (torch.tensor([[-200.0]]), r"at most -200 at temperature 1, which all give 0"),
    ],
)
def test_advantages_that_give_no_weights_raise(advantage, message):
    with pytest.raises(SchemaError, match=message):
        AdvantageWeights()(TensorDict(advantage=advantage))


@pytest.mark.parametrize("name", ["temperature", "max_weight"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_settings_that_are_not_positive_raise(name, value):
    with pytest.raises(ValueError, match=rf"positive finite {name}, got {value}"):
        AdvantageWeights(**{name: value})
