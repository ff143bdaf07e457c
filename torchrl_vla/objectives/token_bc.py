"""Behavior cloning of action tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictParams, dispatch
from torchrl.objectives import LossModule

from torchrl_vla.objectives.padding import (
    OptionalPadMask,
    read_dim_pad_mask,
    read_pad_mask,
    read_target,
)
from torchrl_vla.objectives.row_weight import (
    read_row_weight,
    weighted_mean,
)
from torchrl_vla.schema import ACTION_IS_PAD_KEY, ACTION_TOKENS_KEY, SchemaError


class TokenBCLoss(OptionalPadMask, LossModule):
    """Make the expert's action tokens more likely wherever the episode goes on.

    The mean negative log-likelihood per valid token, what ``BCLoss`` is for a
    continuous head. The surprise: it asks the policy for ``token_log_probs`` and never
    runs its sampling, so the expert's tokens are the only ones in the batch.

    **Reads** the policy's ``in_keys``; ``action_tokens`` int64 ``[*B, H, A]``, the
    expert's; ``action_is_pad`` bool ``[*B, H]``, True = padded; with
    ``set_keys(dim_pad_mask="action_dim_is_pad")``, that mask bool ``[*B, A]`` of the
    dimensions that a row's robot lacks; with ``set_keys(weight="sample_weight")``,
    weights float ``[*B]`` of the rows, for a weighted mean. **Writes** ``loss_bc``, a
    scalar.

    Args:
        actor_network: policy whose ``token_log_probs(tensordict)`` returns the
            log-probability ``[*B, H, A]`` of each of its ``action_tokens``.

    Raises:
        MissingKeyError: the tokens or the mask are not there.
        SchemaError: the mask is not a bool ``[*B, H]`` with a False in it, the batch
            has an ``action_dim_is_pad`` or a ``sample_weight`` that was not named, the
            weights are not finite and >= 0 with one above 0, or the target holds no
            int64 tokens.
        TypeError: the policy has no ``token_log_probs``.

    Examples:
        >>> import torch
        >>> from tensordict.nn import TensorDictModuleBase
        >>> class Even(TensorDictModuleBase):
        ...     in_keys, out_keys = ["state"], ["action_tokens"]
        ...
        ...     def token_log_probs(self, td):
        ...         return torch.full(td["action_tokens"].shape, 0.25).log()
        >>> batch = TensorDict(
        ...     state=torch.zeros(1, 3),
        ...     action_tokens=torch.zeros(1, 2, 1, dtype=torch.int64),
        ...     action_is_pad=torch.tensor([[False, True]]),
        ... )
        >>> TokenBCLoss(Even())(batch)["loss_bc"].exp()
        tensor(4.)
    """

    @dataclass
    class _AcceptedKeys:
        """The keys of tokens, padding masks and weights (None: there are none)."""

        action: NestedKey = ACTION_TOKENS_KEY
        pad_mask: NestedKey | None = ACTION_IS_PAD_KEY
        dim_pad_mask: NestedKey | None = None
        weight: NestedKey | None = None

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss_bc"]

    actor_network: TensorDictModuleBase
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams

    def __init__(self, actor_network: TensorDictModuleBase) -> None:
        super().__init__()
        if not callable(getattr(actor_network, "token_log_probs", None)):
            raise TypeError(
                "TokenBCLoss: expected a policy with a token head "
                "(token_log_probs(tensordict) -> [*B, H, A]) at argument "
                f"'actor_network', got {type(actor_network).__name__}. Use BCLoss for "
                "a policy that writes continuous actions."
            )
        self.convert_to_functional(actor_network, "actor_network")

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
        key, pad_key = self.tensor_keys.action, self.tensor_keys.pad_mask
        tokens = read_target(tensordict, key, "TokenBCLoss")
        if tokens.dtype != torch.int64:
            raise SchemaError(
                f"TokenBCLoss: expected int64 tokens at {key!r}, got {tokens.dtype}. "
                "Use BCLoss to clone continuous actions."
            )
        valid = torch.ones_like(tokens, dtype=torch.bool)
        if pad_key is not None:
            pad = read_pad_mask(tensordict, pad_key, tokens, "TokenBCLoss")
            valid = ~pad.unsqueeze(-1).expand_as(tokens)
        dim_key = self.tensor_keys.dim_pad_mask
        dims = read_dim_pad_mask(tensordict, dim_key, tokens, "TokenBCLoss")
        if dims is not None:
            valid = valid & ~dims.unsqueeze(-2)
        weight = read_row_weight(
            tensordict, self.tensor_keys.weight, tokens, "TokenBCLoss"
        )
        with self.actor_network_params.to_module(
            self.actor_network, preserve_module_state=False
        ):
            log_probs = self.actor_network.token_log_probs(tensordict)
        loss = weighted_mean(-log_probs, valid, weight, "TokenBCLoss")
        out = TensorDict({"loss_bc": loss})
        self._clear_weakrefs(tensordict, out, "actor_network_params")
        return out
