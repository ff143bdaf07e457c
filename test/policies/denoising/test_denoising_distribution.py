from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tiny_options import make_tiny
from torch.distributions import Normal
from torchrl.objectives import ClipPPOLoss

from torchrl_vla.policies import (
    FlowSDENoise,
    LearnedNoise,
    TinyDiffusionVLA,
    TinyFlowVLA,
)
from torchrl_vla.schema import SchemaError

H, A, S, K = 3, 2, 4, 4
SIZES = {"action_dim": A, "chunk_size": H, "state_dim": S, "num_steps": K}
SMALL = {"cameras": (), "hidden": 16, "depth": 1, "denoiser_depth": 1, "text_dim": 8}


def sde() -> TinyFlowVLA:
    torch.manual_seed(0)
    return make_tiny(TinyFlowVLA, noise=FlowSDENoise(0.5), **SIZES, **SMALL)


def learned() -> TinyFlowVLA:
    torch.manual_seed(0)
    policy = make_tiny(TinyFlowVLA, **SIZES, **SMALL)
    policy.noise = LearnedNoise(policy.condition_dim, H, A, hidden=8)
    torch.nn.init.normal_(policy.noise.out.weight)
    return policy


def diffusion() -> TinyDiffusionVLA:
    torch.manual_seed(0)
    return make_tiny(TinyDiffusionVLA, **SIZES, **SMALL)


every_head = pytest.mark.parametrize("make", [sde, learned, diffusion])


def batch(*shape: int) -> TensorDict:
    n = math.prod(shape)
    state = torch.randn(n, S, generator=torch.Generator().manual_seed(n))
    observation = TensorDict(state=state.reshape(*shape, S), batch_size=shape)
    td = TensorDict({"observation": observation}, batch_size=shape)
    td["language_instruction"] = "push the block"
    return td


def naive_steps(policy, td: TensorDict, path: torch.Tensor):
    """The normal distribution of each step of each row, asked one at a time."""
    condition = policy.encode(td)
    for i in range(len(path)):
        for k in range(K):
            row, step = condition[i : i + 1], torch.tensor([k])
            mean = policy.mean(row, path[i : i + 1, k], step)
            std = policy.std(row, step).expand_as(mean)
            yield i, k, Normal(mean[0], std[0])


@every_head
def test_a_paths_log_probability_is_the_sum_over_its_steps(make):
    policy, td = make(), batch(5)
    with torch.no_grad():
        dist = policy.get_dist(td)
        path = dist.sample()
        expected = torch.zeros(5, H, A)
        for i, k, normal in naive_steps(policy, td, path):
            expected[i] += normal.log_prob(path[i, k + 1])
        torch.testing.assert_close(dist.element_log_probs(path), expected)
        torch.testing.assert_close(dist.log_prob(path), expected.sum((1, 2)))


@every_head
def test_the_entropy_is_the_sum_over_the_steps(make):
    policy, td = make(), batch(3)
    with torch.no_grad():
        dist = policy.get_dist(td)
        expected = torch.zeros(3, H, A)
        for i, _, normal in naive_steps(policy, td, dist.sample()):
            expected[i] += normal.entropy()
        torch.testing.assert_close(dist.element_entropy(), expected)
        torch.testing.assert_close(dist.entropy(), expected.sum((1, 2)))


@every_head
def test_the_entropy_is_minus_the_mean_log_probability(make):
    policy = make()
    torch.manual_seed(1)
    with torch.no_grad():
        dist = policy.get_dist(batch(2))
        log_probs = dist.element_log_probs(dist.sample(torch.Size([4000])))
        assert log_probs.shape == (4000, 2, H, A)
        # A normal log-density has standard deviation sqrt(1/2); K add up.
        tolerance = 4 * (K / 2 / 4000) ** 0.5
        difference = (-log_probs.mean(0) - dist.element_entropy()).abs()
    assert difference.max() < tolerance


