"""Base class of action tokenizers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchrl_vla._internal.readable_values import can_be_read
from torchrl_vla.schema import TokenError

if TYPE_CHECKING:
    from typing_extensions import Self


class ActionTokenizerBase(nn.Module, ABC):
    """Map continuous actions to discrete tokens and back, element by element.

    ``decode`` undoes ``encode`` to within half a bin; ``encode`` undoes ``decode``
    exactly. NaN is not an action, and a number outside the vocabulary is not a token:
    both raise, because the robot would move by them. (Inside ``torch.compile`` and on
    CUDA the check is a device-side assertion.)

    A subclass implements :attr:`vocab_size`, :meth:`encode` and :meth:`decode`, and
    :meth:`to_config` to be saved with a policy.
    """

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """``V``: tokens are in ``[0, V)``."""

    @property
    def is_action_token(self) -> Tensor | None:
        """Tokens that ``decode`` accepts, bool ``[V]``; None = all of them."""
        return None

    @abstractmethod
    def encode(self, actions: Tensor) -> Tensor:
        """Turn actions ``[..., A]`` into int64 tokens of the same shape."""

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """Turn int64 tokens ``[..., A]`` into float32 actions of the same shape."""

    def to_config(self) -> dict[str, Any]:
        """Return what :func:`tokenizer_from_config` rebuilds this tokenizer from.

        Values of JSON, and ``"class"``: see :meth:`config_of`.

        Raises:
            TokenError: the class does not implement this method.
        """
        raise TokenError(
            f"{type(self).__name__}.to_config: expected an implementation, got none. "
            "Return self.config_of(argument=...) with the constructor's arguments, "
            "from which the tokenizer can be rebuilt."
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build from a config without its ``"class"``: the constructor's arguments."""
        return cls(**config)

    @classmethod
    def config_of(cls, **arguments: object) -> dict[str, Any]:
        """Return a config: the class, importable by name, and these arguments."""
        module, name = cls.__module__, cls.__qualname__
        own = module.startswith("torchrl_vla.tokenizers.")
        return {"class": name if own else f"{module}:{name}", **arguments}

    def _check_actions(self, actions: Tensor) -> None:
        # A sum is finite only if every term is: one cheap pass for good data.
        total = actions.sum().isfinite()
        if not can_be_read(actions):
            torch._assert_async(
                total, "action tokenizer: expected finite actions, got NaN or inf."
            )
        elif not total and not actions.isfinite().all():
            where = (~actions.isfinite()).nonzero()[0].tolist()
            raise TokenError(
                f"{type(self).__name__}.encode: expected finite actions, got "
                f"{actions[tuple(where)].item()} at index {where}. It has no token; "
                "find out what produced it."
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
        if not can_be_read(tokens):
            ours = (smallest >= low) & (largest < high)
            torch._assert_async(
                ours, "action tokenizer: expected action tokens, got another token."
            )
        elif smallest < low or largest >= high:
            where = ((tokens < low) | (tokens >= high)).nonzero()[0].tolist()
            raise TokenError(
                f"{type(self).__name__}.decode: expected tokens in [{low}, {high}), "
                f"got {tokens[tuple(where)].item()} at index {where}. It is no action "
                "token: the policy wrote text, or has another vocabulary."
            )

    def _check_width(self, values: Tensor, width: int | None) -> None:
        """Refuse a last dimension that would broadcast against ``[A]`` statistics."""
        if width is not None and (values.ndim == 0 or values.shape[-1] != width):
            raise TokenError(
                f"{type(self).__name__}: expected [..., A={width}], got shape "
                f"{tuple(values.shape)}. The bounds belong to another action space."
            )
