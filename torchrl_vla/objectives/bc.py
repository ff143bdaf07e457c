"""Behavior cloning loss of action chunks."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictParams, dispatch
from torch import Tensor
from torchrl.objectives import BCLoss as _TorchRLBCLoss

from torchrl_vla.objectives.pad_masks import (
    OptionalPadMask,
    read_dim_pad_mask,
    read_pad_mask,
    read_target,
)
from torchrl_vla.objectives.sample_weights import (
    counts_in_loss,
    read_sample_weights,
    weigh,
)
from torchrl_vla.schema import MissingKeyError, SchemaError


class BCLoss(OptionalPadMask, _TorchRLBCLoss):
    """Compare a policy's chunk with the expert's over valid elements.

    TorchRL's loss with strict checks: a padding mask that is missing (a misspelt key),
    of another dtype or shape, or True everywhere raises. The mean is over valid
    elements, so an episode's short end weighs as much as its frames, not as its
    padding. Padded values (NaN, too) have no influence on the loss or on any gradient.

    **Reads** the policy's ``in_keys``; ``action_chunk`` float ``[*B, H, A]``, the
    expert's; ``action_is_pad`` bool ``[*B, H]``, True = padded; with
    ``set_keys(dim_pad_mask="action_dim_is_pad")``, that mask bool ``[*B, A]`` of the
    dimensions that a sample's robot lacks, which also count as padding; with
    ``set_keys(weight="sample_weight")``, weights float ``[*B]``. **Writes**
    ``loss_bc``, a scalar (one number per valid element with ``reduction="none"``):
    ``sum_i w_i sum_valid(loss_i) / sum_i w_i n_valid_i``, where a sample of weight
    0 counts as padding; the other reductions give ``w_i`` times each element.

    Args:
        actor_network: policy that writes its chunk at the ``action`` key.

    Keyword Args:
        loss_function: ``"l1"``, ``"l2"``, ``"smooth_l1"``, or a callable of prediction
            and target without reduction. None is ``"l2"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``. None is ``"mean"``.

    Raises:
        MissingKeyError: the chunk or the mask is missing, or the policy does not
            write the ``action`` key.
        SchemaError: the mask is not a bool ``[*B, H]`` with a False in it, the chunk
            holds tokens, the batch has an ``action_dim_is_pad`` or a ``sample_weight``
            that no key names, the weights are not finite and >= 0 with one above 0,
            or prediction and target have different shapes. (Inside ``torch.compile``
            an all-padded batch gives 0, and the weights' values are not checked.)

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> zeros = TensorDictModule(
        ...     lambda s: s.new_zeros(1, 2, 1), ["state"], ["action_chunk"]
        ... )
        >>> batch = TensorDict(
        ...     state=torch.zeros(1, 3),
        ...     action_chunk=torch.tensor([[[3.0], [500.0]]]),
        ...     action_is_pad=torch.tensor([[False, True]]),
        ... )
        >>> BCLoss(zeros, loss_function="l1")(batch)["loss_bc"]
        tensor(3.)
    """

    actor_network: TensorDictModuleBase
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams

    def _set_in_keys(self) -> None:
        super()._set_in_keys()
        for key in (self.tensor_keys.dim_pad_mask, self.tensor_keys.weight):
            if key is not None:
                self._in_keys.append(key)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the loss of a batch."""
        key, pad_key = self.tensor_keys.action, self.tensor_keys.pad_mask
        target = read_target(tensordict, key, "BCLoss")
        if not target.is_floating_point():
            raise SchemaError(
                f"BCLoss: expected float actions at {key!r}, got {target.dtype}. Use "
                "TokenBCLoss to clone action tokens."
            )
        if pad_key is not None:
            pad = read_pad_mask(tensordict, pad_key, target, "BCLoss")
            # 0 times the derivative at a NaN is NaN: keep it out of the graph.
            target = torch.where(pad.unsqueeze(-1), 0.0, target)
        dims = read_dim_pad_mask(
            tensordict, self.tensor_keys.dim_pad_mask, target, "BCLoss"
        )
        if dims is not None:
            target = torch.where(dims.unsqueeze(-2), 0.0, target)
        weight = read_sample_weights(
            tensordict, self.tensor_keys.weight, target, "BCLoss"
        )
        if weight is not None:
            counts = counts_in_loss(torch.ones_like(target, dtype=torch.bool), weight)
            target = torch.where(counts, target, 0.0)
        return super().forward(tensordict.copy().set(key, target))

    def _reduce_loss(
        self,
        loss: Tensor,
        tensordict: TensorDictBase,
        *,
        mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        if (dim_key := self.tensor_keys.dim_pad_mask) is not None:
            valid = ~tensordict.get(dim_key).unsqueeze(-2).expand_as(loss)
            mask = valid if mask is None else valid & mask.unsqueeze(-1)
        if (key := self.tensor_keys.weight) is None:
            return super()._reduce_loss(loss, tensordict, mask=mask, **options)
        valid = torch.ones_like(loss, dtype=torch.bool)
        if mask is not None:
            valid = valid & (mask if mask.ndim == loss.ndim else mask.unsqueeze(-1))
        loss, expanded = weigh(loss, valid, tensordict.get(key), "BCLoss")
        if self.reduction != "mean":
            return super()._reduce_loss(loss, tensordict, mask=valid, **options)
        total = expanded.sum()
        return loss.sum() / torch.where(total > 0, total, 1.0)

    def _get_prediction(
        self, tensordict: TensorDictBase, action_expert: Tensor
    ) -> Tensor:
        key = self.tensor_keys.action
        prediction = tensordict.get(key)
        if prediction is action_expert:
            raise MissingKeyError(
                f"BCLoss: expected the policy to write {key!r}, got out_keys "
                f"{list(self.actor_network.out_keys)}. Name the key that it writes "
                "with set_keys(action=...), and put the expert's chunk there."
            )
        if prediction.shape != action_expert.shape:
            raise SchemaError(
                f"BCLoss: expected a prediction {list(action_expert.shape)} at "
                f"{key!r}, the shape of the expert's chunk, got "
                f"{list(prediction.shape)}. Build both with one chunk_size."
            )
        return prediction
