"""Behavior cloning of action tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.objectives.cloning import ElementwiseCloningLoss
from torchrl_vla.schema import ACTION_TOKENS_KEY, SchemaError


class TokenBCLoss(ElementwiseCloningLoss):
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
        >>> from tensordict import TensorDict
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
    class _AcceptedKeys(ElementwiseCloningLoss._AcceptedKeys):
        """The keys of tokens, padding masks and weights (None: there are none)."""

        action: NestedKey = ACTION_TOKENS_KEY

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys

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

    def _check_target(self, target: Tensor) -> None:
        if target.dtype != torch.int64:
            raise SchemaError(
                f"TokenBCLoss: expected int64 tokens at {self.tensor_keys.action!r}, "
                f"got {target.dtype}. Use BCLoss to clone continuous actions."
            )

    def _losses(
        self,
        tensordict: TensorDictBase,
        target: Tensor,
        valid: Tensor,
        weight: Tensor | None,
    ) -> Tensor:
        return -self.actor_network.token_log_probs(tensordict)
