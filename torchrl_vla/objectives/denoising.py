"""What the losses of policies that denoise have in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictParams, dispatch
from torch import Tensor
from torchrl.objectives import LossModule

from torchrl_vla.objectives.padding import (
    OptionalPadMask,
    read_dim_pad_mask,
    read_pad_mask,
    read_target,
)
from torchrl_vla.objectives.row_weight import (
    read_row_weight,
    rows_that_count,
    weighted_mean,
)
from torchrl_vla.schema import ACTION_CHUNK_KEY, ACTION_IS_PAD_KEY, SchemaError


class DenoisingLoss(OptionalPadMask, LossModule):
    """Take the mean of a policy's denoising errors over valid elements.

    Abstract: what :class:`FlowMatchingLoss` and :class:`DiffusionBCLoss` share. The
    policy draws times and noise and returns the squared errors of its regression; the
    loss keeps the padding, and rows of weight 0, out of the network's input and out of
    the mean.

    Args:
        actor_network: policy whose ``denoising_errors(tensordict)`` returns ``[*B, H,
            A]`` for the target at its ``chunk_key``.

    Keyword Args:
        **options: handed to ``denoising_errors``.
    """

    @dataclass
    class _AcceptedKeys:
        """The keys of chunk, padding masks and weights (None: there are none)."""

        action: NestedKey = ACTION_CHUNK_KEY
        pad_mask: NestedKey | None = ACTION_IS_PAD_KEY
        dim_pad_mask: NestedKey | None = None
        weight: NestedKey | None = None

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss_bc"]

    actor_network: TensorDictModuleBase
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams

    def __init__(self, actor_network: TensorDictModuleBase, **options: float) -> None:
        super().__init__()
        if not callable(getattr(actor_network, "denoising_errors", None)):
            raise TypeError(
                f"{type(self).__name__}: expected a policy with a denoising head "
                "(denoising_errors(tensordict) -> [*B, H, A]) at argument "
                f"'actor_network', got {type(actor_network).__name__}. Use BCLoss for "
                "a policy that predicts the chunk itself."
            )
        self.convert_to_functional(actor_network, "actor_network")
        self._options = options

    @property
    def in_keys(self) -> list[NestedKey]:
        """What the loss reads."""
        masks = [self.tensor_keys.pad_mask, self.tensor_keys.dim_pad_mask]
        keys = [self.tensor_keys.action, *self.actor_network.in_keys, *masks]
        keys.append(self.tensor_keys.weight)
        return list(dict.fromkeys(key for key in keys if key is not None))

    def _forward_value_estimator_keys(self, **kwargs) -> None:
        """Ignore value keys: cloning estimates no value."""

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the loss of a batch."""
        key = self.tensor_keys.action
        owner = type(self).__name__
        target = read_target(tensordict, key, owner)
        if not target.is_floating_point():
            raise SchemaError(
                f"{owner}: expected float actions at {key!r}, got "
                f"{target.dtype}. Use TokenBCLoss to clone action tokens."
            )
        valid = self._valid(tensordict, target)
        weight = read_row_weight(tensordict, self.tensor_keys.weight, target, owner)
        # The network reads the noised target: nothing may get in from the padding.
        seen = torch.where(rows_that_count(valid, weight), target, 0.0)
        batch = tensordict.copy().set(self.actor_network.chunk_key, seen)
        with self.actor_network_params.to_module(
            self.actor_network, preserve_module_state=False
        ):
            errors = self.actor_network.denoising_errors(batch, **self._options)
        loss = weighted_mean(errors, valid, weight, owner)
        out = TensorDict({"loss_bc": loss})
        self._clear_weakrefs(tensordict, out, "actor_network_params")
        return out

    def _valid(self, tensordict: TensorDictBase, target: Tensor) -> Tensor:
        """True where the target counts, bool ``[*B, H, A]``."""
        owner, keys = type(self).__name__, self.tensor_keys
        valid = torch.ones_like(target, dtype=torch.bool)
        if keys.pad_mask is not None:
            pad = read_pad_mask(tensordict, keys.pad_mask, target, owner)
            valid = valid & ~pad.unsqueeze(-1)
        dims = read_dim_pad_mask(tensordict, keys.dim_pad_mask, target, owner)
        return valid if dims is None else valid & ~dims.unsqueeze(-2)
