"""Tiny policy that writes action tokens one after the other."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from torchrl_vla.policies.tiny.backbone import BackboneConfig, TinyBackbone, fill_rows
from torchrl_vla.policies.tiny.tiny_policy import TinyPolicy, keys_read
from torchrl_vla.policies.tokens.sequence_policy import TokenSequenceVLAWrapper
from torchrl_vla.policies.tokens.token_sampling import TokenSampling
from torchrl_vla.schema import InstructionTable, ObservationKeys
from torchrl_vla.tokenizers import ActionTokenizerBase


class TinySequenceVLA(TinyPolicy, TokenSequenceVLAWrapper):
    """Predict a chunk as a sequence of tokens: FAST, BEAST, or bins step by step.

    What :class:`TinyTokenVLA` is to bins that are independent of each other. A
    recurrent cell begins with the backbone's features and reads the tokens so far.
    **Reads** what :class:`TinyVLA` reads; **writes** what
    :class:`TokenSequenceVLAWrapper` writes.

    Keyword Args:
        action_dim: ``A``.
        chunk_size: ``H``.
        action_tokenizer: of chunks, or of numbers, which are then written one by one.
        sampling: temperature and truncation; may be set later.
        backbone: sizes, cameras and image sizes.
        keys: observation entries that the policy reads.
        instructions: table for instruction ids; text needs none.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl_vla.tokenizers import BEASTActionTokenizer
        >>> tokenizer = BEASTActionTokenizer(
        ...     chunk_size=8, num_basis=4, low=[-1.0, -1.0], high=[1.0, 1.0]
        ... )
        >>> policy = TinySequenceVLA(
        ...     action_dim=2,
        ...     chunk_size=8,
        ...     action_tokenizer=tokenizer,
        ...     backbone=BackboneConfig(cameras=(), state_dim=5),
        ... )
        >>> data = TensorDict(
        ...     observation=TensorDict(state=torch.zeros(5)),
        ...     language_instruction="pick",
        ... )
        >>> policy(data)["action_tokens"].shape, data["action_chunk"].shape
        (torch.Size([8]), torch.Size([8, 2]))
    """

    def __init__(
        self,
        *,
        action_dim: int,
        chunk_size: int,
        action_tokenizer: ActionTokenizerBase,
        sampling: TokenSampling | None = None,
        backbone: BackboneConfig = BackboneConfig(),
        keys: ObservationKeys = ObservationKeys(),
        instructions: InstructionTable | None = None,
    ) -> None:
        keys = keys_read(keys, backbone)
        super().__init__(
            action_dim=action_dim,
            chunk_size=chunk_size,
            action_tokenizer=action_tokenizer,
            sampling=sampling,
            keys=keys,
        )
        width = backbone.hidden
        self.backbone = TinyBackbone(width, backbone, keys)
        # The last embedding stands in front of the first token.
        self.embedding = nn.Embedding(self.vocab_size + 1, width)
        self.places = nn.Embedding(self.action_tokenizer.sequence_length, width)
        self.cell = nn.GRUCell(width, width)
        self.out = nn.Linear(width, self.vocab_size)
        self.instructions = instructions

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments, ``sampling`` as it is now."""
        return {
            **super().config,
            "action_tokenizer": self.action_tokenizer,
            "sampling": self.sampling,
        }

    def make_decoder(self, tensordict: TensorDictBase) -> RecurrentDecoder:
        """Encode the observations; the tokens are read behind them."""
        features = self.backbone(tensordict)
        return RecurrentDecoder(self, features.reshape(-1, features.shape[-1]))


class RecurrentDecoder:
    """Logits of the next token from a recurrent cell.

    Args:
        policy: whose cell and embeddings are used.
        features: of the observations, ``[N, F]``.
    """

    def __init__(self, policy: TinySequenceVLA, features: Tensor) -> None:
        self._policy = policy
        self._features = features

    def begin(self) -> tuple[Tensor, tuple[Tensor, int]]:
        """Return the first token's logits, the cell's state and the next place."""
        start = torch.full(
            (len(self._features),), self._policy.vocab_size, device=self._device
        )
        return self.step((fill_rows(self._features), 0), start)

    def step(
        self, state: tuple[Tensor, int], tokens: Tensor
    ) -> tuple[Tensor, tuple[Tensor, int]]:
        """Return the logits behind tokens ``[N]``, and the new state."""
        hidden, place = state
        policy = self._policy
        words = policy.embedding(fill_rows(tokens)) + policy.places.weight[place]
        hidden = policy.cell(words, hidden)
        return policy.out(hidden)[: len(tokens)], (hidden, place + 1)

    def along(self, tokens: Tensor) -> Tensor:
        """Return the logits of all tokens ``[N, T]``."""
        logits, state = self.begin()
        found = [logits]
        for token in tokens[:, :-1].unbind(-1):
            logits, state = self.step(state, token)
            found.append(logits)
        return torch.stack(found, 1)

    @property
    def _device(self) -> torch.device:
        return self._features.device
