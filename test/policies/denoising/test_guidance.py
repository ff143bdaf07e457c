from __future__ import annotations

import pytest
import torch
from torch import nn

from torchrl_vla.policies.denoising.guidance import guided_velocity
from torchrl_vla.schema import SchemaError

N, H, A = 3, 4, 2


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def make(seed=0):
    x, guide = draw(N, H, A, seed=seed), draw(N, H, A, seed=seed + 1)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    weight = torch.tensor([1.0, 1.0, 0.5, 0.0], dtype=torch.float64).expand(N, H)
    return x, t, guide, weight


def test_a_linear_field_is_corrected_by_its_transposed_matrix():
    """v = M x + b: dx1/dx = I + (1 - t) M, so the correction is known by hand."""
    x, t, guide, weight = make()
    matrix, bias = draw(H * A, H * A, seed=5) / 3, draw(H * A, seed=6)

    def velocity(x, t):
        return (x.flatten(1) @ matrix.T + bias).view_as(x)

    with torch.no_grad():
        got = guided_velocity(velocity, x, t, guide, weight, max_guidance=3.0)
    for row in range(N):
        time, flat = t[row].item(), x[row].flatten()
        v = matrix @ flat + bias
        error = guide[row].flatten() - (flat + (1 - time) * v)
        error = error * weight[row].repeat_interleave(A)
        jacobian = torch.eye(H * A).double() + (1 - time) * matrix
        strength = min(3.0, (time**2 + (1 - time) ** 2) / (time * (1 - time)))
        expected = v + strength * (jacobian.T @ error)
        torch.testing.assert_close(got[row].flatten(), expected)


def test_with_the_identity_for_the_jacobian_the_error_itself_is_the_correction():
    x, t, guide, weight = make()

    def velocity(x, t):
        return 2 * x

    options = {"max_guidance": 1.0, "through_network": False}
    got = guided_velocity(velocity, x, t, guide, weight, **options)
    x1 = x + (1 - t.view(N, 1, 1)) * 2 * x
    torch.testing.assert_close(got, 2 * x + weight[..., None] * (guide - x1))


@pytest.mark.parametrize(
    ("time", "strength"), [(0.5, 2.0), (0.0, 7.0), (1.0, 7.0), (0.05, 7.0)]
)
def test_the_strength_is_the_published_one_and_clipped_where_it_grows(time, strength):
    # At 0.5: (0.25 + 0.25) / 0.25 = 2; at 0.05: 0.905 / 0.0475 = 19, clipped to 7.
    with torch.no_grad():
        got = guided_velocity(
            lambda x, t: torch.zeros_like(x),
            torch.zeros(1, 1, 1),
            torch.tensor([time]),
            torch.ones(1, 1, 1),
            torch.ones(1, 1),
            max_guidance=7.0,
        )
    assert got.item() == pytest.approx(strength)


@pytest.mark.parametrize("through_network", [True, False])
def test_without_weight_the_velocity_is_untouched_whatever_the_guide(through_network):
    x, t, guide, weight = make()
    guide[0], weight = float("nan"), torch.zeros_like(weight)
    with torch.no_grad():
        got = guided_velocity(
            lambda x, t: torch.sin(x),
            x,
            t,
            guide,
            weight,
            through_network=through_network,
        )
    assert torch.equal(got, torch.sin(x))


def test_a_row_is_guided_by_its_own_guide_alone():
    x, t, guide, weight = make()
    net = nn.Linear(H * A, H * A).double()

    def velocity(x, t):
        return torch.tanh(net(x.flatten(1))).view_as(x)

    other = guide.clone()
    other[1] += 1.0
    with torch.no_grad():
        first = guided_velocity(velocity, x, t, guide, weight)
        second = guided_velocity(velocity, x, t, other, weight)
    assert torch.equal(first[[0, 2]], second[[0, 2]])
    assert not torch.equal(first[1], second[1])


def test_guided_denoising_ends_on_the_guide_where_it_is_frozen():
    """Data at 0 whatever the noise: v = -x / (1 - t), so that every x1 is 0."""
    steps, guide = 50, torch.tensor([[[3.0], [3.0]]])
    weight, x = torch.tensor([[1.0, 0.0]]), torch.tensor([[[1.0], [1.0]]])
    for k in range(steps):
        t = torch.tensor([k / steps])
        v = guided_velocity(
            lambda x, t: (0.0 * x - x.detach()) / (1 - t.view(-1, 1, 1)),
            x,
            t,
            guide,
            weight,
            max_guidance=float(steps),
        )
        x = (x + v / steps).detach()
    # The last step, t = 0.98, goes to 0 and (0.9604 + 0.0004) / 0.0196 / 50 of the
    # way from there to the guide.
    assert x[0, 0].item() == pytest.approx(3 * 0.980408, abs=1e-4)
    assert x[0, 1].item() == pytest.approx(0.0, abs=1e-6)


def test_any_leading_dimensions_and_a_single_time_are_allowed():
    x, _, guide, weight = make()
    t = torch.tensor(0.25, dtype=torch.float64)
    with torch.no_grad():
        flat = guided_velocity(lambda x, t: x**2, x, t, guide, weight)
        nested = guided_velocity(
            lambda x, t: x**2, x[None], t, guide[None], weight[None]
        )
    assert torch.equal(nested[0], flat)


def test_the_callers_tensors_and_grad_mode_are_left_alone():
    x, t, guide, weight = make()
    with torch.no_grad():
        got = guided_velocity(lambda x, t: x, x, t, guide, weight)
        assert not torch.is_grad_enabled()
    assert not x.requires_grad
    assert not got.requires_grad


def test_the_networks_weights_get_the_gradient_of_the_whole_correction():
    """v = m x with one number m: differentiated by hand and by finite differences."""
    x, t, guide, weight = make()
    m = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def total(m):
        return guided_velocity(lambda x, t: m * x, x, t, guide, weight).sum()

    (got,) = torch.autograd.grad(total(m), m)
    with torch.no_grad():
        step = 1e-6
        numeric = (total(m + step) - total(m - step)) / (2 * step)
    torch.testing.assert_close(got, numeric, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("guide", "weight"), [((N, H, 1), (N, H)), ((N, H, A), (N, H, A))]
)
def test_a_guide_of_another_shape_is_refused(guide, weight):
    x, t, *_ = make()
    match = (
        r"guided_velocity: expected a guide \[\*B, H, A\] = \[3, 4, 2\] and a weight"
    )
    with pytest.raises(SchemaError, match=match):
        guided_velocity(lambda x, t: x, x, t, torch.zeros(guide), torch.zeros(weight))


def test_inference_mode_is_refused_because_the_correction_is_a_gradient():
    x, t, guide, weight = make()
    match = r"outside torch.inference_mode\(\), got one inside"
    with torch.inference_mode(), pytest.raises(SchemaError, match=match):
        guided_velocity(lambda x, t: x, x, t, guide, weight)
