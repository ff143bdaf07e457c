"""Protocol of a policy's distribution over the chunks that it may choose."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from torchrl_vla.schema import SchemaError


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
        """Return the log-probability of choices, ``[*B]``."""
        return sum_elements(self.element_log_probs(choice))

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


def sum_elements(elements: Tensor) -> Tensor:
    """Sum ``[*B, H, A]`` to ``[*B]`` so that a row's bits do not depend on its batch.

    PyTorch adds in another order where the memory is laid out in another way.
    """
    return elements.contiguous().sum((-2, -1))
