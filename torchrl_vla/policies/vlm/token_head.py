"""Autoregressive token head: action tokens written behind the prompt, one by one."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from torchrl_vla.policies.tiny.backbone import fill_rows
from torchrl_vla.policies.tokens.sequence_policy import TokenSequenceVLAWrapper
from torchrl_vla.policies.tokens.token_sampling import TokenSampling
from torchrl_vla.policies.vlm.prefix import Prefix
from torchrl_vla.policies.vlm.trunk import VLATrunk
from torchrl_vla.policies.vlm.vlm_policy import VLMPolicy
from torchrl_vla.schema import TokenError
from torchrl_vla.tokenizers import ActionTokenizerBase

#: Where the action tokens' embeddings and logits are: weights of their own, or the last
#: rows of the language model's vocabulary.
Vocabulary: TypeAlias = Literal["own", "tail"]


class ActionVocabulary(nn.Module):
    """Embed action tokens, and read their logits off a trunk's states.

    The token in front of the first action token is a learned one; a state that the
    trunk does not read is added to it.

    Args:
        trunk: gives the sizes.
        size: ``V`` action tokens.
        vocabulary: whose weights are used.

    Raises:
        TokenError: the tail of the language model's vocabulary has special tokens, or
            fewer tokens than ``size``.
    """

    def __init__(self, trunk: VLATrunk, size: int, vocabulary: Vocabulary) -> None:
        super().__init__()
        width = trunk.hidden_size
        self.size = size
        self.first = nn.Parameter(0.02 * torch.randn(width))
        state_dim = trunk.config.state_dim if trunk.config.state == "head" else None
        self.state = None if state_dim is None else nn.Linear(state_dim, width)
        self.embedding = self.out = None
        if vocabulary == "own":
            self.embedding = nn.Embedding(size, width)
            self.out = nn.Linear(width, size, bias=False)
            # As large as the words are, so that the trunk is asked in its own scale.
            words = trunk.model.get_input_embeddings().weight
            nn.init.normal_(self.embedding.weight, std=float(words.detach().std()))
        else:
            _check_tail(trunk, size)

    def begin(self, trunk: VLATrunk, tensordict: TensorDictBase, rows: int) -> Tensor:
        """Return the embedding in front of the first action token, ``[N, 1, F]``."""
        first = self.first.expand(rows, 1, -1)
        if self.state is None:
            return first
        state = trunk.rows.state(tensordict).to(first.device)
        return first + self.state(fill_rows(state))[:rows, None]

    def embed(self, trunk: VLATrunk, tokens: Tensor) -> Tensor:
        """Return the embeddings of action tokens, ``[N, T, F]``."""
        if self.embedding is None:
            return trunk.embed(tokens + (trunk.vocab_size - self.size))
        return self.embedding(tokens)

    def logits(self, trunk: VLATrunk, states: Tensor) -> Tensor:
        """Return the logits of the action tokens, float32 ``[N, T, V]``."""
        rows = fill_rows(states.flatten(0, 1))
        if self.out is None:
            logits = trunk.logits(rows)[..., -self.size :]
        else:
            logits = self.out(rows)
        return logits[: states.shape[:2].numel()].view(*states.shape[:2], self.size)


class VLMTokenPolicy(VLMPolicy, TokenSequenceVLAWrapper):
    """Write action tokens behind the prompt with a vision-language trunk.

    The tokens of RT-2 and OpenVLA (bins, step by step), FAST or BEAST. They are
    generated with the keys and values of what came before; log-probabilities come from
    one pass over the whole sequence. **Reads** images, instruction and, where the
    trunk's configuration has a ``state_dim``, the state. **Writes** what
    :class:`~torchrl_vla.policies.TokenSequenceVLAWrapper` writes.

    Args:
        trunk: is trained in place, as far as its weights require a gradient.

    Keyword Args:
        action_dim: ``A``.
        chunk_size: ``H``.
        action_tokenizer: of chunks, or of numbers, which are then written one by one.
        sampling: temperature and truncation; may be set later.
        vocabulary: ``"own"`` = embeddings and output weights of the action tokens' own;
            ``"tail"`` = the last rows of the language model's, as RT-2 and OpenVLA do.

    Raises:
        TokenError: the tail has special tokens in use, or is too short.
        ValueError: the tokenizer is of other chunks, or there is no such vocabulary.

    Source: RT-2 (Brohan et al., arXiv:2307.15818), OpenVLA (Kim et al.,
    arXiv:2406.09246), pi0-FAST (Pertsch et al., arXiv:2501.09747).
    """

    def __init__(
        self,
        trunk: VLATrunk,
        *,
        action_dim: int,
        chunk_size: int,
        action_tokenizer: ActionTokenizerBase,
        sampling: TokenSampling | None = None,
        vocabulary: Vocabulary = "own",
    ) -> None:
        if vocabulary not in get_args(Vocabulary):
            raise ValueError(
                f"VLMTokenPolicy: expected vocabulary of {get_args(Vocabulary)}, got "
                f"{vocabulary!r}."
            )
        super().__init__(
            action_dim=action_dim,
            chunk_size=chunk_size,
            action_tokenizer=action_tokenizer,
            sampling=sampling,
            keys=trunk.keys,
        )
        self.trunk = trunk
        self.vocabulary = vocabulary
        self.words = ActionVocabulary(trunk, self.vocab_size, vocabulary)

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments without the trunk, ``sampling`` as it is now."""
        return {
            **super().config,
            "action_tokenizer": self.action_tokenizer,
            "sampling": self.sampling,
            "vocabulary": self.vocabulary,
        }

    def make_decoder(self, tensordict: TensorDictBase) -> TrunkDecoder:
        """Encode the observations; the prompt is encoded once for all tokens."""
        prefix = self.trunk.encode(tensordict)
        first = self.words.begin(self.trunk, tensordict, len(prefix))
        return TrunkDecoder(self.trunk, self.words, prefix, first)


