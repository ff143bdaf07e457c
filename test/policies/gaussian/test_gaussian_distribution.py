from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrl_vla.policies import GaussianDistribution
from torchrl_vla.schema import SchemaError


@given(
    n=st.integers(1, 3),
    h=st.integers(1, 3),
    a=st.integers(1, 3),
    dims=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_the_density_is_the_naive_one(n, h, a, dims, seed):
    generator = torch.Generator().manual_seed(seed)
    mean, choice = torch.randn(2, n, h, a, generator=generator, dtype=torch.float64)
    shape = (n, h, a)[3 - dims :]
    log_std = torch.randn(shape, generator=generator, dtype=torch.float64)
    got = GaussianDistribution(mean, log_std).element_log_probs(choice)
    std = log_std.exp().expand(n, h, a)
    for i in range(n):
        for j in range(h):
            for k in range(a):
                s, d = std[i, j, k].item(), (choice - mean)[i, j, k].item()
                expected = -0.5 * (d / s) ** 2 - math.log(s * math.sqrt(2 * math.pi))
                assert got[i, j, k].item() == pytest.approx(expected, abs=1e-9)


def test_the_entropy_is_that_of_normals():
    dist = GaussianDistribution(torch.zeros(5, 2, 3), torch.tensor([0.1, 1.0, 2.0]))
    expected = torch.tensor([0.1, 1.0, 2.0]) + 0.5 * math.log(2 * math.pi * math.e)
    torch.testing.assert_close(dist.element_entropy()[3, 1], expected)
    torch.testing.assert_close(dist.entropy(), (2 * expected.sum()).expand(5))


def test_samples_have_the_mean_and_the_spread():
    torch.manual_seed(0)
    mean, std = torch.tensor([[1.0, -2.0]]), torch.tensor([0.1, 3.0])
    drawn = GaussianDistribution(mean, std.log()).sample((20000,))
    assert drawn.shape == (20000, 1, 2)
    # Deviations of the estimates: 0.0071 and 0.005 of a std; these are 5 of them.
    assert ((drawn.mean(0) - mean).abs() < 0.035 * std).all()
    assert ((drawn.std(0) / std - 1).abs() < 0.025).all()


def test_a_sample_has_no_gradient_and_the_mode_is_the_mean_with_its_own():
    mean = torch.zeros(2, 1, 1, requires_grad=True)
    dist = GaussianDistribution(mean, torch.zeros(1, requires_grad=True))
    assert not dist.sample().requires_grad
    assert dist.mode is dist.mean
    assert dist.mode.requires_grad


def test_the_gradient_is_that_of_the_formula():
    mean, log_std = torch.zeros(1, 1, 2), torch.tensor([0.0, math.log(2.0)])
    mean.requires_grad_()
    log_std.requires_grad_()
    choice = torch.tensor([[[1.0, 4.0]]])
    GaussianDistribution(mean, log_std).log_prob(choice).sum().backward()
    # (x - mean) / std^2 and ((x - mean) / std)^2 - 1.
    torch.testing.assert_close(mean.grad.flatten(), torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(log_std.grad, torch.tensor([0.0, 3.0]))


def test_half_precision_is_judged_in_single_precision():
    mean = torch.randn(4, 2, 3).bfloat16()
    dist = GaussianDistribution(mean, torch.zeros(3).bfloat16())
    choice = dist.sample()
    assert choice.dtype == dist.log_prob(choice).dtype == torch.float32
    same = GaussianDistribution(mean.float(), torch.zeros(3))
    assert torch.equal(dist.log_prob(choice), same.log_prob(choice))


@pytest.mark.parametrize("shape", [(5,), (2, 1), (1, 2, 3), (5, 1, 3), ()])
def test_a_spread_is_never_broadcast_by_chance(shape):
    with pytest.raises(
        SchemaError,
        match=r"^GaussianDistribution: expected log_std \[A\], \[H, A\] or \[\*B, H, "
        r"A\] for a mean \[\*B, H, A\], got \[.*\] for \[5, 2, 3\]\.$",
    ):
        GaussianDistribution(torch.zeros(5, 2, 3), torch.zeros(shape))


@pytest.mark.parametrize(
    "choice",
    [torch.zeros(2, 3), torch.zeros(5, 2, 1), torch.zeros(5, 2, 3).double()],
)
def test_a_choice_of_another_shape_or_precision_is_refused(choice):
    dist = GaussianDistribution(torch.zeros(5, 2, 3), torch.zeros(3))
    with pytest.raises(
        SchemaError,
        match=r"^GaussianDistribution: expected a choice float32 \[5, 2, 3\], got "
        r"float\d\d \[.*\]\. It is what this policy wrote at its sample_key",
    ):
        dist.element_log_probs(choice)
