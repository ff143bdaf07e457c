"""The distribution of a chunk of action tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torchrl_vla._internal.readable_values import can_be_read
from torchrl_vla.policies.chunk_distribution import ChunkDistribution
from torchrl_vla.policies.tokens.token_sampling import TokenSampling
from torchrl_vla.rollout import uniforms
from torchrl_vla.schema import TokenError


class TokenDistribution(ChunkDistribution):
    """One categorical per step and action dimension; a chunk's tokens are one event.

    ``torch.distributions.Categorical`` broadcasts tokens of another shape against its
    logits and returns log-probabilities of something else. This one raises.

    With ``sampling``, what is drawn and what is evaluated is the same distribution:
    tempered, truncated, normalized again. Truncation has a trap: the set of tokens
    that ``top_k`` or ``top_p`` keeps moves with the weights, so a token drawn
    yesterday can lie outside of today's set, where its log-probability is ``-inf`` and
    its ratio teaches nothing. :meth:`element_log_probs` therefore evaluates a token
    within the kept set *and the token itself*. For the weights that drew it this
    changes nothing, it was in the set; for others the ratio stays finite and has a
    gradient. (Keeping the set of the rollout would do too, at ``V`` bools per token.)
    Tokens that are cut off or not allowed have a gradient of exactly zero.

    Args:
        logits: unnormalized log-probabilities, ``[*B, H, A, V]``; half precision is
            taken to float32 first.
        sampling: temperature and truncation; None = none.

    Keyword Args:
        allowed_tokens: bool ``[V]`` or ``[A, V]``, True = may be chosen; None = all.

    Examples:
        >>> dist = TokenDistribution(torch.zeros(5, 2, 3, 4))
        >>> dist.sample().shape, dist.log_prob(dist.mode).shape
        (torch.Size([5, 2, 3]), torch.Size([5]))
        >>> dist.element_log_probs(dist.mode)[0, 0].exp()
        tensor([0.2500, 0.2500, 0.2500])
    """

    def __init__(
        self,
        logits: Tensor,
        sampling: TokenSampling | None = None,
        *,
        allowed_tokens: Tensor | None = None,
    ) -> None:
        super().__init__(logits.shape[:-3], logits.shape[-3:-1])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if sampling is not None and sampling.temperature != 1.0:
            logits = logits / sampling.temperature
        if allowed_tokens is not None:
            logits = logits.masked_fill(~allowed_tokens, -math.inf)
        self._allowed_tokens = allowed_tokens
        self._all_logits, self._kept = logits, None
        if sampling is not None and sampling.truncates:
            self._kept = sampling.kept(logits)
            logits = logits.masked_fill(~self._kept, -math.inf)
        self.logits = logits.log_softmax(-1)

    @property
    def mode(self) -> Tensor:
        """The most likely tokens, int64 ``[*B, H, A]``."""
        return self.logits.argmax(-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw tokens, int64 ``[*sample_shape, *B, H, A]``."""
        rows = self.logits.detach().exp().flatten(0, -2)
        shape = torch.Size(sample_shape)
        drawn = rows.multinomial(shape.numel(), replacement=True).T
        return drawn.reshape(self._extended_shape(shape))

    def sample_with_seeds(self, noise_seeds: Tensor) -> Tensor:
        """Draw tokens, int64 ``[*B, H, A]``, by inverting the CDF of each number."""
        count = self.event_shape.numel()
        numbers = uniforms(noise_seeds.reshape(-1), count).to(torch.float64)
        cdf = self.logits.detach().to(torch.float64).exp().cumsum(-1)
        # The CDF does not rise at a token that cannot be drawn, so none is reached.
        level = numbers.view(self._extended_shape()).unsqueeze(-1) * cdf[..., -1:]
        return (cdf <= level).sum(-1)

    def element_log_probs(self, choice: Tensor) -> Tensor:
        """Return the log-probability ``[*B, H, A]`` of each token.

        Raises:
            SchemaError: the tokens are not int64 ``[*B, H, A]``.
            TokenError: a token is not in ``[0, V)``, or not allowed.
        """
        self._check_sample(choice, torch.int64)
        self._check_tokens(choice)
        index = choice.unsqueeze(-1)
        logits = self.logits.expand(*choice.shape, -1)
        if self._kept is not None:
            kept = self._kept.expand_as(logits).scatter(-1, index, True)
            logits = self._all_logits.masked_fill(~kept, -math.inf).log_softmax(-1)
        return logits.gather(-1, index).squeeze(-1)

    def element_entropy(self) -> Tensor:
        """Return the entropy ``[*B, H, A]`` of each token."""
        # A token that cannot be drawn adds 0, not 0 * -inf.
        surprise = self.logits.masked_fill(self.logits == -math.inf, 0.0)
        return -(self.logits.exp() * surprise).sum(-1)

    def entropy(self) -> Tensor:
        """Return the entropy of a whole chunk, ``[*B]``."""
        return self._sum(self.element_entropy())

    def _check_tokens(self, tokens: Tensor) -> None:
        size = self.logits.shape[-1]
        ours = (tokens >= 0) & (tokens < size)
        if not can_be_read(tokens):
            torch._assert_async(ours.all(), "TokenDistribution: a foreign token.")
        elif not ours.all():
            raise TokenError(
                f"TokenDistribution: expected tokens in [0, {size}), got values from "
                f"{tokens.min().item()} to {tokens.max().item()}. They come from "
                "another tokenizer."
            )
        if self._allowed_tokens is None:
            return
        mask = self._allowed_tokens.expand(*tokens.shape, -1)
        allowed = mask.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        if not can_be_read(tokens):
            torch._assert_async(allowed.all(), "TokenDistribution: a masked token.")
        elif not allowed.all():
            where = (~allowed).nonzero()[0].tolist()
            raise TokenError(
                f"TokenDistribution: expected tokens that are allowed, got "
                f"{tokens[tuple(where)].item()} at {where}, which allowed_tokens masks."
            )
