"""Policies that turn noise into a chunk, step by step."""

from __future__ import annotations

from abc import abstractmethod

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key_list
from tensordict.nn import InteractionType
from tensordict.nn.probabilistic import interaction_type
from torch import Tensor

from torchrl_vla.policies.chunk_distribution import sum_elements
from torchrl_vla.policies.denoising.denoising_distribution import (
    DenoisingDistribution,
    Guide,
)
from torchrl_vla.policies.stochastic_policy import OutputKeys, StochasticVLAWrapper
from torchrl_vla.schema import (
    DENOISING_PATH_KEY,
    NOISE_SEED_KEY,
    MissingKeyError,
    ObservationKeys,
    SchemaError,
    check_positive_int,
)


class DenoisingVLAWrapper(StochasticVLAWrapper):
    """Emit a chunk by denoising, and know how likely the path to it was.

    Abstract: what flow-matching and diffusion heads have in common. The observation is
    encoded once per decision; the steps then run on the encoding. Trained by
    regression (:meth:`denoising_errors`), such a head has no log-probability of its
    own. It gets one when its steps are taken with Gaussian noise: then the *path*
    through all steps is the choice, and reinforcement learning needs no other change.

    **Reads** image, state and instruction. **Writes** ``action_chunk`` float
    ``[*B, H, A]``, ``denoising_path`` float ``[*B, K + 1, H, A]`` (noise first, chunk
    last) and, where the steps are noisy (``has_likelihood``), ``log_probs`` float
    ``[*B]`` and ``element_log_probs`` float ``[*B, H, A]``. Where they
    are not, the policy neither announces nor writes the last two.

    Keyword Args:
        action_dim: ``A``, size of one action.
        chunk_size: ``H``, actions per chunk.
        num_steps: ``K``, denoising steps per decision.
        keys: observation entries that the policy reads.
        output_keys: entries that it writes; ``sample`` is the path.

    Raises:
        SchemaError: a log-probability is asked of steps without noise; a path, a
            condition or a target has an unexpected shape.
        ValueError: a size is not positive.
    """

    default_sample_key = DENOISING_PATH_KEY

    def __init__(
        self,
        *,
        action_dim: int,
        chunk_size: int,
        num_steps: int,
        keys: ObservationKeys = ObservationKeys(),
        output_keys: OutputKeys = OutputKeys(),
    ) -> None:
        check_positive_int(type(self).__name__, "num_steps", num_steps)
        super().__init__(
            action_dim=action_dim,
            chunk_size=chunk_size,
            keys=keys,
            output_keys=output_keys,
        )
        self.num_steps = num_steps

    @property
    def out_keys(self) -> list[NestedKey]:
        """What the policy writes: log-probabilities only where there are any."""
        keys = self._out_keys_apparent
        if self.has_likelihood:
            return keys
        absent = (self.log_probs_key, self.element_log_probs_key)
        return [key for key in keys if key not in absent]

    @out_keys.setter
    def out_keys(self, keys: list[NestedKey]) -> None:
        self._out_keys = self._out_keys_apparent = unravel_key_list(list(keys))

    @property
    @abstractmethod
    def has_likelihood(self) -> bool:
        """True = steps are taken with noise, and paths have a log-probability."""

    @abstractmethod
    def encode(self, tensordict: TensorDictBase) -> Tensor:
        """Return what the steps depend on, ``[N, F]``, ``N`` rows for all of ``*B``."""

    @abstractmethod
    def mean(self, condition: Tensor, x: Tensor, step: Tensor) -> Tensor:
        """Return where a noisy step goes on average.

        Args:
            condition: ``[M, F]``, one row per path.
            x: where the paths are, ``[M, H, A]``.
            step: which step each path takes, int64 ``[M]`` in ``0..K-1``.
        """

    @abstractmethod
    def std(self, condition: Tensor, step: Tensor) -> Tensor:
        """Return the noise of a step, positive, ``[M, H, A]`` or ``[M, 1, 1]``."""

    @abstractmethod
    def move(
        self, condition: Tensor, x: Tensor, step: Tensor, guide: Guide | None
    ) -> Tensor:
        """Take a step without the noise that a likelihood needs, ``[M, H, A]``."""

    @abstractmethod
    def denoising_errors(
        self,
        tensordict: TensorDictBase,
        *,
        generator: torch.Generator | None = None,
        num_samples: int = 1,
    ) -> Tensor:
        """Return the squared errors ``[*B, H, A]`` of the head's regression.

        Reads the target at ``chunk_key``, in model space, and draws a time and noise
        for each row. A loss masks and reduces the errors, and replaces padded targets
        by numbers first: a target is part of the network's input.

        Args:
            tensordict: a batch with targets in model space.

        Keyword Args:
            generator: draws time and noise; None = PyTorch's global one.
            num_samples: times and noises per frame, over which the errors are averaged.
                The observation is encoded once for all of them.
        """

    def get_dist(self, tensordict: TensorDictBase) -> DenoisingDistribution:
        """Return the distribution of paths under the current weights."""
        batch = tensordict.batch_size
        condition = self._encode(tensordict)
        return DenoisingDistribution(self, condition, batch, self._guide(tensordict))

    def decode(self, choice: Tensor) -> Tensor:
        """Return the end ``[*B, H, A]`` of a path."""
        return choice[..., -1, :, :]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Denoise; write the path, its log-probability if any, and the chunk."""
        drawn = interaction_type() == InteractionType.RANDOM
        if self.has_likelihood and (torch.is_grad_enabled() or not drawn):
            return super().forward(tensordict)
        dist = self.get_dist(tensordict)
        if self.has_likelihood:
            noise_seeds = tensordict.get(NOISE_SEED_KEY, None)
            path, elements = dist.sample_with_log_probs(noise_seeds)
            tensordict.set(self.element_log_probs_key, elements)
            tensordict.set(self.log_probs_key, sum_elements(elements))
        else:
            path = self._choose(dist, tensordict.get(NOISE_SEED_KEY, None))
        tensordict.set(self.sample_key, path.detach())
        return tensordict.set(self.chunk_key, self.decode(path))

    def _guide(self, tensordict: TensorDictBase) -> Guide | None:
        return None

    def _encode(self, tensordict: TensorDictBase) -> Tensor:
        condition, n = self.encode(tensordict), tensordict.batch_size.numel()
        if condition.ndim != 2 or len(condition) != n:
            raise SchemaError(
                f"{type(self).__name__}: expected [N, F] with N = {n} from encode, one "
                f"row for each element of the batch {list(tensordict.batch_size)}, got "
                f"{list(condition.shape)}."
            )
        return condition

    def _encode_and_target(
        self, tensordict: TensorDictBase, num_samples: int
    ) -> tuple[Tensor, Tensor]:
        """Conditions and targets as rows, ``num_samples`` times one after the other."""
        check_positive_int(type(self).__name__, "num_samples", num_samples)
        condition, target = self._encode(tensordict), self._target(tensordict)
        return condition.repeat(num_samples, 1), target.repeat(num_samples, 1, 1)

    def _target(self, tensordict: TensorDictBase) -> Tensor:
        """The expert's chunks as rows ``[N, H, A]``."""
        chunk = tensordict.get(self.chunk_key, None)
        if chunk is None:
            raise MissingKeyError(
                f"{type(self).__name__}: expected a target [*B, H, A] at "
                f"{self.chunk_key!r}, got only "
                f"{sorted(map(str, tensordict.keys(True, True)))}. Append "
                "ActionChunkTransform to the buffer."
            )
        self._check_shape(chunk, "the target", tensordict.batch_size)
        return chunk.reshape(-1, self.chunk_size, self.action_dim)
