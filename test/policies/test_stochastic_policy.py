from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import InteractionType, set_interaction_type
from torch import nn

from torchrl_vla.policies import ChunkDistribution, OutputKeys, StochasticVLAWrapper
from torchrl_vla.rollout import uniforms
from torchrl_vla.schema import ObservationKeys

H, A = 2, 3


class Signs(ChunkDistribution):
    """Each number is 1 with probability ``p``, otherwise -1."""

    def __init__(self, p):
        super().__init__(p.shape[:-2], p.shape[-2:])
        self.p = p

    def sample(self, sample_shape=()):
        drawn = torch.rand(self._extended_shape(torch.Size(sample_shape)))
        return torch.where(drawn < self.p, 1.0, -1.0)

    def sample_with_seeds(self, noise_seeds):
        drawn = uniforms(noise_seeds, self.event_shape.numel()).view(self.p.shape)
        return torch.where(drawn < self.p, 1.0, -1.0)

    @property
    def mode(self):
        return 2 * self.p - 1  # soft, to have a gradient

    def element_log_probs(self, choice):
        return torch.where(choice > 0, self.p, 1 - self.p).log()


class Coins(StochasticVLAWrapper):
    """The chunk is twice the choice."""

    calls = 0

    default_sample_key = "coins"

    def __init__(self, **keys):
        super().__init__(
            action_dim=A,
            chunk_size=H,
            keys=ObservationKeys(image=None),
            output_keys=OutputKeys(**keys),
        )
        self.bias = nn.Parameter(torch.zeros(H, A))

    def get_dist(self, td):
        self.calls += 1
        return Signs((td["observation", "state"].unsqueeze(-1) + self.bias).sigmoid())

    def decode(self, choice):
        return 2 * choice


def states(*batch):
    return TensorDict({"observation": {"state": torch.randn(*batch, 1)}}, batch)


def test_it_writes_choice_chunk_log_probability_and_its_terms_of_one_pass():
    policy, td = Coins(), states(5)
    with set_interaction_type(InteractionType.RANDOM):
        td = policy(td)
    assert policy.calls == 1
    assert set(policy.out_keys) == set(td.keys()) - {"observation"}
    assert (td["coins"].abs() == 1).all()
    assert torch.equal(td["action_chunk"], 2 * td["coins"])
    p = td["observation", "state"].sigmoid().unsqueeze(-1)
    expected = torch.where(td["coins"] > 0, p, 1 - p).log()
    torch.testing.assert_close(td["element_log_probs"], expected)
    torch.testing.assert_close(td["log_probs"], expected.sum((1, 2)))


@pytest.mark.parametrize(
    "kind", [None, *(k for k in InteractionType if k != InteractionType.RANDOM)]
)
def test_without_sampling_the_choice_is_the_mode(kind):
    policy, td = Coins(), states(4)
    with set_interaction_type(kind):
        choice = policy(td)["coins"]
    assert torch.equal(choice, policy.get_dist(td).mode)


def test_the_choice_is_detached_and_the_chunk_of_the_mode_is_not():
    policy = Coins()
    td = policy(states(4))
    assert not td["coins"].requires_grad
    (gradient,) = torch.autograd.grad(td["action_chunk"].sum(), policy.bias)
    assert gradient.all()


def test_every_row_s_log_probability_is_of_the_choice_that_lies_there():
    policy, td = Coins(), states(3, 2)
    td["coins"] = torch.ones(3, 2, H, A)
    p = td["observation", "state"].sigmoid().unsqueeze(-1).expand(3, 2, H, A)
    torch.testing.assert_close(policy.element_log_probs(td), p.log())
    torch.testing.assert_close(policy.log_prob(td), p.log().sum((-2, -1)))
    assert set(td.keys()) == {"observation", "coins"}  # nothing is written


def test_the_keys_are_in_one_spelling():
    policy = Coins(sample=("a", ("b",)), log_probs=("p",))
    assert policy.sample_key == ("a", "b")
    assert policy.out_keys[1:3] == [("a", "b"), "p"]
    assert policy.optional_in_keys == ["noise_seed"]
