"""The distribution of the path by which a policy turns noise into a chunk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_vla.policies.chunk_distribution import ChunkDistribution, sum_elements
from torchrl_vla.rollout import normals
from torchrl_vla.schema import SchemaError

if TYPE_CHECKING:
    from torchrl_vla.policies.denoising.denoising_policy import DenoisingVLAWrapper

Guide = tuple[Tensor, Tensor]

#: What a policy's ``encode`` returns; only the policy itself looks into it.
Condition: TypeAlias = Any


class DenoisingDistribution(ChunkDistribution):
    """A chain of Gaussian steps from noise to a chunk, with its log-probability.

    The density of the chunk alone has no closed form; that of the whole path has: each
    step is ``x_{k+1} ~ N(mean(x_k), std_k)``, so an element's log-probability is the
    sum of its ``K`` normal log-densities. That of the initial noise depends on no
    weight and is left out.

    A choice is the path ``[K + 1, H, D]``: the noise first, the chunk last. The
    :attr:`mode` starts at the prior's mean, 0, and adds no noise.

    The weights are those at the time of construction, also when the policy has others
    by then: TorchRL's losses put theirs into the policy only while they ask for the
    distribution.

    A policy may move more numbers than it samples (``path_dim`` ``D`` >= ``A``): the
    rest of each action follows its mean, so it is a function of the initial noise, of
    the samples and of the weights. It is computed again from these when a path is
    judged; only its first step is read.

    A policy with ``judges_steps_together`` is asked about all steps in one batched
    pass, for which its condition is repeated. Another one is asked step by step, in the
    batch and by the kernels that the path was drawn with, and its condition is never
    repeated.

    Args:
        policy: gives mean and standard deviation of each step.
        condition: what the steps depend on, as the policy encodes it: ``N`` rows, one
            per element of ``*B``.
        batch_shape: ``*B``.
        guide: chunk ``[*B, H, A]`` to be continued, and how strictly, ``[*B, H]``.
    """

    def __init__(
        self,
        policy: DenoisingVLAWrapper,
        condition: Condition,
        batch_shape: torch.Size,
        guide: Guide | None = None,
    ) -> None:
        self._size = (policy.chunk_size, policy.path_dim)
        super().__init__(batch_shape, torch.Size((policy.num_steps + 1, *self._size)))
        self._policy, self._condition = policy, condition
        self._like = policy.features(condition)
        self._guide = None if guide is None else self._check_guide(*guide)
        self._weights = TensorDict.from_module(policy)
        self._dtype = torch.promote_types(self._like.dtype, torch.float32)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw paths ``[*sample_shape, *B, K + 1, H, D]``.

        Raises:
            SchemaError: a path with a likelihood would be guided; a guided path is not
                drawn from this distribution.
        """
        shape = torch.Size(sample_shape)
        if self._policy.judges_steps_together:
            path, _ = self._draw(shape.numel())
        else:
            draws = [self._draw()[0] for _ in range(shape.numel())]
            path = torch.stack(draws)
        return path.reshape(self._extended_shape(shape))

    @torch.no_grad()
    def sample_with_seeds(self, noise_seeds: Tensor) -> Tensor:
        """Draw paths ``[*B, K + 1, H, D]``; raises as :meth:`sample`."""
        path, _ = self._draw(1, noise_seeds)
        return path.reshape(self._extended_shape())

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
        path, terms = self._draw(1, noise_seeds)
        return path.reshape(self._extended_shape()), self._elements(sum_steps(terms))

    @property
    def mode(self) -> Tensor:
        """The path from 0 without noise, ``[*B, K + 1, H, D]``."""
        return self.flow_from(self._zeros(len(self._like)))

    def flow_from(self, start: Tensor) -> Tensor:
        """Return the path without noise from a start, ``[*B, K + 1, H, D]``.

        Args:
            start: the initial noise, ``[*B, H, D]``.
        """
        start = start.reshape(-1, *self._size)
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
        paths = choice.to(self._like.device).reshape(
            -1, self._policy.num_steps + 1, *self._size
        )
        if self._policy.judges_steps_together:
            elements = self._judge_together(paths)
        else:
            draws = paths.unflatten(0, (-1, len(self._like)))
            elements = torch.stack([self._judge_in_turn(draw) for draw in draws])
        sample_shape = choice.shape[: choice.ndim - len(self._extended_shape())]
        return self._elements(elements, sample_shape).to(choice.device)

    def element_entropy(self) -> Tensor:
        """Return the entropy of each number's path given its noise, ``[*B, H, A]``.

        A step's standard deviation does not depend on where the path is, so the
        entropies of the steps add up.

        Raises:
            SchemaError: the policy takes its steps without noise.
        """
        self._check_likelihood()
        size = (len(self._like), self._size[0], self._policy.action_dim)
        constant = 0.5 * math.log(2 * math.pi * math.e)
        with self._network():
            terms = [
                self._policy.std(self._condition, step).expand(size).log() + constant
                for step in self._steps(len(self._like))
            ]
        return self._elements(sum_steps(terms))

    def entropy(self) -> Tensor:
        """Return the entropy of a whole path given its noise, ``[*B]``."""
        return sum_elements(self.element_entropy())

    def _draw(
        self, times: int = 1, noise_seeds: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Draw paths ``[N, K + 1, H, D]`` and the log-densities of their steps, if any.

        Args:
            times: how many of each row, ``N`` is the product.
            noise_seeds: one per row; None = PyTorch's global generator.
        """
        policy = self._policy
        if policy.has_likelihood and self._guide is not None:
            raise SchemaError(
                f"{type(policy).__name__}: expected no guide where a choice with "
                "a log-probability is drawn, got guide_chunk in the tensordict. Guided "
                "paths are not drawn from the policy: act deterministically, or "
                "without a stochastic head, or with an executor that does not guide."
            )
        rows, n = policy.repeat(self._condition, times), times * len(self._like)
        noise = path_noise(
            self._zeros(n), policy.num_steps, noise_seeds, policy.action_dim
        )
        x = next(noise)
        if not policy.has_likelihood:
            return self._walk(rows, x, self._repeat_guide(times)), []
        path, terms = [x], []
        with self._network():
            for step in self._steps(n):
                mean, std = policy.mean(rows, x, step), policy.std(rows, step)
                sampled = mean[..., : policy.action_dim]
                drawn = sampled + std * next(noise)
                terms.append(log_density(drawn, sampled, std))
                x = self._join(drawn, mean)
                path.append(x)
        return torch.stack(path, 1), terms

    def _walk(self, rows: Condition, x: Tensor, guide: Guide | None) -> Tensor:
        """Return the path ``[N, K + 1, H, D]`` that starts at ``x``, without noise."""
        path = [x]
        with self._network():
            for step in self._steps(len(x)):
                path.append(self._policy.move(rows, path[-1], step, guide))
        return torch.stack(path, 1)

    def _judge_together(self, paths: Tensor) -> Tensor:
        """Return log-probabilities ``[N, H, A]``, all steps in one pass."""
        policy, steps = self._policy, self._policy.num_steps
        rows = policy.repeat(self._condition, len(paths) // max(len(self._like), 1))
        step = self._steps(len(paths)).flatten()  # a step's rows lie together
        rows = policy.repeat(rows, steps)
        before, after = (
            part.transpose(0, 1).flatten(0, 1) for part in (paths[:, :-1], paths[:, 1:])
        )
        with self._network():
            mean, std = policy.mean(rows, before, step), policy.std(rows, step)
        return sum_steps(log_density(after, mean, std).unflatten(0, (steps, -1)))

    def _judge_in_turn(self, path: Tensor) -> Tensor:
        """Return log-probabilities ``[N, H, A]``, one step after the other."""
        policy, rows = self._policy, self._condition
        x, terms = path[:, 0].contiguous(), []
        with self._network():
            for index, step in enumerate(self._steps(len(path))):
                mean, std = policy.mean(rows, x, step), policy.std(rows, step)
                drawn = path[:, index + 1, :, : policy.action_dim]
                terms.append(log_density(drawn, mean[..., : policy.action_dim], std))
                x = self._join(drawn, mean)
        return sum_steps(terms)

    def _join(self, drawn: Tensor, mean: Tensor) -> Tensor:
        """Return what was drawn, followed by what only moves."""
        real = drawn.shape[-1]
        if mean.shape[-1] == real:
            return drawn
        return torch.cat([drawn, mean[..., real:]], -1)

    @contextmanager
    def _network(self) -> Iterator[None]:
        """Put this distribution's weights into the policy, as it is when it acts."""
        with self._weights.to_module(self._policy), self._policy.acting():
            yield

    def _elements(self, elements: Tensor, sample_shape: Sequence[int] = ()) -> Tensor:
        size = (self._size[0], self._policy.action_dim)
        return elements.reshape(*sample_shape, *self.batch_shape, *size)

    def _steps(self, n: int) -> Tensor:
        """The number of the step, once per row and step: ``[K, N]``."""
        steps = torch.arange(self._policy.num_steps, device=self._like.device)
        return steps[:, None].expand(-1, n)

    def _zeros(self, n: int) -> Tensor:
        return self._like.new_zeros(n, *self._size, dtype=self._dtype)

    def _repeat_guide(self, times: int) -> Guide | None:
        if self._guide is None or times == 1:
            return self._guide
        chunk, weight = self._guide
        return chunk.repeat(times, 1, 1), weight.repeat(times, 1)

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
    like: Tensor, num_steps: int, noise_seeds: Tensor | None, sampled: int
) -> Iterator[Tensor]:
    """Yield standard normal numbers for the start of a path, then for each step.

    Args:
        like: ``[N, H, D]``, whose shape, dtype and device they have.
        num_steps: ``K``.
        noise_seeds: ``N`` of them, int64; None = PyTorch's global generator.
        sampled: the first ``A`` numbers of an action, which alone have noise at a step.
    """
    count = num_steps + 1
    if noise_seeds is None:
        yield torch.randn_like(like)
        yield from (torch.randn_like(like[..., :sampled]) for _ in range(num_steps))
        return
    numbers = normals(
        noise_seeds.reshape(-1).to(like.device), count * like.shape[1:].numel()
    )
    numbers = numbers.view(len(like), count, *like.shape[1:]).to(like.dtype)
    first, *steps = numbers.unbind(1)
    yield first
    yield from (step[..., :sampled] for step in steps)


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
