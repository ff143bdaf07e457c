from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.objectives import ClipPPOLoss

from torchrl_vla.policies import (
    ChunkDistribution,
    GaussianDistribution,
    TokenDistribution,
)
from torchrl_vla.policies.chunk_distribution import sum_elements

H, A = 2, 3


class Coin(ChunkDistribution):
    """Heads for every number, half the time; it does not know its entropy."""

    def sample(self, sample_shape=()):
        return torch.randint(2, self._extended_shape(torch.Size(sample_shape)))

    def sample_with_seeds(self, noise_seeds):
        return self.sample()

    @property
    def mode(self):
        return torch.ones(self._extended_shape(), dtype=torch.int64)

    def element_log_probs(self, choice):
        self._check_sample(choice, torch.int64)
        return torch.full(choice.shape, 0.5).log()


def coin(*batch):
    return Coin(torch.Size(batch), torch.Size([H, A]))


def test_log_prob_is_the_sum_of_the_elements():
    dist = coin(4)
    expected = torch.full((4,), 0.5**6)
    torch.testing.assert_close(dist.log_prob(dist.sample()).exp(), expected)


def test_it_says_that_its_entropy_has_no_closed_form():
    with pytest.raises(
        NotImplementedError,
        match=r"^Coin: expected a distribution whose entropy has a closed form, got "
        r"one without\. Set the loss's entropy coefficient to 0",
    ):
        coin(2).element_entropy()


@given(n=st.integers(1, 40), h=st.integers(1, 12), a=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_a_row_s_sum_has_the_same_bits_in_any_batch_and_memory_layout(n, h, a):
    elements = torch.randn(n, h, a, generator=torch.Generator().manual_seed(n))
    rows = torch.arange(n - 1, -1, -2)
    total = sum_elements(elements)
    assert torch.equal(sum_elements(elements[rows]), total[rows])
    assert torch.equal(sum_elements(elements[-1]), total[-1])
    other_layout = elements.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert torch.equal(sum_elements(other_layout), total)


class Actor(TensorDictModuleBase):
    in_keys, out_keys = ["state"], ["action"]

    def __init__(self, make):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))
        self.make = make

    def get_dist(self, td):
        return self.make(td["state"] + self.shift)


MAKERS = {
    "tokens": lambda s: TokenDistribution(s.expand(H, A, 4, -1).permute(3, 0, 1, 2)),
    "gaussian": lambda s: GaussianDistribution(
        s.expand(H, A, -1).permute(2, 0, 1), torch.zeros(A)
    ),
}


@pytest.mark.parametrize("name", MAKERS)
def test_torchrl_takes_the_entropy_in_closed_form(name):
    actor = Actor(MAKERS[name])
    dist = MAKERS[name](torch.zeros(5))
    td = TensorDict(state=torch.zeros(5), batch_size=[5])
    td["action"] = dist.sample()
    td["log"] = dist.log_prob(td["action"])
    td["advantage"] = torch.ones(5, 1)
    loss = ClipPPOLoss(actor, critic_network=None, entropy_bonus=True)
    loss.set_keys(sample_log_prob="log", advantage="advantage")
    out = loss(td)  # a warning that it estimates would be an error
    torch.testing.assert_close(out["entropy"], dist.entropy().mean())
    expected = dist.element_entropy().sum((-2, -1))
    torch.testing.assert_close(dist.entropy(), expected)


@pytest.mark.parametrize("name", MAKERS)
def test_many_samples_are_drawn_and_judged_at_once(name):
    torch.manual_seed(0)
    dist = MAKERS[name](torch.linspace(-1.0, 1.0, 5))
    many = dist.sample((7,))
    assert many.shape == (7, 5, H, A)
    each = torch.stack([dist.log_prob(one) for one in many])
    torch.testing.assert_close(dist.log_prob(many), each)
    # -log_prob estimates the entropy: 20000 draws of 6 terms of deviation below 1.5.
    estimate = -dist.log_prob(dist.sample((4000,))).mean(0)
    torch.testing.assert_close(estimate, dist.entropy(), rtol=0, atol=0.25)
