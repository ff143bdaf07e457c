"""States written out as the numbers of their bins."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_vla.policies.vlm.processors import Part

#: Bins of one number, and where the outermost ones end, in model space.
NUM_BINS, LIMIT = 256, 3.0


class StateText:
    """Write states as text, ``" State: 12 250 ..."``, without a tokenizer per step.

    Each bin's number is tokenized once; a state is the row of its numbers' tokens. The
    numbers are filled up to one length with zeros in front, so that there is no padding
    in between.

    Args:
        state_dim: ``S``.
        tokenizer: of the language model.

    Source: Black et al., "pi0.5" (arXiv:2504.16054), which writes 256 bins into the
    prompt.
    """

    def __init__(self, state_dim: int, tokenizer: Part) -> None:
        self._state_dim = state_dim
        opening = tokenizer(" State:", add_special_tokens=False)["input_ids"]
        digits = [
            tokenizer(character, add_special_tokens=False)["input_ids"]
            for character in " 0123456789"
        ]
        width = max(map(len, digits))
        assert width == min(map(len, digits)), "a digit is one token"
        rows = [
            sum((digits[int(c) + 1] for c in f"{number:03d}"), digits[0])
            for number in range(NUM_BINS)
        ]
        self._opening, self._numbers = torch.tensor(opening), torch.tensor(rows)

    def tokens(self, state: Tensor) -> Tensor:
        """Return the tokens int64 ``[N, T]`` of states ``[N, S]`` in model space."""
        share = (state + LIMIT) / (2 * LIMIT)
        bins = (share * NUM_BINS).floor().clamp(0, NUM_BINS - 1).long()
        numbers = self._numbers.to(state.device)[bins].flatten(1)
        opening = self._opening.to(state.device).expand(len(state), -1)
        return torch.cat([opening, numbers], 1)
