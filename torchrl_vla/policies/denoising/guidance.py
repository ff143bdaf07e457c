"""Guided inpainting: a flow that continues actions which are already decided."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchrl_vla.schema import SchemaError

#: Where the paper clips the guidance.
MAX_GUIDANCE = 5.0


def guided_velocity(
    velocity: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    t: Tensor,
    guide: Tensor,
    weight: Tensor,
    *,
    max_guidance: float = MAX_GUIDANCE,
    through_network: bool = True,
) -> Tensor:
    """Bend a velocity so that the flow ends near a guide, where the weight says so.

    Pseudo-inverse guidance: with ``x1 = x + (1 - t) v(x, t)``, the chunk that the flow
    is heading for, and ``g = min(max_guidance, (t^2 + (1 - t)^2) / (t (1 - t)))``,

    ``v + g * J^T (weight (guide - x1))``

    where ``J`` is ``dx1 / dx``, one backward pass through the network. Time runs as in
    the paper: ``t = 0`` is noise, ``t = 1`` data, and ``v = data - noise``. The
    surprise: LeRobot counts time the other way, from 1 to 0 with ``v = noise - data``,
    and takes ``J`` for the identity (its ``x`` requires a gradient only after the
    network has run); ``through_network=False`` does as it does and needs no backward
    pass. Where ``weight`` is 0 the guide is not read. Runs under ``torch.no_grad``; the
    result carries gradients to the weights of the network where the caller has them
    enabled.

    Args:
        velocity: ``(x [*B, H, A], t) -> v [*B, H, A]``.
        x: where the flow is, float ``[*B, H, A]``.
        t: when, in 0..1, float ``[*B]`` or one number ``[]``.
        guide: chunk to be continued, ``[*B, H, A]``.
        weight: how strictly, in 0..1, ``[*B, H]``.

    Keyword Args:
        max_guidance: the largest guidance; 5 in the paper. Above the number of
            denoising steps, one step may overshoot the guide.
        through_network: False = take ``J`` for the identity.

    Returns:
        The velocity ``[*B, H, A]``.

    Raises:
        SchemaError: guide or weight has another shape than ``x``; it is called in
            inference mode, in which nothing can be differentiated.

    Source: Black, Galliker and Levine, "Real-Time Execution of Action Chunking Flow
    Policies" (2025), equations 2 to 4; Song et al., "Pseudoinverse-Guided Diffusion
    Models for Inverse Problems" (2023).

    Examples:
        >>> import torch
        >>> with torch.no_grad():
        ...     guided_velocity(
        ...         lambda x, t: torch.zeros_like(x),
        ...         torch.zeros(1, 2, 1),
        ...         torch.tensor([0.5]),
        ...         guide=torch.ones(1, 2, 1),
        ...         weight=torch.tensor([[1.0, 0.0]]),
        ...     )
        tensor([[[2.],
                 [0.]]])
    """
    _check(x, guide, weight, through_network)
    differentiable = torch.is_grad_enabled()
    time = t.reshape(*t.shape, 1, 1)
    if not through_network:
        v = velocity(x, t)
        correction = _error(x + (1 - time) * v, guide, weight)
        return v + _strength(time, max_guidance) * correction
    with torch.enable_grad():
        if not x.requires_grad:
            x = x.detach().requires_grad_()
        v = velocity(x, t)
        x1 = x + (1 - time) * v
        error = _error(x1, guide, weight)
        (correction,) = torch.autograd.grad(
            x1,
            x,
            error if differentiable else error.detach(),
            create_graph=differentiable,
        )
    if not differentiable:
        v, correction = v.detach(), correction.detach()
    return v + _strength(time, max_guidance) * correction


def _error(x1: Tensor, guide: Tensor, weight: Tensor) -> Tensor:
    weight = weight.unsqueeze(-1).to(x1.dtype)
    # Not a product alone: a guide that is not finite where nothing is guided.
    return torch.where(weight > 0, weight * (guide.to(x1.dtype) - x1), 0.0)


def _strength(time: Tensor, max_guidance: float) -> Tensor:
    # At both ends it is 1 / 0, which the bound makes finite.
    remaining = 1 - time
    return ((time**2 + remaining**2) / (time * remaining)).clamp(max=max_guidance)


def _check(x: Tensor, guide: Tensor, weight: Tensor, through_network: bool) -> None:
    if guide.shape != x.shape or weight.shape != x.shape[:-1]:
        raise SchemaError(
            f"guided_velocity: expected a guide [*B, H, A] = {list(x.shape)} and a "
            f"weight [*B, H] = {list(x.shape[:-1])}, got {list(guide.shape)} and "
            f"{list(weight.shape)}. Pad the guide with zeros where the weight is 0."
        )
    if through_network and torch.is_inference_mode_enabled():
        raise SchemaError(
            "guided_velocity: expected a caller outside torch.inference_mode(), got "
            "one inside: the correction is a gradient. Use torch.no_grad(), or "
            "through_network=False."
        )
