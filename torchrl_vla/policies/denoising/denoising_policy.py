"""Policies that turn noise into a chunk, step by step."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key_list
from tensordict.nn import InteractionType
from tensordict.nn.probabilistic import interaction_type
from torch import Tensor

from torchrl_vla.policies.chunk_distribution import sum_elements
from torchrl_vla.policies.denoising.denoising_distribution import (
    Condition,
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

    What :meth:`encode` returns is the policy's own affair. The distribution of paths
    hands it to the steps, asks for its :meth:`features` and, in a policy with
    ``judges_steps_together``, has it repeated.

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
    #: True = the steps of a path are judged in one batched pass, for which the
    #: condition is repeated; False = one after the other, as they were drawn.
    judges_steps_together: ClassVar[bool] = True

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

    @property
    def path_dim(self) -> int:
        """``D``, numbers per action that move; the first ``A`` are sampled."""
        return self.action_dim

    @abstractmethod
    def encode(self, tensordict: TensorDictBase) -> Condition:
        """Return what the steps depend on, ``N`` rows for all of ``*B``.

        A tensor ``[N, F]``; or whatever else the policy's own :meth:`features`,
        :meth:`repeat` and steps take: ``[N, L, F]`` with a mask, keys and values.
        """

    def features(self, condition: Condition) -> Tensor:
        """Return the float features ``[N, F]`` of each row, which a noise may read."""
        return condition

    def repeat(self, condition: Condition, times: int) -> Condition:
        """Return the rows of a condition ``times`` times, block behind block.

        As it is written here it repeats tensors and tensordicts.
        """
        if times == 1:
            return condition
        return condition.repeat(times, *[1] * (condition.ndim - 1))

    def acting(self) -> AbstractContextManager[object]:
        """Return a context in which the network is as it is when it acts."""
        return nullcontext()

    @abstractmethod
    def mean(self, condition: Condition, x: Tensor, step: Tensor) -> Tensor:
        """Return where a noisy step goes on average, ``[M, H, D]``.

        Args:
            condition: one row per path.
            x: where the paths are, ``[M, H, D]``.
            step: which step each path takes, int64 ``[M]`` in ``0..K-1``.
        """

    @abstractmethod
    def std(self, condition: Condition, step: Tensor) -> Tensor:
        """Return the noise of a step, positive, ``[M, H, A]`` or ``[M, 1, 1]``."""

    @abstractmethod
    def move(
        self, condition: Condition, x: Tensor, step: Tensor, guide: Guide | None
    ) -> Tensor:
        """Take a step without the noise that a likelihood needs, ``[M, H, D]``."""

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
        return choice[..., -1, :, : self.action_dim]

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

    def _encode(self, tensordict: TensorDictBase) -> Condition:
        condition, n = self.encode(tensordict), tensordict.batch_size.numel()
        features = self.features(condition)
        if features.ndim != 2 or len(features) != n:
            raise SchemaError(
                f"{type(self).__name__}: expected [N, F] with N = {n} from encode, one "
                f"row for each element of the batch {list(tensordict.batch_size)}, got "
                f"{list(features.shape)}. Where encode returns something else, let "
                "features(condition) return [N, F]."
            )
        return condition

    def _encode_and_target(
        self, tensordict: TensorDictBase, num_samples: int
    ) -> tuple[Condition, Tensor]:
        """Conditions and targets as rows, ``num_samples`` times one after the other."""
        check_positive_int(type(self).__name__, "num_samples", num_samples)
        condition, target = self._encode(tensordict), self._target(tensordict)
        return self.repeat(condition, num_samples), target.repeat(num_samples, 1, 1)

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
