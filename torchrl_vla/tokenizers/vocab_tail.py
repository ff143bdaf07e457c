"""Action tokenizer on the last ids of a language model's vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrl_vla._internal.torchrl_spellings import torchrl_spellings
from torchrl_vla.tokenizers.action_tokenizer import ActionTokenizerBase

_OPENVLA = "the same argument of OpenVLAActionTokenizer"


@torchrl_spellings(
    same={
        "norm_low": (None,),
        "norm_high": (None,),
        "norm_mask": (None,),
        "gripper_binarize": (False,),
        "gripper_invert": (False,),
    },
    instead=dict.fromkeys(
        ("norm_low", "norm_high", "norm_mask", "gripper_invert"), _OPENVLA
    )
    | {
        "gripper_binarize": "OpenVLAActionTokenizer(gripper_threshold=0.0)",
        "gripper_binarize_threshold": "OpenVLAActionTokenizer(gripper_threshold=...)",
    },
)
class VocabTailActionTokenizer(ActionTokenizerBase):
    """Map actions in ``[-1, 1]`` to the tail of a vocabulary, as OpenVLA does.

    ``num_bins`` *edges* span ``[-1, 1]``; the token counts down from the end of the
    vocabulary, ``id = vocabulary - digitize(action)``, and decodes to the middle
    between two edges. :class:`OpenVLAActionTokenizer` adds a checkpoint's
    normalization.

    Note:
        There is one middle fewer than there are tokens. The lowest two tokens decode
        to the same action, and only an action of 1 or above encodes to the lowest.

    Args:
        num_bins: edges per dimension.

    Keyword Args:
        full_vocab_size: size of the language model's vocabulary, for tokens that are
            its own ids; None = tokens are offsets in ``[0, num_bins)``.

    Raises:
        ValueError: not ``2 <= num_bins <= full_vocab_size``.
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
        self, num_bins: int = 256, *, full_vocab_size: int | None = None
    ) -> None:
        super().__init__()
        if num_bins < 2 or (full_vocab_size or num_bins) < num_bins:
            raise ValueError(
                f"{type(self).__name__}: expected 2 <= num_bins <= full_vocab_size, "
                f"got num_bins={num_bins}, full_vocab_size={full_vocab_size}."
            )
        self.num_bins = num_bins
        self.full_vocab_size = full_vocab_size
        edges = torch.linspace(-1.0, 1.0, num_bins)
        middles = (edges[:-1] + edges[1:]) / 2.0
        # Every token's action: float32 [num_bins], or [A, num_bins] in a subclass.
        self.register_buffer("actions_of_token", middles[self._middle_of_token()])
        edges[0] = -torch.inf  # actions below the range belong to the first bin
        self.register_buffer("edges", edges)

    def _middle_of_token(self) -> Tensor:
        """Return each token's index among the ``num_bins - 1`` middles."""
        below = self.num_bins - torch.arange(self.num_bins)
        return (below - 1).clamp(0, self.num_bins - 2)

    def to_config(self) -> dict[str, Any]:
        """Return the sizes, from which it is rebuilt."""
        return self.config_of(
            num_bins=self.num_bins, full_vocab_size=self.full_vocab_size
        )

    @property
    def action_dim(self) -> int | None:
        """``A``, or None when the tokens serve any number of dimensions."""
        return None

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
        self._check_width(actions, self.action_dim)
        self._check_actions(actions)
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
        """Turn tokens ``[..., A]`` into actions; one lookup on the tokens' device."""
        first = self.vocab_size - self.num_bins
        self._check_width(tokens, self.action_dim)
        self._check_tokens(tokens, first, self.vocab_size)
        offset = tokens - first if first else tokens
        if self.action_dim is not None:
            dims = torch.arange(self.action_dim, device=tokens.device)
            offset = offset + dims * self.num_bins
        flat = self.actions_of_token.view(-1).index_select(0, offset.reshape(-1))
        return flat.view(tokens.shape)
