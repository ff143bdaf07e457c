"""Distribution of the denoising paths of a LeRobot flow policy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_vla.policies.chunk_distribution import ChunkDistribution, sum_elements
from torchrl_vla.policies.denoising.denoising_distribution import (
    log_density,
    path_noise,
    sum_steps,
)
from torchrl_vla.policies.lerobot.run.flow_prefix import FlowPrefix

if TYPE_CHECKING:
    from torchrl_vla.policies.lerobot.run.flow_policy import LeRobotFlowPolicy


class LeRobotFlowDistribution(ChunkDistribution):
    """Chain of Gaussian steps from noise to a chunk, with padded dimensions.

    LeRobot's models move ``D = max_action_dim`` numbers per action, of which the robot
    has the first ``A``. Those are sampled, ``x_{k+1} ~ N(mean(x_k), std_k)``. The
    padding follows the ODE from its initial noise, so it is a function of that noise,
    of the samples and of the weights. It is computed again from these when a path is
    evaluated; only its first step is read. The log-probability of the ``A`` numbers is
    then exact, and so is its gradient, which also flows through the padding.

    A sample is the path ``[K + 1, H, D]``: the noise first, the padded chunk last. The
    :attr:`mode` starts at the prior's mean, 0, and adds no noise. A step is evaluated
    in the batch and by the kernels that it was sampled with, so that every bit is equal
    and the cache of the prefix is never repeated.

    The weights are those at the time of construction.

    Args:
        policy: gives the sizes and the noise.
        prefix: ``N`` encoded observations, one per element of ``*B``.
        condition: input of a learned noise, ``[N, F]``.
        batch_shape: ``*B``.
    """

    def __init__(
        self,
        policy: LeRobotFlowPolicy,
        prefix: FlowPrefix,
        condition: Tensor,
        batch_shape: torch.Size,
    ) -> None:
        self._real = policy.action_dim
        self._size = (policy.chunk_size, policy.path_dim)
        super().__init__(batch_shape, torch.Size((policy.num_steps + 1, *self._size)))
        self._policy, self._prefix, self._condition = policy, prefix, condition
        self._weights = TensorDict.from_module(policy)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw paths ``[*sample_shape, *B, K + 1, H, D]``."""
        sample_shape = torch.Size(sample_shape)
        paths = [self._draw()[0] for _ in range(sample_shape.numel())]
        return torch.stack(paths).reshape(self._extended_shape(sample_shape))

    @torch.no_grad()
    def sample_with_seeds(self, noise_seeds: Tensor) -> Tensor:
        """Draw paths ``[*B, K + 1, H, D]``, each a function of its own seed."""
        return self._draw(noise_seeds)[0].reshape(self._extended_shape())

    @torch.no_grad()
    def sample_with_log_probs(
        self, noise_seeds: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw paths and return their :meth:`element_log_probs`, without a gradient.

        Both come from the same calls of the network.
        """
        path, elements = self._draw(noise_seeds)
        return path.reshape(self._extended_shape()), self._as_elements(elements)

    @property
    def mode(self) -> Tensor:
        """The path from 0 without noise, ``[*B, K + 1, H, D]``."""
        start = self._condition.new_zeros(*self.batch_shape, *self._size)
        return self.flow_from(start)

    def flow_from(self, start: Tensor) -> Tensor:
        """Return the path of the ODE, ``[*B, K + 1, H, D]``.

        Its end is what LeRobot's own policy makes of the same noise.

        Args:
            start: the initial noise, ``[*B, H, D]``.
        """
        path = [start.reshape(-1, *self._size)]
        with self._network():
            for step in range(self._policy.num_steps):
                x = path[-1]
                path.append(x + self._dt * self._velocity(x, step))
        return torch.stack(path, 1).reshape(self._extended_shape())

    def element_log_probs(self, sample: Tensor) -> Tensor:
        """Return the sum over the steps for each number of the chunk, ``[*B, H, A]``.

        Raises:
            SchemaError: the sample is no path of this policy's.
        """
        self._check_sample(sample, torch.float32)
        device = sample.device
        sample_shape = sample.shape[: sample.ndim - len(self._extended_shape())]
        paths = sample.to(self._condition.device).reshape(
            -1, len(self._condition), *self.event_shape
        )
        elements = torch.stack([self._evaluate(path) for path in paths])
        return self._as_elements(elements, sample_shape).to(device)

    def element_entropy(self) -> Tensor:
        """Return the entropy of each number's path given its noise, ``[*B, H, A]``."""
        size = (len(self._condition), self._size[0], self._real)
        with self._network():
            steps = range(self._policy.num_steps)
            std = [self._std(step).expand(size) for step in steps]
        constant = 0.5 * math.log(2 * math.pi * math.e)
        return self._as_elements(sum_steps([s.log() + constant for s in std]))

    def entropy(self) -> Tensor:
        """Return the entropy of a whole path given its noise, ``[*B]``."""
        return sum_elements(self.element_entropy())

    def _draw(self, noise_seeds: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw paths ``[N, K + 1, H, D]``, and their log-probability ``[N, H, A]``."""
        zeros = self._condition.new_zeros(len(self._condition), *self._size)
        noise = self._noise(zeros, noise_seeds)
        x = next(noise)
        path, terms = [x], []
        with self._network():
            for step in range(self._policy.num_steps):
                mean, padding = self._move(x, step)
                std = self._std(step)
                drawn = mean + std * next(noise)
                terms.append(log_density(drawn, mean, std))
                x = torch.cat([drawn, padding], -1)
                path.append(x)
        return torch.stack(path, 1), sum_steps(terms)

    def _noise(self, like: Tensor, noise_seeds: Tensor | None) -> Iterator[Tensor]:
        """Yield the initial noise ``[N, H, D]``, then each step's, ``[N, H, A]``."""
        if noise_seeds is None:
            yield torch.randn_like(like)
            while True:
                yield torch.randn_like(like[..., : self._real])
        first, *steps = path_noise(like, self._policy.num_steps, noise_seeds)
        yield first
        yield from (step[..., : self._real] for step in steps)

    def _evaluate(self, path: Tensor) -> Tensor:
        """Return the log-probability ``[N, H, A]`` of paths ``[N, K + 1, H, D]``."""
        x, terms = path[:, 0].contiguous(), []
        with self._network():
            for step in range(self._policy.num_steps):
                mean, padding = self._move(x, step)
                drawn = path[:, step + 1, :, : self._real]
                terms.append(log_density(drawn, mean, self._std(step)))
                x = torch.cat([drawn, padding], -1)
        return sum_steps(terms)

    def _move(self, x: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the mean of the robot's next numbers, and the next padding."""
        velocity = self._velocity(x, step)
        real, padding = x[..., : self._real], x[..., self._real :]
        t = self._our_time(step)
        mean = self._policy.noise.mean(real, velocity[..., : self._real], t, self._dt)
        return mean, padding + self._dt * velocity[..., self._real :]

    def _velocity(self, x: Tensor, step: int) -> Tensor:
        # In Python's precision, as in LeRobot: time is embedded by fast waves.
        time = x.new_full((len(x),), 1.0 - step * self._dt)
        return self._prefix.velocity(x, time)

    def _std(self, step: int) -> Tensor:
        t = self._our_time(step)
        return self._policy.noise.std(self._condition, t, self._dt)

    def _our_time(self, step: int) -> Tensor:
        return self._condition.new_full((len(self._condition),), step * self._dt)

    @property
    def _dt(self) -> float:
        return 1 / self._policy.num_steps

    @contextmanager
    def _network(self) -> Iterator[None]:
        """Put this distribution's weights into the policy, as it is when it acts."""
        with self._weights.to_module(self._policy), self._policy.inference():
            yield

    def _as_elements(
        self, elements: Tensor, sample_shape: Sequence[int] = ()
    ) -> Tensor:
        shape = (*sample_shape, *self.batch_shape, self._size[0], self._real)
        return elements.reshape(shape)
