"""Action tokenizer of OpenVLA checkpoints: vocabulary tail, statistics, gripper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchrl_vla._internal.torchrl_spellings import torchrl_spellings
from torchrl_vla.schema import check_statistics
from torchrl_vla.tokenizers.vocab_tail import VocabTailActionTokenizer

_Numbers = Sequence[float] | Tensor


@torchrl_spellings(
    same={"gripper_binarize": (False,)},
    instead={
        "gripper_binarize": "gripper_threshold=0.0",
        "gripper_binarize_threshold": "gripper_threshold=",
    },
)
class OpenVLAActionTokenizer(VocabTailActionTokenizer):
    """Decode the tokens of an OpenVLA checkpoint to actions in robot space.

    Dimensions in ``norm_mask`` are mapped from ``[q01, q99]`` to ``[-1, 1]`` before
    encoding and back after decoding; those outside are grippers. The decode table is
    computed in float64 as the reference does and equals it bit for bit.

    Args:
        num_bins: edges per dimension.

    Keyword Args:
        norm_low: q01 per dimension ``[A]``.
        norm_high: q99 per dimension ``[A]``.
        norm_mask: bool ``[A]``, True = this dimension is normalized. None = all.
        full_vocab_size: as of :class:`VocabTailActionTokenizer`.
        gripper_threshold: decoded grippers become 1 above it, else -1; None = they
            stay as they are.
        gripper_invert: True = flip the sign of grippers.

    Raises:
        ValueError: sizes or statistics that are impossible.
        TokenError: an action is not finite, a token is not an action's, or the last
            dimension is not ``A``.

    Examples:
        >>> tokenizer = OpenVLAActionTokenizer(3, norm_low=[0.0], norm_high=[4.0])
        >>> tokenizer.encode(torch.tensor([[0.0], [3.0]]))
        tensor([[2],
                [1]])
        >>> tokenizer.decode(torch.tensor([[2], [1]]))
        tensor([[1.],
                [3.]])

    Source: OpenVLA (Kim et al., 2024, arXiv:2406.09246).
    """

    norm_low: Tensor
    norm_high: Tensor
    norm_mask: Tensor

    def __init__(
        self,
        num_bins: int = 256,
        *,
        norm_low: _Numbers,
        norm_high: _Numbers,
        norm_mask: Sequence[bool] | Tensor | None = None,
        full_vocab_size: int | None = None,
        gripper_threshold: float | None = None,
        gripper_invert: bool = False,
    ) -> None:
        super().__init__(num_bins, full_vocab_size=full_vocab_size)
        self.gripper_threshold = gripper_threshold
        self.gripper_invert = gripper_invert
        low = torch.as_tensor(norm_low, dtype=torch.float64)
        high = torch.as_tensor(norm_high, dtype=torch.float64)
        mask = torch.ones_like(low) if norm_mask is None else torch.as_tensor(norm_mask)
        mask = mask.bool()
        if not low.shape == high.shape == mask.shape or low.ndim != 1:
            raise ValueError(
                "OpenVLAActionTokenizer: expected norm_low, norm_high and norm_mask "
                f"of one shape [A], got {tuple(low.shape)}, {tuple(high.shape)}, "
                f"{tuple(mask.shape)}."
            )
        advice = "Take norm_low and norm_high from the checkpoint's norm_stats."
        quantiles = {"q01": low, "q99": high}
        check_statistics("OpenVLAActionTokenizer", quantiles, mask=mask, advice=advice)
        self.register_buffer("norm_low", low)
        self.register_buffer("norm_high", high)
        self.register_buffer("norm_mask", mask)
        self.actions_of_token = self._decode_table()

    @classmethod
    def from_norm_stats(
        cls, norm_stats: Mapping[str, Any], unnorm_key: str, **options: Any
    ) -> OpenVLAActionTokenizer:
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
                "OpenVLAActionTokenizer.from_norm_stats: expected unnorm_key of "
                f"{sorted(norm_stats)}, got {unnorm_key!r}."
            )
        stats = norm_stats[unnorm_key]["action"]
        return cls(
            norm_low=stats["q01"],
            norm_high=stats["q99"],
            norm_mask=stats.get("mask"),
            **options,
        )

    def to_config(self) -> dict[str, Any]:
        """Return sizes, statistics and gripper options, from which it is rebuilt."""
        return super().to_config() | {
            "norm_low": self.norm_low.tolist(),
            "norm_high": self.norm_high.tolist(),
            "norm_mask": self.norm_mask.tolist(),
            "gripper_threshold": self.gripper_threshold,
            "gripper_invert": self.gripper_invert,
        }

    @property
    def action_dim(self) -> int:
        """``A``, the number of dimensions of the statistics."""
        return len(self.norm_low)

    def encode(self, actions: Tensor) -> Tensor:
        """Turn actions ``[..., A]`` of robot space into tokens."""
        self._check_width(actions, self.action_dim)
        low = self.norm_low.to(actions.dtype)
        scale = self.norm_high.to(actions.dtype) - low + 1e-8
        scaled = (actions - low).mul_(2.0).div_(scale).sub_(1.0)
        return super().encode(torch.where(self.norm_mask, scaled, actions))

    def _decode_table(self) -> Tensor:
        """Compute every token's action ``[A, num_bins]`` in float64, return float32."""
        edges = np.linspace(-1.0, 1.0, self.num_bins)
        actions = ((edges[:-1] + edges[1:]) / 2.0)[
            self._middle_of_token().cpu().numpy()
        ]
        low, high, mask = (
            value.cpu().numpy()[:, None]
            for value in (self.norm_low, self.norm_high, self.norm_mask)
        )
        scaled = 0.5 * (actions + 1.0) * (high - low + 1e-8) + low
        table = np.where(mask, scaled, actions)
        if self.gripper_threshold is not None:
            binary = np.where(table > self.gripper_threshold, 1.0, -1.0)
            table = np.where(mask, table, binary)
        if self.gripper_invert:
            table = np.where(mask, table, -table)
        return torch.from_numpy(table).float().to(self.norm_low.device)
