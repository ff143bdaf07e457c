"""Protocol of a policy's distribution over the chunks that it may choose."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torch.distributions import Distribution
from typing_extensions import Self

from torchrl_vla.schema import IS_DECISION_KEY, IS_EXECUTED_KEY, SchemaError


class ChunkDistribution(Distribution, ABC):
    """A distribution over whole chunks whose log-probability is a sum over its numbers.

    Abstract: what a policy's ``get_dist`` returns. A *choice* is what was drawn: the
    tokens, the chunk, or the path of denoising steps that led to it. Its
    log-probability comes in elements, one for each of the ``H * A`` numbers of the
    chunk, so that a loss can leave out the ones that were never executed. A subclass
    implements :meth:`sample`, :attr:`mode` and :meth:`element_log_probs`, and both
    :meth:`element_entropy` and ``entropy`` where there is a closed form. It is a
    ``torch.distributions.Distribution`` for TorchRL's losses, which look whether the
    class defines ``entropy`` and estimate it from samples where it does not.

    Args:
        batch_shape: ``*B``.
        sample_shape: the shape of one choice, e.g. ``[H, A]``.
    """

    arg_constraints: dict[str, Any] = {}
    #: Dimensions of the elements behind the batch: 2 for ``[H, A]``, 1 for tokens.
    element_dims: ClassVar[int] = 2
    _executed: Tensor | None = None
    _known: Tensor | None = None
    _refusal: str | None = None

    def __init__(self, batch_shape: torch.Size, sample_shape: torch.Size) -> None:
        super().__init__(
            torch.Size(batch_shape), torch.Size(sample_shape), validate_args=False
        )

    @abstractmethod
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw choices ``[*sample_shape, *B, *sample_shape]``, without a gradient."""

    @abstractmethod
    def sample_with_seeds(self, noise_seeds: Tensor) -> Tensor:
        """Draw one choice per seed, ``[*B, *sample_shape]``, without a gradient.

        Each is a function of its own seed and distribution alone, not of the batch
        nor of PyTorch's generator.

        Args:
            noise_seeds: int64 ``[*B]``.
        """

    @property
    @abstractmethod
    def mode(self) -> Tensor:
        """The choice of a policy that does not explore, ``[*B, *sample_shape]``."""

    @abstractmethod
    def element_log_probs(self, choice: Tensor) -> Tensor:
        """Return the log-probability's terms, ``[*B, H, A]``."""

    def element_entropy(self) -> Tensor:
        """Return the entropy's terms, ``[*B, H, A]``.

        Raises:
            NotImplementedError: there is no closed form.
        """
        raise NotImplementedError(
            f"{type(self).__name__}: expected a distribution whose entropy has a "
            "closed form, got one without. Set the loss's entropy coefficient to 0, or "
            "estimate it as the mean of -log_probs."
        )

    def log_prob(self, choice: Tensor) -> Tensor:
        """Return the log-probability of choices, ``[*B]``.

        Of choices that a batch says were executed in part (:meth:`restrict`), the other
        positions count as they did when the policy acted, and have no gradient.

        Raises:
            SchemaError: the batch does not say what was executed.
        """
        if self._refusal is not None:
            raise SchemaError(f"{type(self).__name__}: {self._refusal}")
        return self._sum(self.element_log_probs(choice), self._known, choice)

    def restrict(
        self, tensordict: TensorDictBase, element_log_probs_key: NestedKey
    ) -> Self:
        """Take from a batch which positions of the chunks were executed.

        TorchRL's losses compare ``log_prob(sample)`` with the ``log_probs`` of when the
        policy acted, over the whole chunk. With this their ratio is over the executed
        positions alone, as that of ``ChunkPPOLoss``.

        **Reads**, where they are, ``("next", "is_executed")`` bool ``[*B, H]``,
        ``is_decision`` bool ``[*B, 1]``, and the terms of the log-probability from when
        the policy acted, float ``[*B, H, A]``.

        Args:
            tensordict: the batch.
            element_log_probs_key: where the terms are.

        Returns:
            This distribution.
        """
        executed = tensordict.get(("next", IS_EXECUTED_KEY), None)
        self._known = tensordict.get(element_log_probs_key, None)
        is_step = tensordict.get(IS_DECISION_KEY, None) is not None
        if executed is None and is_step:
            self._refusal = (
                f"expected decisions with ('next', {IS_EXECUTED_KEY!r}), got the steps "
                f"of a rollout (there is {IS_DECISION_KEY!r}), most of which repeat an "
                "earlier step's sample. Select them: select_decisions(rollout, "
                "chunk_size)."
            )
        elif executed is not None and self._known is None:
            self._refusal = (
                f"expected the terms [*B, H, A] at {element_log_probs_key!r} beside "
                f"('next', {IS_EXECUTED_KEY!r}), got none. Keep what the policy wrote."
            )
        self._executed = executed
        return self

    def step_shape(self, elements: Tensor) -> torch.Size:
        """Return the shape ``[*B, H]`` of a mask of steps for these elements."""
        return elements.shape[:-1]

    def counted(self, choice: Tensor, elements: Tensor, steps: Tensor) -> Tensor:
        """Return which elements count where these steps were executed, bool.

        Args:
            choice: what was drawn.
            elements: terms of its log-probability.
            steps: bool ``[*B, H]``, True = executed.
        """
        return steps.unsqueeze(-1).expand_as(elements)

    def _sum(
        self,
        elements: Tensor,
        otherwise: Tensor | None = None,
        choice: Tensor | None = None,
    ) -> Tensor:
        """Sum the elements; positions that were not executed count otherwise."""
        if self._executed is not None:
            rest = elements.new_zeros(()) if otherwise is None else otherwise
            of = elements if choice is None else choice
            counted = self.counted(of, elements, self._executed)
            elements = torch.where(counted, elements, rest)
        return sum_elements(elements, self.element_dims)

    def _check_sample(self, choice: Tensor, dtype: torch.dtype) -> None:
        """Refuse what would be broadcast; leading sample dimensions are welcome."""
        expected = self._extended_shape()
        shape = choice.shape[max(choice.ndim - len(expected), 0) :]
        if shape != expected or choice.dtype != dtype:
            kind, got = (str(d).removeprefix("torch.") for d in (dtype, choice.dtype))
            raise SchemaError(
                f"{type(self).__name__}: expected a choice {kind} {list(expected)}, "
                f"got {got} {list(choice.shape)}. It is what this policy wrote at its "
                "sample_key, for this batch."
            )


def sum_elements(elements: Tensor, dims: int = 2) -> Tensor:
    """Sum ``[*B, H, A]`` to ``[*B]`` so that a row's bits do not depend on its batch.

    PyTorch adds in another order where the memory is laid out in another way.

    Args:
        elements: the terms.
        dims: how many dimensions at the end are summed; 1 for tokens ``[*B, L]``.
    """
    return elements.contiguous().flatten(-dims).sum(-1)
