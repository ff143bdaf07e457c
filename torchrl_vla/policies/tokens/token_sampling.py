"""Choice and temperature of the tokens that are drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from torchrl_vla.schema import check_positive_int


@dataclass(frozen=True)
class TokenSampling:
    """Sharpen or flatten a distribution of tokens and cut off its unlikely ones.

    Applied in the order of the arguments, as language models do: the temperature
    first, then the ``top_k`` most likely tokens, then of these the smallest set that
    holds a share of at least ``top_p``. What is left is normalized again. Ties with
    the last token of a set stay in it.

    Args:
        temperature: divides the logits; below 1 is sharper, above 1 flatter.
        top_k: how many tokens may be drawn; None = all.
        top_p: share of the probability that may be drawn, in (0, 1]; None = all.

    Raises:
        ValueError: a value is out of its range.

    Examples:
        >>> import torch
        >>> logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
        >>> TokenSampling(top_k=3, top_p=0.7).kept(logits)
        tensor([ True,  True, False, False])
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(
                "TokenSampling: expected a finite temperature above 0, got "
                f"{self.temperature!r}. For the most likely token use the interaction "
                "type DETERMINISTIC."
            )
        if self.top_k is not None:
            check_positive_int("TokenSampling", "top_k", self.top_k)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(
                f"TokenSampling: expected top_p in (0, 1] or None, got {self.top_p!r}."
            )

    @property
    def truncates(self) -> bool:
        """True = tokens are cut off."""
        return self.top_k is not None or self.top_p not in (None, 1.0)

    def kept(self, logits: Tensor) -> Tensor:
        """Return which tokens are left, bool ``[..., V]``.

        Args:
            logits: ``[..., V]``, already divided by the temperature; -inf for tokens
                that may not be drawn at all.
        """
        logits = logits.detach()
        kept = logits > -math.inf
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            kept = kept & (logits >= logits.topk(self.top_k, -1).values[..., -1:])
        if self.top_p not in (None, 1.0):
            ranked = logits.masked_fill(~kept, -math.inf).sort(-1, descending=True)[0]
            share = ranked.softmax(-1)
            needed = share.cumsum(-1) - share < self.top_p  # the first one always is
            last = ranked.masked_fill(~needed, math.inf).amin(-1, keepdim=True)
            kept = kept & (logits >= last)
        return kept
