"""The distribution of a chunk of action tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent

from torchrl_vla.schema import SchemaError, TokenError


class TokenDistribution(Independent):
    """One categorical per step and action dimension; a chunk's tokens are one event.

    ``torch.distributions.Categorical`` broadcasts tokens of another shape against its
    logits and returns log-probabilities of something else. This one raises.

    Args:
        logits: unnormalized log-probabilities, ``[*B, H, A, V]``.

    Examples:
        >>> dist = TokenDistribution(torch.zeros(5, 2, 3, 4))
        >>> dist.sample().shape, dist.log_prob(dist.mode).shape
        (torch.Size([5, 2, 3]), torch.Size([5]))
        >>> dist.token_log_probs(dist.mode)[0, 0].exp()
        tensor([0.2500, 0.2500, 0.2500])
    """

    def __init__(self, logits: Tensor) -> None:
        categorical = Categorical(logits=logits, validate_args=False)
        super().__init__(categorical, 2, validate_args=False)

    @property
    def mode(self) -> Tensor:
        """The most likely tokens, ``[*B, H, A]``."""
        return self.base_dist.logits.argmax(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability ``[*B]`` of chunks of tokens ``[*B, H, A]``."""
        return self.token_log_probs(value).sum((-2, -1))

    def token_log_probs(self, tokens: Tensor) -> Tensor:
        """Return the log-probability ``[*B, H, A]`` of each token.

        Raises:
            SchemaError: the tokens are not int64 ``[*B, H, A]``.
            TokenError: a token is not in ``[0, V)``.
        """
        logits = self.base_dist.logits
        if tokens.shape != logits.shape[:-1] or tokens.dtype != torch.int64:
            raise SchemaError(
                f"TokenDistribution: expected int64 tokens {list(logits.shape[:-1])}, "
                f"got {tokens.dtype} {list(tokens.shape)}. Tokens are [*B, H, A], one "
                "per action dimension of each step."
            )
        size = logits.shape[-1]
        ours = ((tokens >= 0) & (tokens < size)).all()
        if torch.compiler.is_compiling() or tokens.is_cuda:
            torch._assert_async(ours, "TokenDistribution: a foreign token.")
        elif not ours:
            raise TokenError(
                f"TokenDistribution: expected tokens in [0, {size}), got values from "
                f"{tokens.min().item()} to {tokens.max().item()}. They come from "
                "another tokenizer."
            )
        return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
