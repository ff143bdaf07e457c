"""The distribution of the path by which a policy turns noise into a chunk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_vla.policies.chunk_distribution import ChunkDistribution, sum_elements
from torchrl_vla.rollout import normals
from torchrl_vla.schema import SchemaError

if TYPE_CHECKING:
    from torchrl_vla.policies.denoising.denoising_policy import DenoisingVLAWrapper

Guide = tuple[Tensor, Tensor]


class DenoisingDistribution(ChunkDistribution):
    """A chain of Gaussian steps from noise to a chunk, with its log-probability.

    The density of the chunk alone has no closed form; that of the whole path has: each
    step is ``x_{k+1} ~ N(mean(x_k), std_k)``, so an element's log-probability is the
    sum of its ``K`` normal log-densities. That of the initial noise depends on no
    weight and is left out. All steps are judged in one batched pass of the network.

    A choice is the path ``[K + 1, H, A]``: the noise first, the chunk last. The
    :attr:`mode` starts at the prior's mean, 0, and adds no noise.

    The weights are those at the time of construction, also when the policy has others
    by then: TorchRL's losses put theirs into the policy only while they ask for the
    distribution.

    Args:
        policy: gives mean and standard deviation of each step.
        condition: what the steps depend on, ``[N, F]``, one row per element of ``*B``.
        batch_shape: ``*B``.
        guide: chunk ``[*B, H, A]`` to be continued, and how strictly, ``[*B, H]``.
    """

    def __init__(
        self,
        policy: DenoisingVLAWrapper,
        condition: Tensor,
        batch_shape: torch.Size,
        guide: Guide | None = None,
    ) -> None:
        self._size = (policy.chunk_size, policy.action_dim)
        super().__init__(batch_shape, torch.Size((policy.num_steps + 1, *self._size)))
        self._policy, self._condition = policy, condition
        self._guide = None if guide is None else self._check_guide(*guide)
        self._weights = TensorDict.from_module(policy)
        self._dtype = torch.promote_types(condition.dtype, torch.float32)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw paths ``[*sample_shape, *B, K + 1, H, A]``.

        Raises:
            SchemaError: a path with a likelihood would be guided; a guided path is not
                drawn from this distribution.
        """
        path, _ = self._draw(torch.Size(sample_shape))
        return path

    @torch.no_grad()
    def sample_with_seeds(self, noise_seeds: Tensor) -> Tensor:
        """Draw paths ``[*B, K + 1, H, A]``; raises as :meth:`sample`."""
        path, _ = self._draw(torch.Size(), noise_seeds)
        return path

    @torch.no_grad()
    def sample_with_log_probs(
        self, noise_seeds: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw paths and return their :meth:`element_log_probs`, without a gradient.

        The network has said what they are on the way; it is not asked again.

        Args:
            noise_seeds: int64 ``[*B]``; None = PyTorch's global generator.

        Raises:
            SchemaError: as :meth:`sample`, and if the steps are without noise.
        """
        self._check_likelihood()
        path, terms = self._draw(torch.Size(), noise_seeds)
        elements = sum_steps(terms)
        return path, elements.reshape(*self.batch_shape, *self._size)

    @property
    def mode(self) -> Tensor:
        """The path from 0 without noise, ``[*B, K + 1, H, A]``."""
        start = self._zeros(len(self._condition))
        path = self._walk(self._condition, start, self._guide)
        return path.reshape(self._extended_shape())

    def element_log_probs(self, choice: Tensor) -> Tensor:
        """Return, of each number of the chunk, the sum over the steps, ``[*B, H, A]``.

        Raises:
            SchemaError: the choice is no path of this policy's, or the policy takes
                its steps without noise.
        """
        self._check_likelihood()
        self._check_sample(choice, self._dtype)
        policy, steps = self._policy, self._policy.num_steps
        paths = choice.reshape(-1, steps + 1, *self._size)
        rows = self._repeat(self._condition, len(paths) // max(len(self._condition), 1))
        step = self._steps(len(rows)).flatten()  # a step's rows lie together
        rows = rows.repeat(steps, 1)
        before, after = (
            part.transpose(0, 1).flatten(0, 1) for part in (paths[:, :-1], paths[:, 1:])
        )
        with self._weights.to_module(policy):
            mean, std = policy.mean(rows, before, step), policy.std(rows, step)
        terms = log_density(after, mean, std).unflatten(0, (steps, -1))
        return sum_steps(terms).reshape(*choice.shape[:-3], *self._size)

    def element_entropy(self) -> Tensor:
        """Return the entropy of each number's path given its noise, ``[*B, H, A]``.

        A step's standard deviation does not depend on where the path is, so the
        entropies of the steps add up.

        Raises:
            SchemaError: the policy takes its steps without noise.
        """
        self._check_likelihood()
        policy, steps = self._policy, self._policy.num_steps
        step = self._steps(len(self._condition)).flatten()
        rows = self._condition.repeat(steps, 1)
        with self._weights.to_module(policy):
            std = policy.std(rows, step).expand(len(rows), *self._size)
        terms = std.log() + 0.5 * math.log(2 * math.pi * math.e)
        total = sum_steps(terms.unflatten(0, (steps, -1)))
        return total.reshape(*self.batch_shape, *self._size)

    def entropy(self) -> Tensor:
        """Return the entropy of a whole path given its noise, ``[*B]``."""
        return sum_elements(self.element_entropy())

    def _draw(
        self, sample_shape: torch.Size, noise_seeds: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Draw paths, and the log-densities ``[N, H, A]`` of their steps, if any."""
        if self._policy.has_likelihood and self._guide is not None:
            raise SchemaError(
                f"{type(self._policy).__name__}: expected no guide where a choice with "
                "a log-probability is drawn, got guide_chunk in the tensordict. Guided "
                "paths are not drawn from the policy: act deterministically, or "
                "without a stochastic head, or with an executor that does not guide."
            )
        rows = self._repeat(self._condition, sample_shape.numel())
        noise = path_noise(self._zeros(len(rows)), self._policy.num_steps, noise_seeds)
        x, terms = next(noise), []
        if not self._policy.has_likelihood:
            path = self._walk(rows, x, self._repeat_guide(sample_shape.numel()))
        else:
            steps = [x]
            with self._weights.to_module(self._policy):
                for step in self._steps(len(rows)):
                    mean = self._policy.mean(rows, x, step)
                    std = self._policy.std(rows, step)
                    x = mean + std * next(noise)
                    steps.append(x)
                    terms.append(log_density(x, mean, std))
            path = torch.stack(steps, 1)
        return path.reshape(self._extended_shape(sample_shape)), terms

    def _walk(self, rows: Tensor, x: Tensor, guide: Guide | None) -> Tensor:
        """Return the path ``[N, K + 1, H, A]`` that starts at ``x``, without noise."""
        path = [x]
        with self._weights.to_module(self._policy):
            for step in self._steps(len(rows)):
                path.append(self._policy.move(rows, path[-1], step, guide))
        return torch.stack(path, 1)

    def _steps(self, n: int) -> Tensor:
        """The number of the step, once per row and step: ``[K, N]``."""
        steps = torch.arange(self._policy.num_steps, device=self._condition.device)
        return steps[:, None].expand(-1, n)

    def _zeros(self, n: int) -> Tensor:
        return self._condition.new_zeros(n, *self._size, dtype=self._dtype)

    def _repeat_guide(self, times: int) -> Guide | None:
        if self._guide is None:
            return None
        chunk, weight = self._guide
        return self._repeat(chunk, times), self._repeat(weight, times)

    @staticmethod
    def _repeat(rows: Tensor, times: int) -> Tensor:
        return rows if times == 1 else rows.repeat(times, *[1] * (rows.ndim - 1))

    def _check_guide(self, chunk: Tensor, weight: Tensor) -> Guide:
        expected = (*self.batch_shape, *self._size)
        if chunk.shape != expected or weight.shape != expected[:-1]:
            raise SchemaError(
                f"{type(self._policy).__name__}: expected guide_chunk "
                f"{list(expected)} and guide_weight {list(expected[:-1])}, got "
                f"{list(chunk.shape)} and {list(weight.shape)}. Pad the guide with "
                "zeros where the weight is 0."
            )
        chunk = chunk.reshape(-1, *self._size)
        return chunk, weight.reshape(-1, self._size[0])

    def _check_likelihood(self) -> None:
        if not self._policy.has_likelihood:
            raise SchemaError(
                f"{type(self._policy).__name__}: expected a policy that takes its "
                "denoising steps with noise, got one without, whose paths have no "
                f"log-probability. {self._policy.likelihood_advice}"
            )


def path_noise(
    like: Tensor, num_steps: int, noise_seeds: Tensor | None
) -> Iterator[Tensor]:
    """Yield standard normal numbers for the start of a path, then for each step.

    Args:
        like: ``[N, H, A]``, whose shape, dtype and device they have.
        num_steps: ``K``.
        noise_seeds: ``N`` of them, int64; None = PyTorch's global generator.
    """
    count = num_steps + 1
    if noise_seeds is None:
        yield from (torch.randn_like(like) for _ in range(count))
        return
    numbers = normals(
        noise_seeds.reshape(-1).to(like.device), count * like.shape[1:].numel()
    )
    numbers = numbers.view(len(like), count, *like.shape[1:]).to(like.dtype)
    yield from numbers.unbind(1)


def log_density(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return the normal log-density of each number."""
    deviation = (x - mean) / std
    return -0.5 * deviation * deviation - std.log() - 0.5 * math.log(2 * math.pi)


def sum_steps(terms: Sequence[Tensor] | Tensor) -> Tensor:
    """Sum ``K`` terms ``[N, H, A]``, one after the other.

    A reduction may choose its order by the size of the batch, and round differently.
    """
    first, *rest = terms
    for term in rest:
        first = first + term
    return first