@every_head
def test_drawn_steps_have_the_announced_mean_and_deviation(make):
    policy, td = make(), batch(1)
    torch.manual_seed(1)
    with torch.no_grad():
        path = policy.get_dist(td).sample(torch.Size([4000]))[:, 0]
        condition = policy.encode(td).expand(4000, -1)
        for k in range(K):
            step = torch.full((4000,), k)
            mean = policy.mean(condition, path[:, k], step)
            z = (path[:, k + 1] - mean) / policy.std(condition, step)
            assert z.mean(0).abs().max() < 4.5 / 4000**0.5
            assert (z.std(0) - 1).abs().max() < 4.5 / 8000**0.5


@every_head
@given(
    shape=st.sampled_from([(), (1,), (6,), (2, 3), (1, 6, 1)]), draws=st.integers(0, 3)
)
@settings(max_examples=10, deadline=None)
def test_any_batch_and_sample_shape(make, shape, draws):
    policy, td = make(), batch(*shape)
    with torch.no_grad():
        dist = policy.get_dist(td)
        sample_shape = torch.Size([draws] if draws else [])
        paths = dist.sample(sample_shape)
        assert paths.shape == (*sample_shape, *shape, K + 1, H, A)
        log_probs = dist.element_log_probs(paths)
        assert log_probs.shape == (*sample_shape, *shape, H, A)
        for i in range(draws):  # rows are those of the condition, not of the draws
            assert torch.equal(dist.element_log_probs(paths[i]), log_probs[i])


def test_the_mode_begins_at_zero_and_no_two_samples_do():
    dist = sde().get_dist(batch(2))
    assert not dist.mode[:, 0].any()
    start = dist.sample()[:, 0]
    assert start.any()
    assert not torch.equal(*start)


@every_head
def test_the_log_probability_that_a_draw_comes_with_is_that_of_its_path(make):
    with torch.no_grad():
        dist = make().get_dist(batch(2, 3))
        path, elements = dist.sample_with_log_probs()
    assert torch.equal(elements, dist.element_log_probs(path))
    torch.manual_seed(5)
    path, elements = dist.sample_with_log_probs()
    torch.manual_seed(5)
    assert torch.equal(dist.sample(), path)
    assert not elements.requires_grad


@every_head
def test_a_path_of_another_shape_is_refused(make):
    policy, td = make(), batch(5)
    for wrong in (torch.zeros(5, K, H, A), torch.zeros(4, K + 1, H, A)):
        with pytest.raises(
            SchemaError, match=r"expected a choice float32 \[5, 5, 3, 2\]"
        ):
            policy.get_dist(td).element_log_probs(wrong)


@every_head
def test_torchrls_own_loss_sees_a_ratio_of_one_and_a_gradient(make):
    policy, td = make(), batch(6)
    with torch.no_grad():
        path = policy.get_dist(td).sample()
    td["denoising_path"] = path
    td["log_probs"] = policy.log_prob(td).detach()
    td["advantage"] = torch.linspace(-1, 1, 6)[:, None]
    loss = ClipPPOLoss(policy, critic_network=None, entropy_coeff=0.1)
    loss.set_keys(action="denoising_path", sample_log_prob="log_probs")
    out = loss(td)
    assert out["kl_approx"].abs() == 0
    assert out["clip_fraction"] == 0
    out["loss_objective"].backward()
    gradients = {n: p.grad for n, p in loss.named_parameters()}
    assert any(
        "denoiser" in n and g is not None and g.any() for n, g in gradients.items()
    )
    if make is learned:  # its entropy is a part that one can raise
        loss(td)["loss_entropy"].backward()
        assert any(
            "noise" in n and g is not None and g.any() for n, g in gradients.items()
        )


def test_a_distribution_keeps_the_weights_that_it_was_asked_of():
    policy, td = sde(), batch(2)
    with torch.no_grad():
        dist = policy.get_dist(td)
        path = dist.sample()
        before = dist.element_log_probs(path)
        other = TensorDict.from_module(policy).apply(lambda p: p + 1.0)
        with other.to_module(policy):
            assert torch.equal(dist.element_log_probs(path), before)
            assert torch.equal(dist.mode, policy.get_dist(td).mode) is False
