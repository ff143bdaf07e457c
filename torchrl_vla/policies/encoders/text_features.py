"""Interface of text encoders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor, nn


class TokenStates(NamedTuple):
    """States of the tokens of ``N`` texts.

    Args:
        states: ``[N, L, W]``; ``W`` may differ from the size of an encoding.
        is_pad: bool ``[N, L]``, True = padding, to be ignored.
    """

    states: Tensor
    is_pad: Tensor


class TextEncoder(nn.Module, ABC):
    """Encode texts in two steps: once per distinct text, and at every call.

    Abstract. :meth:`prepare` makes of a text whatever does not change in training (its
    bytes, its tokens, the features of a frozen language model); a policy calls it once
    per distinct text and keeps the rows. :meth:`forward` is the rest, with the weights
    that are trained.

    Args:
        num_features: ``F``, size of an encoding.

    Examples:
        >>> import torch
        >>> class Length(TextEncoder):
        ...     def prepare(self, texts):
        ...         return torch.tensor([[float(len(text))] for text in texts])
        ...
        ...     def forward(self, rows):
        ...         return rows / 10
        >>> Length(1).encode(["pick", "place"])
        tensor([[0.4000],
                [0.5000]])
    """

    #: True = :meth:`prepare` may take long or need files, so it is put off until a row
    #: is needed.
    prepares_late: ClassVar[bool] = False

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    @abstractmethod
    def prepare(self, texts: Sequence[str]) -> Tensor:
        """Return ``[N, ...]``, one row per text that depends on this text alone."""

    @abstractmethod
    def forward(self, rows: Tensor) -> Tensor:
        """Encode rows of :meth:`prepare` as ``[N, F]``."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Encode texts as ``[N, F]``."""
        return self(self.prepare(texts))

    def encode_tokens(self, rows: Tensor) -> TokenStates | None:
        """Return the states of the tokens of :meth:`prepare`'s rows.

        None = the encoder has none.
        """
        return None

    def expect(self, texts: Sequence[str]) -> None:
        """Take note of texts that will be encoded, e.g. those of a policy's table.

        Called with each new table, before :meth:`prepare`.
        """
