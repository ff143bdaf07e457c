"""What every action tokenizer is."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from torchrl_vla.schema import TokenError


class ActionTokenizerBase(nn.Module, ABC):
    """Map continuous actions to discrete tokens and back, element by element.

    ``decode`` undoes ``encode`` to within half a bin; ``encode`` undoes ``decode``
    exactly. NaN is no action and a foreign number no token: both raise, since the
    alternative is to move the robot by them. (Inside ``torch.compile`` and on CUDA the
    check is a device-side assertion.)
    """

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """``V``: tokens are in ``[0, V)``."""

    @property
    def is_action_token(self) -> Tensor | None:
        """Which tokens ``decode`` takes, bool ``[V]``; None = all of them."""
        return None

    @abstractmethod
    def encode(self, actions: Tensor) -> Tensor:
        """Turn actions ``[..., A]`` into int64 tokens of the same shape."""

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """Turn int64 tokens ``[..., A]`` into float32 actions of the same shape."""

    def _check_actions(self, actions: Tensor) -> None:
        # A sum is finite only if every term is: one cheap pass for good data.
        total = actions.sum().isfinite()
        if torch.compiler.is_compiling() or actions.is_cuda:
            torch._assert_async(
                total, "action tokenizer: expected finite actions, got NaN or inf."
            )
        elif not total and not actions.isfinite().all():
            where = (~actions.isfinite()).nonzero()[0].tolist()
            raise TokenError(
                f"{type(self).__name__}.encode: expected finite actions, got "
                f"{actions[tuple(where)].item()} at index {where}. Find out what "
                "produced it; it has no token."
            )

    def _check_dtype(self, tokens: Tensor) -> None:
        if tokens.dtype != torch.int64:
            raise TokenError(
                f"{type(self).__name__}.decode: expected int64 tokens, got "
                f"{tokens.dtype}. Convert them with .long()."
            )

    def _check_tokens(self, tokens: Tensor, low: int, high: int) -> None:
        """Refuse tokens outside ``[low, high)``."""
        self._check_dtype(tokens)
        if not tokens.numel():
            return
        smallest, largest = torch.aminmax(tokens)
        if torch.compiler.is_compiling() or tokens.is_cuda:
            ours = (smallest >= low) & (largest < high)
            torch._assert_async(
                ours, "action tokenizer: expected action tokens, got a foreign token."
            )
        elif smallest < low or largest >= high:
            where = ((tokens < low) | (tokens >= high)).nonzero()[0].tolist()
            raise TokenError(
                f"{type(self).__name__}.decode: expected tokens in [{low}, {high}), "
                f"got {tokens[tuple(where)].item()} at index {where}. It is no action "
                "token: the policy emitted text, or has another vocabulary."
            )

    def _check_width(self, values: Tensor, width: int | None) -> None:
        """Refuse a last dimension that would broadcast against ``[A]`` statistics."""
        if width is not None and (values.ndim == 0 or values.shape[-1] != width):
            raise TokenError(
                f"{type(self).__name__}: expected [..., A={width}], got shape "
                f"{tuple(values.shape)}. The bounds belong to another action space."
            )
