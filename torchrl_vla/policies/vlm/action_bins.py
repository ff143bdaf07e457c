"""Action tokens by which an insulated trunk learns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchrl_vla.policies.tiny.backbone import fill_rows
from torchrl_vla.policies.vlm.prefix import Prefix
from torchrl_vla.policies.vlm.trunk import VLATrunk

#: Where the outermost bins end, in model space.
LIMIT = 3.0


class ActionBins(nn.Module):
    """Let a trunk write a chunk as tokens, one per number, each given those before it.

    The tokens have embeddings and a classifier of their own, so nothing in the
    vocabulary is overwritten. They stand behind the prompt, where an expert, which
    reads the prompt alone, does not see them.

    Args:
        num_bins: tokens per number, of equal width in ``[-3, 3]``.
        hidden_size: ``F`` of the trunk.
    """

    def __init__(self, num_bins: int, hidden_size: int) -> None:
        super().__init__()
        self.num_bins = num_bins
        self.embedding = nn.Embedding(num_bins + 1, hidden_size)  # the last begins
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.out = nn.Linear(hidden_size, num_bins)

    def encode(self, chunk: Tensor) -> Tensor:
        """Return the tokens of numbers in model space, int64 of the same shape."""
        share = (chunk + LIMIT) / (2 * LIMIT)
        return (share * self.num_bins).floor().clamp(0, self.num_bins - 1).long()

    def surprise(self, trunk: VLATrunk, prefix: Prefix, chunk: Tensor) -> Tensor:
        """Return the negative log-probability of each token, ``[N, H, A]``.

        Args:
            trunk: writes them.
            prefix: of ``N`` observations.
            chunk: the target ``[N, H, A]``, in model space.
        """
        tokens = self.encode(chunk).flatten(1)
        begin = torch.full_like(tokens[:, :1], self.num_bins)
        seen = self.embedding(torch.cat([begin, tokens[:, :-1]], 1))
        states, _ = trunk.extend(prefix, seen, causal=True)
        rows = fill_rows(states.flatten(0, 1))
        logits = self.out(rows)[: tokens.numel()].log_softmax(-1)
        return -logits.gather(-1, tokens.view(-1, 1)).view_as(chunk)
