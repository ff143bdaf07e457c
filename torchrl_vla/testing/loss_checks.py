"""Contract check of a loss over padded chunks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor, nn

from torchrl_vla.schema import ACTION_IS_PAD_KEY


def check_loss(
    loss: nn.Module,
    tensordict: TensorDictBase,
    *,
    out_key: NestedKey = "loss_bc",
    pad_key: NestedKey = ACTION_IS_PAD_KEY,
) -> None:
    """Check that a loss ignores padding, exactly, and refuses what it cannot know.

    The contract: the loss is a finite scalar with a gradient; it leaves the batch as
    it was; under padded positions the gradient with respect to every target is exactly
    zero and the target's value has no influence, even NaN; a batch without its mask, a
    mask that is not bool, and a batch that is all padding raise.

    Args:
        loss: takes a tensordict, returns one with ``out_key``; its ``tensor_keys`` name
            the target (``action``) and the mask (``pad_mask``).
        tensordict: a batch with padded and valid positions.

    Keyword Args:
        out_key: where the loss is written.
        pad_key: where the batch holds the mask, bool ``[*B, H]``, True = padded.

    Raises:
        AssertionError: the contract is broken; the message says how.
        ValueError: the batch has no padded or no valid position, and shows nothing.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torch import nn
        >>> class Forgetful(nn.Module):
        ...     def forward(self, td):
        ...         error = (td["action_chunk"] - nn.Parameter(torch.ones(1))) ** 2
        ...         return TensorDict(loss_bc=error.mean())
        >>> batch = TensorDict(
        ...     action_chunk=torch.zeros(1, 2, 1),
        ...     action_is_pad=torch.tensor([[False, True]]),
        ... )
        >>> check_loss(Forgetful(), batch)
        Traceback (most recent call last):
        ...
        AssertionError: Forgetful: expected no influence of what lies under the \
padding on 'loss_bc', got nan for 1.0 when it is NaN.
    """
    name = type(loss).__name__
    pad = tensordict.get(pad_key)
    if pad.all() or not pad.any():
        raise ValueError(
            f"check_loss: expected padded and valid positions at {pad_key!r}, got "
            f"{'only' if pad.all() else 'no'} padded ones. Pass a batch with both."
        )
    before = tensordict.clone()
    value = loss(tensordict).get(out_key)
    if value.shape != () or not value.isfinite() or not value.requires_grad:
        raise AssertionError(
            f"{name}: expected a finite scalar with a gradient at {out_key!r}, got "
            f"{value}."
        )
    _check_unchanged(name, before, tensordict)
    padded = pad.unsqueeze(-1)
    for key in _padded_targets(tensordict, pad):
        _check_no_influence(loss, tensordict, key, padded, value, out_key)
        _check_no_gradient(loss, tensordict, key, padded, out_key)
    is_partial = (pad.any(-1) & ~pad.all(-1)).unsqueeze(-1)
    for what, broken in (
        ("without its mask", before.exclude(pad_key)),
        ("whose mask is float", before.clone().set(pad_key, pad.float())),
        ("that is all padding", before.clone().set(pad_key, torch.ones_like(pad))),
        ("whose mask is inverted", before.clone().set(pad_key, pad ^ is_partial)),
    ):
        if what.endswith("inverted") and not is_partial.any():
            continue  # nothing shows it
        try:
            value = loss(broken).get(out_key)
        except (KeyError, ValueError):
            continue
        raise AssertionError(
            f"{name}: expected a KeyError or ValueError for a batch {what}, got the "
            f"loss {value}."
        )


def _padded_targets(tensordict: TensorDictBase, pad: Tensor) -> Iterable[NestedKey]:
    """The float entries [*B, H, A] that the mask covers."""
    return [
        key
        for key, value in tensordict.items(True, True)
        if isinstance(value, Tensor)
        and value.is_floating_point()
        and value.shape[:-1] == pad.shape
    ]


def _check_unchanged(name: str, before: TensorDictBase, after: TensorDictBase) -> None:
    if set(before.keys(True, True)) != set(after.keys(True, True)):
        raise AssertionError(
            f"{name}: expected the batch to keep its keys, got "
            f"{sorted(map(str, after.keys(True, True)))}."
        )
    for key, value in before.items(True, True):
        if isinstance(value, Tensor) and not torch.equal(value, after.get(key)):
            raise AssertionError(f"{name}: expected {key!r} unchanged in the batch.")


def _check_no_influence(
    loss: nn.Module,
    tensordict: TensorDictBase,
    key: NestedKey,
    padded: Tensor,
    value: Tensor,
    out_key: NestedKey,
) -> None:
    garbage = tensordict.clone()
    garbage.set(key, garbage.get(key).masked_fill(padded, torch.nan))
    other = loss(garbage).get(out_key)
    if not torch.equal(other, value):
        raise AssertionError(
            f"{type(loss).__name__}: expected no influence of what lies under the "
            f"padding on {out_key!r}, got {other.item()} for {value.item()} when it is "
            "NaN."
        )
    gradients = torch.autograd.grad(
        other, [p for p in loss.parameters() if p.requires_grad], allow_unused=True
    )
    if not all(g.isfinite().all() for g in gradients if g is not None):
        raise AssertionError(
            f"{type(loss).__name__}: expected finite gradients when what lies under "
            f"the padding at {key!r} is NaN, got NaN in the parameters."
        )


def _check_no_gradient(
    loss: nn.Module,
    tensordict: TensorDictBase,
    key: NestedKey,
    padded: Tensor,
    out_key: NestedKey,
) -> None:
    target = tensordict.get(key).detach().clone().requires_grad_()
    value = loss(tensordict.copy().set(key, target)).get(out_key)
    (gradient,) = torch.autograd.grad(value, target, allow_unused=True)
    if gradient is not None and gradient.masked_select(padded).any():
        largest = gradient.masked_select(padded).abs().max().item()
        raise AssertionError(
            f"{type(loss).__name__}: expected a gradient of exactly 0 under the "
            f"padding at {key!r}, got up to {largest:g}."
        )
