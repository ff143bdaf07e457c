"""What the losses that ask a policy for one loss per number have in common."""

from __future__ import annotations

from abc import abstractmethod
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
from torchrl_vla.objectives.row_weight import read_row_weight, weighted_mean
from torchrl_vla.schema import ACTION_CHUNK_KEY, ACTION_IS_PAD_KEY


class ElementwiseCloningLoss(OptionalPadMask, LossModule):
    """Take the weighted mean, over valid elements, of what a policy says of a target.

    Abstract: what :class:`TokenBCLoss` and the losses of denoising policies share. A
    subclass says which targets it takes and what the loss of each element is.

    Args:
        actor_network: the policy.
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

    @abstractmethod
    def _check_target(self, target: Tensor) -> None:
        """Raise SchemaError where the target is of another kind."""

    @abstractmethod
    def _losses(
        self,
        tensordict: TensorDictBase,
        target: Tensor,
        valid: Tensor,
        weight: Tensor | None,
    ) -> Tensor:
        """Return the loss of each element, ``[*B, H, A]``."""

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
        caller = type(self).__name__
        target = read_target(tensordict, self.tensor_keys.action, caller)
        self._check_target(target)
        valid = self._valid(tensordict, target)
        weight = read_row_weight(tensordict, self.tensor_keys.weight, target, caller)
        with self.actor_network_params.to_module(
            self.actor_network, preserve_module_state=False
        ):
            losses = self._losses(tensordict, target, valid, weight)
        loss = weighted_mean(losses, valid, weight, caller)
        out = TensorDict({"loss_bc": loss})
        self._clear_weakrefs(tensordict, out, "actor_network_params")
        return out

    def _valid(self, tensordict: TensorDictBase, target: Tensor) -> Tensor:
        """True where the target counts, bool ``[*B, H, A]``."""
        caller, keys = type(self).__name__, self.tensor_keys
        valid = torch.ones_like(target, dtype=torch.bool)
        if keys.pad_mask is not None:
            pad = read_pad_mask(tensordict, keys.pad_mask, target, caller)
            valid = valid & ~pad.unsqueeze(-1)
        dims = read_dim_pad_mask(tensordict, keys.dim_pad_mask, target, caller)
        return valid if dims is None else valid & ~dims.unsqueeze(-2)
