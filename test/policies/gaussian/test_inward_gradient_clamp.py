from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrl_vla.policies.gaussian.inward_gradient_clamp import inward_clamp


@given(st.lists(st.floats(-5, 5, width=32), min_size=1))
def test_values_are_clamped(values):
    x = torch.tensor(values)
    assert inward_clamp(x, -1.0, 2.0).tolist() == [min(max(v, -1), 2) for v in values]


def test_the_gradient_passes_inside_and_wherever_descent_leads_back_in():
    x = torch.tensor([-3.0, -3.0, 0.0, 0.0, 5.0, 5.0], requires_grad=True)
    downhill = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    (inward_clamp(x, -1.0, 2.0) * downhill).sum().backward()
    # Descent moves against the gradient.
    assert x.grad.tolist() == [0.0, -1.0, 1.0, -1.0, 1.0, 0.0]


def test_what_left_the_bounds_comes_back():
    x = torch.nn.Parameter(torch.tensor(3.0))
    optimizer = torch.optim.SGD([x], lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        (inward_clamp(x, 0.0, 1.0) - 0.5).square().backward()
        optimizer.step()
    assert abs(x.item() - 0.5) < 0.01


def test_it_compiles_and_maps_over_a_batch():
    def f(x):
        return inward_clamp(x, 0.0, 1.0).sum()

    x = torch.tensor([[2.0, 0.5], [-1.0, 0.1]])
    expected = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    assert torch.equal(torch.func.vmap(torch.func.grad(f))(x), expected)
    y = x.clone().requires_grad_()
    torch.compile(f, fullgraph=True, backend="aot_eager")(y).backward()
    assert torch.equal(y.grad, expected)
