"""The last ids of a language model's vocabulary as actions (OpenVLA)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchrl_vla.tokenizers.action_tokenizer import ActionTokenizerBase


class VocabTailActionTokenizer(ActionTokenizerBase):
    """Map actions to the tail of a vocabulary exactly as OpenVLA does.

    ``num_bins`` *edges* span ``[-1, 1]``; the token counts down from the end of the
    vocabulary, ``id = vocabulary - digitize(action)``, and decodes to the middle
    between two edges. The surprise: there is one middle fewer than there are tokens,
    so the lowest two decode to the same action, and only an action of exactly 1 or
    above encodes to the lowest. With statistics, dimensions in
    ``norm_mask`` are mapped from ``[q01, q99]`` to ``[-1, 1]`` first. Decoding is one
    lookup in a table that was computed in float64 as the reference does, so it is
    equal to it bit for bit and stays on the tokens' device.

    Args:
        num_bins: edges per dimension.

    Keyword Args:
        full_vocab_size: size of the language model's vocabulary, for tokens that are
            its own ids; None = tokens are offsets in ``[0, num_bins)``.
        norm_low: q01 per dimension ``[A]``.
        norm_high: q99 per dimension ``[A]``.
        norm_mask: bool ``[A]``, True = this dimension is normalized (grippers usually
            are not). All True by default.
        gripper_binarize: True = decoded dimensions outside the mask become -1 or 1.
        gripper_binarize_threshold: above it is 1.
        gripper_invert: True = flip the sign of dimensions outside the mask.

    Raises:
        ValueError: sizes or statistics that cannot be.
        TokenError: an action is not finite, or a token is not an action's.

    Examples:
        >>> import torch
        >>> tokenizer = VocabTailActionTokenizer(256, full_vocab_size=32000)
        >>> tokens = tokenizer.encode(torch.tensor([-1.0, 0.0, 1.0]))
        >>> tokens
        tensor([31999, 31872, 31744])
        >>> tokenizer.decode(tokens)
        tensor([-0.9961,  0.0000,  0.9961])

    Source: OpenVLA (Kim et al., 2024, arXiv:2406.09246).
    """

    edges: Tensor
    actions_of_token: Tensor

    def __init__(
        self,
        num_bins: int = 256,
        *,
        full_vocab_size: int | None = None,
        norm_low: Tensor | None = None,
        norm_high: Tensor | None = None,
        norm_mask: Tensor | None = None,
        gripper_binarize: bool = False,
        gripper_binarize_threshold: float = 0.0,
        gripper_invert: bool = False,
    ) -> None:
        super().__init__()
        if num_bins < 2 or (full_vocab_size or num_bins) < num_bins:
            raise ValueError(
                "VocabTailActionTokenizer: expected 2 <= num_bins <= full_vocab_size, "
                f"got num_bins={num_bins}, full_vocab_size={full_vocab_size}."
            )
        self.num_bins = num_bins
        self.full_vocab_size = full_vocab_size
        self.gripper_binarize = gripper_binarize
        self.gripper_binarize_threshold = gripper_binarize_threshold
        self.gripper_invert = gripper_invert
        self._set_statistics(norm_low, norm_high, norm_mask)
        edges = torch.linspace(-1.0, 1.0, num_bins)
        self.register_buffer("actions_of_token", self._decode_table(edges))
        edges[0] = -torch.inf  # actions below the range belong to the first bin
        self.register_buffer("edges", edges)

    def _set_statistics(
        self, low: Tensor | None, high: Tensor | None, mask: Tensor | None
    ) -> None:
        if low is None or high is None:
            if self.gripper_binarize or self.gripper_invert:
                raise ValueError(
                    "VocabTailActionTokenizer: expected norm_low, norm_high and "
                    "norm_mask beside gripper_binarize or gripper_invert, got none. "
                    "The mask says which dimensions are grippers."
                )
            if low is not high:
                raise ValueError(
                    "VocabTailActionTokenizer: expected both of norm_low and "
                    f"norm_high, got norm_low={low} and norm_high={high}."
                )
            self.norm_low = self.norm_high = self.norm_mask = None
            return
        low = torch.as_tensor(low, dtype=torch.float64)
        high = torch.as_tensor(high, dtype=torch.float64)
        mask = torch.ones_like(low) if mask is None else torch.as_tensor(mask)
        mask = mask.bool()
        if not low.shape == high.shape == mask.shape or low.ndim != 1:
            raise ValueError(
                "VocabTailActionTokenizer: expected norm_low, norm_high and norm_mask "
                f"of one shape [A], got {tuple(low.shape)}, {tuple(high.shape)}, "
                f"{tuple(mask.shape)}."
            )
        if not (low.isfinite() & high.isfinite() & ((low <= high) | ~mask)).all():
            raise ValueError(
                "VocabTailActionTokenizer: expected finite norm_low <= norm_high where "
                f"norm_mask is True, got {low.tolist()} and {high.tolist()}."
            )
        self.register_buffer("norm_low", low)
        self.register_buffer("norm_high", high)
        self.register_buffer("norm_mask", mask)

    @classmethod
    def from_norm_stats(
        cls, norm_stats: Mapping[str, Any], unnorm_key: str, **options: Any
    ) -> VocabTailActionTokenizer:
        """Build from the ``norm_stats`` of an OpenVLA checkpoint.

        Args:
            norm_stats: dataset name to ``{"action": {"q01", "q99", "mask"}}``.
            unnorm_key: the dataset whose statistics apply.
            **options: the other arguments of the class.

        Raises:
            KeyError: there is no such dataset in ``norm_stats``.
        """
        if unnorm_key not in norm_stats:
            raise KeyError(
                "VocabTailActionTokenizer.from_norm_stats: expected unnorm_key of "
                f"{sorted(norm_stats)}, got {unnorm_key!r}."
            )
        stats = norm_stats[unnorm_key]["action"]
        return cls(
            norm_low=stats["q01"],
            norm_high=stats["q99"],
            norm_mask=stats.get("mask"),
            **options,
        )

    @property
    def vocab_size(self) -> int:
        """Size of the window, or of the whole vocabulary for its own ids."""
        return self.full_vocab_size or self.num_bins

    @property
    def is_action_token(self) -> Tensor | None:
        """The tail of the vocabulary, bool ``[V]``; None where tokens are offsets."""
        first = self.vocab_size - self.num_bins
        if not first:
            return None
        return torch.arange(self.vocab_size, device=self.edges.device) >= first

    def encode(self, actions: Tensor) -> Tensor:
        """Turn actions ``[..., A]`` into tokens."""
        self._check_width(actions, self._width)
        self._check_actions(actions)
        if self.norm_low is not None:
            low = self.norm_low.to(actions.dtype)
            scale = self.norm_high.to(actions.dtype) - low + 1e-8
            scaled = (actions - low).mul_(2.0).div_(scale).sub_(1.0)
            actions = torch.where(self.norm_mask, scaled, actions)
        # By way of int32: to it and from it the conversion is vectorized.
        return torch.rsub(self._digitize(actions).int(), self.vocab_size).long()

    def _digitize(self, actions: Tensor) -> Tensor:
        """Return how many edges are at or below each action, in ``[1, num_bins]``.

        The edges are uniform, so rounding finds the nearest one, and comparing the
        action with that edge settles on which side it is. This is exact on the edges
        and their neighbours too, whatever the edges' own rounding. (A search over the
        edges costs tens of times as much.) Whole numbers in the actions' dtype.
        """
        actions = actions.to(torch.promote_types(actions.dtype, self.edges.dtype))
        last = self.num_bins - 1
        nearest = (actions * (0.5 * last)).add_(0.5 * last).round_().clamp_(0, last)
        edge = self.edges.index_select(0, nearest.view(-1).int())
        return nearest.add_(edge.view(nearest.shape).to(actions.dtype).le_(actions))

    def decode(self, tokens: Tensor) -> Tensor:
        """Turn tokens ``[..., A]`` into actions."""
        first = self.vocab_size - self.num_bins
        self._check_width(tokens, self._width)
        self._check_tokens(tokens, first, self.vocab_size)
        offset = tokens - first if first else tokens
        if self._width is not None:
            rows = torch.arange(self._width, device=tokens.device) * self.num_bins
            offset = offset + rows
        flat = self.actions_of_token.view(-1).index_select(0, offset.reshape(-1))
        return flat.view(tokens.shape)

    @property
    def _width(self) -> int | None:
        return None if self.norm_low is None else len(self.norm_low)

    def _decode_table(self, edges: Tensor) -> Tensor:
        """Compute every token's action: float32 ``[num_bins]`` or ``[A, num_bins]``."""
        digitized = self.num_bins - np.arange(self.num_bins)
        index = np.clip(digitized - 1, 0, self.num_bins - 2)
        if self.norm_low is None:
            return ((edges[:-1] + edges[1:]) / 2.0)[torch.from_numpy(index)]
        exact_edges = np.linspace(-1.0, 1.0, self.num_bins)
        actions = ((exact_edges[:-1] + exact_edges[1:]) / 2.0)[index]
        low, high, mask = (
            value.numpy()[:, None]
            for value in (self.norm_low, self.norm_high, self.norm_mask)
        )
        scaled = 0.5 * (actions + 1.0) * (high - low + 1e-8) + low
        table = np.where(mask, scaled, actions)
        if self.gripper_binarize:
            binary = np.where(table > self.gripper_binarize_threshold, 1.0, -1.0)
            table = np.where(mask, table, binary)
        if self.gripper_invert:
            table = np.where(mask, table, -table)
        return torch.from_numpy(table).float()
