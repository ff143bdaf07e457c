"""Behavior cloning loss of token policies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.objectives.elementwise_cloning import ElementwiseCloningLoss
from torchrl_vla.objectives.pad_masks import CloningKeys
from torchrl_vla.schema import ACTION_TOKENS_KEY, SchemaError


class TokenBCLoss(ElementwiseCloningLoss):
    """Maximize the likelihood of the expert's action tokens where they are valid.

    The mean negative log-likelihood per valid token. Keys and errors: see
    :class:`ElementwiseCloningLoss`.

    Note:
        The loss calls the policy's ``token_log_probs`` and never its sampling, so the
        expert's tokens are the only ones in the batch.

    **Reads** the policy's ``in_keys``, ``action_tokens`` int64 ``[*B, H, A]`` (the
    expert's) and ``action_is_pad``; **writes** ``loss_bc``.

    Args:
        actor_network: policy whose ``token_log_probs(tensordict)`` returns the
            log-probability ``[*B, H, A]`` of each of its ``action_tokens``.

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
    class _AcceptedKeys(CloningKeys):
        action: NestedKey = ACTION_TOKENS_KEY

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
