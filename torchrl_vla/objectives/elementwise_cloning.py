"""Base class of cloning losses that take one loss per element from the policy."""

from __future__ import annotations

from abc import abstractmethod

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictParams, dispatch
from torch import Tensor
from torchrl.objectives import LossModule

from torchrl_vla.objectives.pad_masks import (
    OptionalPadMask,
    read_dim_pad_mask,
    read_pad_mask,
    read_target,
)
from torchrl_vla.objectives.sample_weights import read_sample_weights, weighted_mean


class ElementwiseCloningLoss(OptionalPadMask, LossModule):
    """Take the weighted mean of a policy's loss per element over valid elements.

    Abstract: base of :class:`TokenBCLoss` and of the losses of denoising policies. A
    subclass implements :meth:`_check_target` and :meth:`_losses`.

    **Reads** the policy's ``in_keys``; ``action_chunk`` float ``[*B, H, A]``, the
    expert's (``action_tokens`` int64 for a token policy); ``action_is_pad`` bool
    ``[*B, H]``, True = padded; with ``set_keys(dim_pad_mask="action_dim_is_pad")``,
    that mask bool ``[*B, A]`` of the dimensions that a sample's robot lacks; with
    ``set_keys(weight="sample_weight")``, weights float ``[*B]``, for a weighted mean.
    **Writes** ``loss_bc``, a scalar.

    Args:
        actor_network: the policy.

    Raises:
        MissingKeyError: the target or the mask is missing.
        SchemaError: the mask is not a bool ``[*B, H]`` with a False in it, the batch
            has an ``action_dim_is_pad`` or a ``sample_weight`` that no key names, the
            weights are not finite and >= 0 with one above 0, or the target is of
            another kind.
        TypeError: the policy lacks the method that returns the losses.
    """

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

    def _as_elements(self, target: Tensor) -> Tensor:
        """Return the target with a dimension for the steps and one for the rest."""
        return target

    @property
    def in_keys(self) -> list[NestedKey]:
        """Keys that the loss reads."""
        masks = [self.tensor_keys.pad_mask, self.tensor_keys.dim_pad_mask]
        keys = [self.tensor_keys.action, *self.actor_network.in_keys, *masks]
        keys.append(self.tensor_keys.weight)
        return list(dict.fromkeys(key for key in keys if key is not None))

    def _forward_value_estimator_keys(self, **kwargs: NestedKey) -> None:
        """Ignore value keys; cloning has no value estimator."""

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the loss of a batch."""
        caller = type(self).__name__
        target = read_target(tensordict, self.tensor_keys.action, caller)
        self._check_target(target)
        target = self._as_elements(target)
        valid = self._valid(tensordict, target)
        weight = read_sample_weights(
            tensordict, self.tensor_keys.weight, target, caller
        )
        with self.actor_network_params.to_module(
            self.actor_network, preserve_module_state=False
        ):
            losses = self._losses(tensordict, target, valid, weight)
        loss = weighted_mean(losses, valid, weight, caller)
        out = TensorDict({"loss_bc": loss})
        self._clear_weakrefs(tensordict, out, "actor_network_params")
        return out

    def _valid(self, tensordict: TensorDictBase, target: Tensor) -> Tensor:
        """Return a mask, True where the target counts, bool ``[*B, H, A]``."""
        caller, keys = type(self).__name__, self.tensor_keys
        valid = torch.ones_like(target, dtype=torch.bool)
        if keys.pad_mask is not None:
            pad = read_pad_mask(tensordict, keys.pad_mask, target, caller)
            valid = valid & ~pad.unsqueeze(-1)
        dims = read_dim_pad_mask(tensordict, keys.dim_pad_mask, target, caller)
        return valid if dims is None else valid & ~dims.unsqueeze(-2)