class TrunkDecoder:
    """Logits of the next action token behind encoded prompts.

    Args:
        trunk: runs the tokens.
        words: the action tokens' embeddings and logits.
        prefix: the encoded prompts, ``N`` rows.
        first: what stands in front of the first token, ``[N, 1, F]``.
    """

    def __init__(
        self, trunk: VLATrunk, words: ActionVocabulary, prefix: Prefix, first: Tensor
    ) -> None:
        self._trunk, self._words = trunk, words
        self._prefix, self._first = prefix, first

    def begin(self) -> tuple[Tensor, Prefix]:
        """Return the first token's logits, and the prefix behind it."""
        return self._next(self._prefix, self._first)

    def step(self, state: Prefix, tokens: Tensor) -> tuple[Tensor, Prefix]:
        """Return the logits behind tokens ``[N]``; what came before is kept."""
        return self._next(state, self._words.embed(self._trunk, tokens.unsqueeze(-1)))

    def along(self, tokens: Tensor) -> Tensor:
        """Return the logits of all tokens ``[N, T]`` from one pass."""
        before = self._words.embed(self._trunk, tokens[:, :-1])
        inputs = torch.cat([self._first, before], 1)
        states, _ = self._trunk.extend(self._prefix, inputs, causal=True)
        return self._words.logits(self._trunk, states)

    def _next(self, prefix: Prefix, embeddings: Tensor) -> tuple[Tensor, Prefix]:
        states, longer = self._trunk.extend(prefix, embeddings, causal=True)
        return self._words.logits(self._trunk, states)[:, -1], longer


def _check_tail(trunk: VLATrunk, size: int) -> None:
    """Refuse to overwrite special tokens at the end of the vocabulary."""
    first = trunk.vocab_size - size
    tokenizer = trunk.tokenizer
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    used = sorted(token for token in special if token >= first)
    if first < 0 or used:
        names = tokenizer.convert_ids_to_tokens(used[:5])
        raise TokenError(
            f"VLMTokenPolicy: expected {size} tokens free of special ones at the end "
            f"of the vocabulary of {trunk.vocab_size} (vocabulary='tail'), got "
            f"{len(used)} in use {names}. Pass vocabulary='own', which gives the "
            "action tokens weights of their own."
        )
