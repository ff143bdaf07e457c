"""Action tokenizer with uniform bins per dimension."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrl_vla.schema import (
    MetadataError,
    RobotDatasetMetadata,
    check_statistics,
)
from torchrl_vla.tokenizers.action_tokenizer import ActionTokenizerBase


class UniformActionTokenizer(ActionTokenizerBase):
    """Divide ``[low, high]`` into equal bins; a token decodes to the middle of its bin.

    Actions beyond the bounds take the outermost bin.

    Args:
        num_bins: bins per dimension.

    Keyword Args:
        low: lower bound, one for all dimensions or ``[A]``, in the action's unit.
        high: upper bound, likewise.
        action_dim: ``A``, to expand bounds that are one number.

    Raises:
        ValueError: ``num_bins < 1``, bounds of different shapes, not finite, or
            ``low >= high``.
        TokenError: an action is not finite, or a token is not in ``[0, num_bins)``.

    Examples:
        >>> import torch
        >>> tokenizer = UniformActionTokenizer(4, low=-1.0, high=1.0)
        >>> tokenizer.encode(torch.tensor([-1.0, -0.1, 0.0, 5.0]))
        tensor([0, 1, 2, 3])
        >>> tokenizer.decode(torch.tensor([0, 3]))
        tensor([-0.7500,  0.7500])

    Source: RT-1 and RT-2 (Brohan et al., 2022 and 2023).
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        num_bins: int,
        *,
        low: float | list[float] | Tensor,
        high: float | list[float] | Tensor,
        action_dim: int | None = None,
    ) -> None:
        super().__init__()
        if num_bins < 1:
            raise ValueError(
                f"UniformActionTokenizer: expected num_bins >= 1, got {num_bins}."
            )
        low = torch.as_tensor(low, dtype=torch.float32)
        high = torch.as_tensor(high, dtype=torch.float32)
        if action_dim is not None:
            low, high = (
                bound.repeat(action_dim) if bound.ndim == 0 else bound
                for bound in (low, high)
            )
        if low.shape != high.shape:
            raise ValueError(
                "UniformActionTokenizer: expected low and high of one shape, got "
                f"{tuple(low.shape)} and {tuple(high.shape)}."
            )
        bounds = {"low": low.reshape(-1), "high": high.reshape(-1)}
        advice = "Correct the bounds of the action."
        check_statistics("UniformActionTokenizer", bounds, advice=advice)
        self.num_bins = num_bins
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self._check_resolution()

    def _check_resolution(self) -> None:
        shape = (self.num_bins, *self.low.shape)
        bins = torch.arange(self.num_bins, device=self.low.device)
        bins = bins.view(-1, *[1] * self.low.ndim).expand(shape)
        if not torch.equal(self.encode(self.decode(bins)), bins):
            raise ValueError(
                f"UniformActionTokenizer: expected {self.num_bins} bins that float32 "
                f"can tell apart, got low={self.low.tolist()}, "
                f"high={self.high.tolist()}. Use fewer bins, or move the zero of the "
                "action nearer to its range."
            )

    @classmethod
    def from_metadata(
        cls, metadata: RobotDatasetMetadata, num_bins: int
    ) -> UniformActionTokenizer:
        """Build from the action bounds that the metadata declares.

        Raises:
            MetadataError: it declares none.
        """
        if metadata.action_low is None or metadata.action_high is None:
            raise MetadataError(
                "UniformActionTokenizer.from_metadata: expected action_low and "
                f"action_high in {metadata.dataset_id!r}, got none. Declare the "
                "bounds, or pass low= and high=."
            )
        low, high = (
            torch.tensor(metadata.action_low),
            torch.tensor(metadata.action_high),
        )
        return cls(num_bins, low=low, high=high)

    def to_config(self) -> dict[str, Any]:
        """Return the bounds and the number of bins, from which it is rebuilt."""
        low, high = self.low.tolist(), self.high.tolist()
        return self.config_of(num_bins=self.num_bins, low=low, high=high)

    @property
    def vocab_size(self) -> int:
        """The number of bins."""
        return self.num_bins

    @property
    def action_dim(self) -> int | None:
        """``A``, or None when one pair of bounds serves any number of dimensions."""
        return self.low.shape[0] if self.low.ndim else None

    def encode(self, actions: Tensor) -> Tensor:
        """Turn actions ``[..., A]`` into bins."""
        self._check_width(actions, self.action_dim)
        self._check_actions(actions)
        scaled = (actions - self.low).div_(self.high - self.low).mul_(self.num_bins)
        # Truncation is floor after the clamp: nothing is negative.
        return scaled.clamp_(0, self.num_bins - 1).long()

    def decode(self, tokens: Tensor) -> Tensor:
        """Turn bins ``[..., A]`` into their middles."""
        self._check_width(tokens, self.action_dim)
        middles = self._middles_of(tokens)
        return middles.mul_(self.high - self.low).add_(self.low)

    def _middles_of(self, tokens: Tensor) -> Tensor:
        """Return the middles of the bins of ``[0, 1]``; a lookup checks its index."""
        self._check_dtype(tokens)
        if tokens.device.type != "cpu":  # where a lookup raises nothing by name
            self._check_tokens(tokens, 0, self.num_bins)
        table = torch.arange(self.num_bins, dtype=self.low.dtype, device=tokens.device)
        table = table.add_(0.5).div_(self.num_bins)
        try:
            return table.index_select(0, tokens.reshape(-1)).view(tokens.shape)
        except IndexError:
            self._check_tokens(tokens, 0, self.num_bins)  # names the wrong one
            raise
