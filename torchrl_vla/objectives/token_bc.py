"""Behavior cloning loss of token policies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.objectives.elementwise_cloning import ElementwiseCloningLoss
from torchrl_vla.objectives.pad_masks import CloningKeys, read_pad_mask
from torchrl_vla.schema import (
    ACTION_DIM_IS_PAD_KEY,
    ACTION_TOKENS_KEY,
    SchemaError,
)


class TokenBCLoss(ElementwiseCloningLoss):
    """Maximize the likelihood of the expert's action tokens where they are valid.

    The mean negative log-likelihood per valid token. Keys and errors: see
    :class:`ElementwiseCloningLoss`.

    Note:
        The loss calls the policy's ``token_log_probs`` and never its sampling, so the
        expert's tokens are the only ones in the batch.

    Sequences ``[*B, L]`` of a :class:`~torchrl_vla.tokenizers.ChunkActionTokenizer`
    count token by token: end tokens do not, nor do tokens that move none but padded
    steps. A mask of padded dimensions is refused, a token is not of one.

    **Reads** the policy's ``in_keys``, ``action_tokens`` int64 ``[*B, H, A]`` or
    ``[*B, L]`` (the expert's) and ``action_is_pad``; **writes** ``loss_bc``.

    Args:
        actor_network: policy whose ``token_log_probs(tensordict)`` returns the
            log-probability ``[*B, H, A]`` of each of its ``action_tokens``; one of
            sequences besides has ``counted_tokens(tokens, steps)`` and
            ``chunk_size``.

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
        self._of_sequences = getattr(actor_network, "counted_tokens", None) is not None
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
        log_probs = self.actor_network.token_log_probs(tensordict)
        return -log_probs.view(target.shape)

    def _as_elements(self, target: Tensor) -> Tensor:
        return target.unsqueeze(-1) if self._of_sequences else target

    def _valid(self, tensordict: TensorDictBase, target: Tensor) -> Tensor:
        if not self._of_sequences:
            return super()._valid(tensordict, target)
        return self._counted(tensordict, target.squeeze(-1)).unsqueeze(-1)

    def _countable(self, tensordict: TensorDictBase, target: Tensor) -> Tensor | None:
        if not self._of_sequences:
            return None
        return self._counted(tensordict, target).to(torch.float64)

    def _counted(self, tensordict: TensorDictBase, sequences: Tensor) -> Tensor:
        """Return which tokens ``[*B, L]`` count, bool."""
        keys, actor = self.tensor_keys, self.actor_network
        shape = (*sequences.shape[:-1], actor.chunk_size)
        steps = torch.ones(shape, dtype=torch.bool, device=sequences.device)
        if keys.pad_mask is not None:
            chunk = steps.unsqueeze(-1)
            steps = ~read_pad_mask(tensordict, keys.pad_mask, chunk, "TokenBCLoss")
        dims = keys.dim_pad_mask
        if dims is not None or tensordict.get(ACTION_DIM_IS_PAD_KEY, None) is not None:
            raise SchemaError(
                f"TokenBCLoss: expected no padded dimensions for sequences "
                f"{list(sequences.shape)} at {keys.action!r}, got "
                f"{dims or ACTION_DIM_IS_PAD_KEY!r}. A token is not of one dimension: "
                "train on one robot, or with a tokenizer of bins."
            )
        return actor.counted_tokens(sequences, steps)
