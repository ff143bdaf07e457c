"""The distribution of a sequence of action tokens, each drawn after those before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from torchrl_vla.policies.chunk_distribution import ChunkDistribution
from torchrl_vla.policies.tokens.token_sampling import TokenSampling
from torchrl_vla.rollout import uniforms
from torchrl_vla.schema import SchemaError
from torchrl_vla.tokenizers import ChunkActionTokenizer, TokenGrammar

State = TypeVar("State")


class TokenDecoder(Protocol[State]):
    """Logits of the next token, for ``N`` rows, of all ``V`` action tokens."""

    def begin(self) -> tuple[Tensor, State]:
        """Return the first token's logits ``[N, V]`` and the state to go on from."""

    def step(self, state: State, tokens: Tensor) -> tuple[Tensor, State]:
        """Return the logits behind tokens int64 ``[N]``, and the new state."""

    def along(self, tokens: Tensor) -> Tensor:
        """Return the logits ``[N, T, V]`` of each of the tokens ``[N, T]`` in one pass.

        Those at ``t`` depend on the tokens before ``t`` alone.
        """


class TokenSequenceDistribution(ChunkDistribution, Generic[State]):
    """Tokens one after the other, each from those that the grammar allows.

    A token's distribution is that of the decoder's logits divided by the temperature,
    of the tokens that the grammar allows there, truncated (``top_k``, ``top_p``) and
    normalized again. The log-probability is of exactly that, computed in one pass over
    the whole sequence: the same computation when the policy acts and when it learns, so
    that the ratio of unchanged weights is 1 in the last bit. (Tokens are drawn with the
    decoder's state, whose logits may differ from those of the one pass by rounding.)
    A token that truncation would cut off today is kept, as in
    :class:`~torchrl_vla.policies.TokenDistribution`. End tokens have log-probability 0
    and no gradient.

    Args:
        decoder: gives logits.
        tokenizer: says ``L``, and which tokens count.
        batch_shape: ``*B``, of ``N`` rows.

    Keyword Args:
        sampling: temperature and truncation; None = none.
        grammar: which tokens may follow; None = the tokenizer's.
    """

    element_dims: ClassVar[int] = 1

    def __init__(
        self,
        decoder: TokenDecoder[State],
        tokenizer: ChunkActionTokenizer,
        batch_shape: torch.Size,
        *,
        sampling: TokenSampling | None = None,
        grammar: TokenGrammar | None = None,
    ) -> None:
        length = torch.Size([tokenizer.sequence_length])
        super().__init__(batch_shape, length)
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._sampling = TokenSampling() if sampling is None else sampling
        self._grammar = tokenizer.make_grammar() if grammar is None else grammar
        self._mode: Tensor | None = None

    @property
    def mode(self) -> Tensor:
        """The most likely token after each other, int64 ``[*B, L]``."""
        if self._mode is None:
            self._mode = self._generate(lambda log_probs, _: log_probs.argmax(-1))
        return self._mode

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw tokens, int64 ``[*sample_shape, *B, L]``."""

        def draw(log_probs: Tensor, _: int) -> Tensor:
            return log_probs.exp().multinomial(1).squeeze(-1)

        shape = torch.Size(sample_shape)
        drawn = [self._generate(draw) for _ in range(shape.numel())]
        return torch.stack(drawn).view(self._extended_shape(shape))

    def sample_with_seeds(self, noise_seeds: Tensor) -> Tensor:
        """Draw tokens, int64 ``[*B, L]``, by inverting the CDF of each."""
        numbers = uniforms(noise_seeds.reshape(-1), self.event_shape.numel())
        numbers = numbers.to(torch.float64)

        def draw(log_probs: Tensor, place: int) -> Tensor:
            cdf = log_probs.to(torch.float64).exp().cumsum(-1)
            # The CDF does not rise at a token that cannot be drawn: none is reached.
            return (cdf <= numbers[:, place, None] * cdf[:, -1:]).sum(-1)

        return self._generate(draw)

    def element_log_probs(self, choice: Tensor) -> Tensor:
        """Return the log-probability ``[*B, L]`` of each token.

        Raises:
            SchemaError: the tokens are not int64 ``[*B, L]``.
            TokenError: the grammar does not allow one; names its place.
        """
        self._check_sample(choice, torch.int64)
        if choice.shape != self._extended_shape():
            raise SchemaError(
                f"{type(self).__name__}: expected tokens {list(self._extended_shape())}"
                f", got {list(choice.shape)}. Ask about one sample per row at a time."
            )
        rows = choice.reshape(-1, choice.shape[-1])
        longest = int(self._tokenizer.is_token(rows).sum(-1).max())
        tokens = rows[:, :longest]
        allowed = self._grammar.allowed_along(tokens, finished=True)
        logits = self._decoder.along(tokens)
        log_probs = self._log_probs(logits, allowed, tokens.unsqueeze(-1))
        found = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        missing = rows.shape[-1] - longest
        return torch.nn.functional.pad(found, (0, missing)).view(choice.shape)

    def step_shape(self, elements: Tensor) -> torch.Size:
        """Return ``[*B, H]``."""
        return torch.Size((*elements.shape[:-1], self._tokenizer.chunk_size))

    def counted(self, choice: Tensor, elements: Tensor, steps: Tensor) -> Tensor:
        """Return which tokens count where these steps were executed, bool ``[*B, L]``.

        See :meth:`~torchrl_vla.tokenizers.ChunkActionTokenizer.counted`.
        """
        return self._tokenizer.counted(choice, steps)

    def _log_probs(
        self, logits: Tensor, allowed: Tensor, chosen: Tensor | None = None
    ) -> Tensor:
        """Return the normalized log-probabilities of tokens ``[..., V]``."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = logits / self._sampling.temperature
        logits = logits.masked_fill(~allowed, -math.inf)
        if self._sampling.truncates:
            kept = self._sampling.kept(logits)
            if chosen is not None:
                kept = kept.scatter(-1, chosen, True)
            logits = logits.masked_fill(~kept, -math.inf)
        return logits.log_softmax(-1)

    @torch.no_grad()
    def _generate(self, choose: Callable[[Tensor, int], Tensor]) -> Tensor:
        logits, state = self._decoder.begin()
        place = self._grammar.start(len(logits), logits.device)
        tokens: list[Tensor] = []
        while not self._grammar.is_end(place).all():
            if tokens:
                logits, state = self._decoder.step(state, tokens[-1])
            log_probs = self._log_probs(logits, self._grammar.allowed(place))
            tokens.append(choose(log_probs, len(tokens)))
            place = self._grammar.advance(place, tokens[-1])
        found = torch.stack(tokens, -1)
        missing = self.event_shape.numel() - len(tokens)
        end = self._tokenizer.end_token or 0
        found = torch.nn.functional.pad(found, (0, missing), value=end)
        return found.view(self._extended_shape())
