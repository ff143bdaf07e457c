from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import InteractionType, set_interaction_type
from torch import nn
from torchrl.objectives import ClipPPOLoss

from torchrl_vla.objectives import BCLoss
from torchrl_vla.policies import GaussianVLAWrapper, OutputKeys
from torchrl_vla.schema import MissingKeyError, ObservationKeys, SchemaError

H, A = 2, 3


class LinearGaussian(GaussianVLAWrapper):
    """A mean that is linear in the state, and a learned spread."""

    def __init__(self, std=0.5, **options):
        super().__init__(
            action_dim=A, chunk_size=H, **options, keys=ObservationKeys(image=None)
        )
        torch.manual_seed(0)
        self.net = nn.Linear(5, H * A)
        self.log_std = nn.Parameter(torch.full((A,), math.log(std)))

    def predict_mean_and_log_std(self, tensordict):
        mean = self.net(tensordict["observation", "state"]).unflatten(-1, (H, A))
        return mean, self.log_std


def states(*batch: int) -> TensorDict:
    return TensorDict({"observation": {"state": torch.randn(*batch, 5)}}, batch)


def act(policy, td, kind=InteractionType.RANDOM):
    with torch.no_grad(), set_interaction_type(kind):
        return policy(td)


def test_it_writes_the_chunk_twice_and_how_likely_it_was():
    policy = LinearGaussian()
    td = act(policy, states(6))
    assert policy.out_keys == [
        "action_chunk",
        "chunk_sample",
        "log_probs",
        "element_log_probs",
    ]
    assert policy.sample_key == "chunk_sample"
    assert torch.equal(td["action_chunk"], td["chunk_sample"])
    mean = policy.predict_mean_and_log_std(td)[0]
    expected = torch.distributions.Normal(mean, 0.5).log_prob(td["chunk_sample"])
    torch.testing.assert_close(td["element_log_probs"], expected)
    torch.testing.assert_close(td["log_probs"], expected.sum((-2, -1)))
    assert torch.equal(policy.log_prob(td), td["log_probs"])


@pytest.mark.parametrize(
    "kind", [None, *(k for k in InteractionType if k != InteractionType.RANDOM)]
)
def test_without_sampling_the_chunk_is_the_mean(kind):
    policy, td = LinearGaussian(), states(4)
    mean = policy.predict_mean_and_log_std(td)[0]
    assert torch.equal(act(policy, td, kind)["action_chunk"], mean)


def test_denormalizing_the_chunk_does_not_touch_the_choice():
    policy = LinearGaussian()
    td = act(policy, states(4))
    td["action_chunk"] = td["action_chunk"].clamp(-0.1, 0.1) * 100
    assert torch.equal(policy.log_prob(td), td["log_probs"])


def test_cloning_trains_the_mean_and_leaves_the_choice_without_a_gradient():
    policy, td = LinearGaussian(), states(4)
    td["action_is_pad"] = torch.zeros(4, H, dtype=torch.bool)
    td["action_chunk"] = torch.randn(4, H, A)
    loss = BCLoss(policy)
    loss(td)["loss_bc"].backward()
    assert all(p.grad is None or p.grad.any() for p in loss.parameters())
    assert sum(p.grad is not None for p in loss.parameters()) == 2  # the linear layer
    assert not policy(states(4))["chunk_sample"].requires_grad


@pytest.mark.parametrize(("std", "bounded"), [(1e-6, 0.1), (0.5, 0.5), (50.0, 2.0)])
def test_the_spread_is_bounded(std, bounded):
    policy = LinearGaussian(std, min_std=0.1, max_std=2.0)
    got = policy.get_dist(states(2)).log_std.exp()
    torch.testing.assert_close(got, torch.full((A,), bounded))


def test_a_spread_out_of_its_bounds_still_learns_its_way_back():
    policy = LinearGaussian(50.0, max_std=1.0)
    td = act(policy, states(16))
    td["chunk_sample"] = policy.predict_mean_and_log_std(td)[0].detach()
    policy.log_prob(td).mean().neg().backward()  # at the mean: a smaller spread
    assert (policy.log_std.grad > 0).all()


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.5), (0.1, math.inf)]
)
def test_bounds_that_cannot_be_are_refused(low, high):
    with pytest.raises(
        ValueError,
        match=rf"^LinearGaussian: expected 0 < min_std <= max_std, got min_std={low} "
        rf"and max_std={high}\.$",
    ):
        LinearGaussian(min_std=low, max_std=high)


def test_a_mean_of_another_shape_is_refused():
    policy = LinearGaussian()
    policy.predict_mean_and_log_std = lambda td: (torch.zeros(4, A, H), policy.log_std)
    with pytest.raises(
        SchemaError,
        match=r"^LinearGaussian: expected \[\*B, H, A\] = \[4, 2, 3\] from "
        r"predict_mean_and_log_std, got \[4, 3, 2\]",
    ):
        policy(states(4))


def test_without_a_choice_it_says_what_there_is():
    with pytest.raises(
        MissingKeyError,
        match=r"^LinearGaussian: expected the policy's sample at 'chunk_sample', got "
        r"only \[.*'state'.*\]",
    ):
        LinearGaussian().log_prob(states(2))


def test_outputs_lie_where_the_keys_say():
    policy = LinearGaussian(
        output_keys=OutputKeys("c", ("m", "x"), "p", "e"),
    )
    td = act(policy, states(2))
    written = set(td.keys(True, True)) - {("observation", "state")}
    assert written == {"c", ("m", "x"), "p", "e"}


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)])
def test_any_leading_batch_dimensions_are_kept(batch):
    td = act(LinearGaussian(), states(*batch))
    assert td["chunk_sample"].shape == td["element_log_probs"].shape == (*batch, H, A)
    assert td["log_probs"].shape == batch


def test_torchrl_s_ppo_takes_it_as_it_is():
    policy = LinearGaussian()
    td = act(policy, states(32))
    td["advantage"] = torch.randn(32, 1)
    loss = ClipPPOLoss(policy, critic_network=None, entropy_bonus=True)
    loss.set_keys(action=policy.sample_key, sample_log_prob="log_probs")
    out = loss(td)
    assert out["clip_fraction"] == 0.0
    assert out["kl_approx"] == 0.0
    torch.testing.assert_close(out["entropy"], policy.get_dist(td).entropy().mean())
    weights = [p for p in loss.parameters() if p.requires_grad]
    got = torch.autograd.grad(out["loss_objective"], weights)
    surrogate = -(td["advantage"].squeeze(-1) * policy.log_prob(td)).mean()
    for one, other in zip(got, torch.autograd.grad(surrogate, policy.parameters())):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
