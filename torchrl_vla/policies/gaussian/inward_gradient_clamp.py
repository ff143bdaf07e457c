"""A clamp out of which gradient descent finds back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def inward_clamp(value: Tensor, low: float, high: float) -> Tensor:
    """Clamp to ``[low, high]``, with a gradient that can lead back inside.

    ``torch.clamp`` has no gradient outside of its bounds: a learned scale that one
    step takes past them stays there forever, and so does the exploration. Here the
    gradient passes outside too wherever descent along it moves the value inward.

    Args:
        value: any float tensor.
        low: the lower bound.
        high: the upper bound.

    Examples:
        >>> x = torch.tensor([-2.0, 0.5, 3.0], requires_grad=True)
        >>> inward_clamp(x, 0.0, 1.0).sum().backward()  # descent makes x smaller
        >>> x.grad
        tensor([0., 1., 1.])
    """
    return _InwardClamp.apply(value, low, high)


class _InwardClamp(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, low: float, high: float) -> Tensor:
        return value.clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        value, ctx.low, ctx.high = inputs
        ctx.save_for_backward(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (value,) = ctx.saved_tensors
        outward = (value > ctx.high) & (gradient < 0)
        outward |= (value < ctx.low) & (gradient > 0)
        return gradient.masked_fill(outward, 0.0), None, None
