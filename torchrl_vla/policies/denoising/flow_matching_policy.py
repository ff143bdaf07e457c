"""Base class of flow-matching policies."""

from __future__ import annotations

from abc import abstractmethod

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_vla.policies.denoising.denoising_distribution import Condition, Guide
from torchrl_vla.policies.denoising.denoising_policy import DenoisingVLAWrapper
from torchrl_vla.policies.denoising.flow_noise import FlowNoise, FlowSDENoise
from torchrl_vla.policies.denoising.guidance import guided_velocity
from torchrl_vla.policies.stochastic_policy import OutputKeys
from torchrl_vla.schema import (
    GUIDE_CHUNK_KEY,
    GUIDE_WEIGHT_KEY,
    MissingKeyError,
    ObservationKeys,
)


class FlowVLAWrapper(DenoisingVLAWrapper):
    """Emit a chunk by following a velocity from noise to data in ``K`` Euler steps.

    Abstract: a subclass implements :meth:`encode` and :meth:`velocity`. Time runs from
    ``t = 0`` (noise) to ``t = 1`` (data), ``x_t = (1 - t) noise + t data``, and the
    velocity is ``data - noise``, as in Lipman et al. and RTC. LeRobot and openpi count
    the other way: their time is ``1 - t`` and their velocity ``noise - data``, so
    ``velocity(c, x, t) = -theirs(c, x, 1 - t)``.

    Without ``noise`` the steps are the ODE's. With one (:class:`FlowSDENoise`,
    :class:`LearnedNoise`) an interaction of type ``RANDOM`` takes noisy steps whose
    likelihood is known. Assign ``policy.noise`` to make a cloned flow stochastic, and
    do so before a loss or an executor is built around it, as ``out_keys`` changes.

    Real-time chunking: if the tensordict has ``guide_chunk`` (model space) and
    ``guide_weight``, steps of the ODE are guided to continue it; noisy steps refuse.

    **Reads** image, state and instruction; if there, ``guide_chunk`` float
    ``[*B, H, A]`` and ``guide_weight`` float ``[*B, H]``. **Writes** what
    :class:`DenoisingVLAWrapper` writes.

    Keyword Args:
        action_dim: ``A``, size of one action.
        chunk_size: ``H``, actions per chunk.
        num_steps: ``K``, Euler steps per decision.
        noise: makes the steps stochastic; None = they are not.
        keys: observation entries that the policy reads.
        output_keys: entries that it writes; ``sample`` is the path.

    Raises:
        MissingKeyError: there is a guide without its weight.
        SchemaError: see :class:`DenoisingVLAWrapper`; a noisy step would be guided.

    Source: Lipman et al., "Flow Matching for Generative Modeling" (2023).

    Examples:
        >>> from tensordict import TensorDict
        >>> class ToThree(FlowVLAWrapper):  # knows that the data is 3 everywhere
        ...     def encode(self, tensordict):
        ...         return torch.zeros(tensordict.batch_size.numel(), 1)
        ...
        ...     def velocity(self, condition, x, t):
        ...         return (3 - x) / (1 - t[:, None, None])
        >>> policy = ToThree(action_dim=1, chunk_size=2, num_steps=4)
        >>> policy(TensorDict(batch_size=[1]))["denoising_path"][0, :, 0, 0]
        tensor([0.0000, 0.7500, 1.5000, 2.2500, 3.0000])
    """

    cloning_loss = "flow"
    likelihood_advice = (
        "Give it some: policy.noise = FlowSDENoise(0.5), before you build the loss."
    )
    noise: FlowNoise | None

    def __init__(
        self,
        *,
        action_dim: int,
        chunk_size: int,
        num_steps: int = 8,
        noise: FlowNoise | None = None,
        keys: ObservationKeys = ObservationKeys(),
        output_keys: OutputKeys = OutputKeys(),
    ) -> None:
        super().__init__(
            action_dim=action_dim,
            chunk_size=chunk_size,
            num_steps=num_steps,
            keys=keys,
            output_keys=output_keys,
        )
        self.optional_in_keys += [GUIDE_CHUNK_KEY, GUIDE_WEIGHT_KEY]
        self.noise = noise

    @abstractmethod
    def velocity(self, condition: Condition, x: Tensor, t: Tensor) -> Tensor:
        """Return ``data - noise`` as expected at ``x``, ``[M, H, D]``.

        Args:
            condition: rows of what :meth:`encode` returned.
            x: where the flow is, ``[M, H, D]``.
            t: when, ``[M]``, from 0 (noise) to 1 (data).
        """

    @property
    def has_likelihood(self) -> bool:
        """True = the policy has ``noise``."""
        return self.noise is not None

    def to_stochastic(
        self, *, initial_std: float = 0.2, flow_noise: float = 0.5
    ) -> FlowVLAWrapper:
        """Give the flow's steps :class:`FlowSDENoise`, in place."""
        self.noise = FlowSDENoise(flow_noise)
        return self

    def mean(self, condition: Condition, x: Tensor, step: Tensor) -> Tensor:
        """Return where the noisy step goes on average; what only moves follows."""
        assert self.noise is not None, "only noisy steps have a distribution"
        t, real, dt = self._time(x, step), self.action_dim, 1 / self.num_steps
        velocity = self.step_velocity(condition, x, step)
        mean = self.noise.mean(x[..., :real], velocity[..., :real], t, dt)
        if x.shape[-1] == real:
            return mean
        return torch.cat([mean, x[..., real:] + dt * velocity[..., real:]], -1)

    def std(self, condition: Condition, step: Tensor) -> Tensor:
        """Return the noise of the step."""
        assert self.noise is not None, "only noisy steps have a distribution"
        features = self.features(condition)
        return self.noise.std(features, self._time(features, step), 1 / self.num_steps)

    def step_velocity(self, condition: Condition, x: Tensor, step: Tensor) -> Tensor:
        """Return the velocity at the beginning of each row's step, ``[M, H, D]``."""
        return self.velocity(condition, x, self._time(x, step))

    def move(
        self, condition: Condition, x: Tensor, step: Tensor, guide: Guide | None
    ) -> Tensor:
        """Take an Euler step of the ODE, bent towards the guide if there is one."""
        if guide is None:
            return x + self.step_velocity(condition, x, step) / self.num_steps
        velocity = guided_velocity(
            lambda x, t: self.velocity(condition, x, t),
            x,
            self._time(x, step),
            *guide,
            # With this bound the last step lands on what is frozen.
            max_guidance=float(self.num_steps),
        )
        return x + velocity / self.num_steps

    def denoising_errors(
        self,
        tensordict: TensorDictBase,
        *,
        generator: torch.Generator | None = None,
        num_samples: int = 1,
        time_alpha: float = 1.0,
    ) -> Tensor:
        """Return ``(velocity(x_t, t) - (data - noise))^2``, ``[*B, H, A]``.

        Reads the target at ``chunk_key``; see :class:`DenoisingVLAWrapper`.

        Args:
            tensordict: a batch with targets in model space.

        Keyword Args:
            generator: draws time and noise; None = PyTorch's global one.
            num_samples: see :class:`DenoisingVLAWrapper`.
            time_alpha: ``1 - t`` follows Beta(time_alpha, 1): 1 is uniform,
                1.5 dwells on noisy times as pi0 does.
        """
        condition, data = self._encode_and_target(tensordict, num_samples)
        dtype, device = torch.promote_types(data.dtype, torch.float32), data.device
        noise = torch.randn(data.shape, generator=generator, dtype=dtype, device=device)
        u = torch.rand(len(data), generator=generator, dtype=dtype, device=device)
        t = 1 - u ** (1 / time_alpha)
        time = t[:, None, None]
        velocity = self.velocity(condition, (1 - time) * noise + time * data, t)
        errors = (velocity - (data - noise)) ** 2
        errors = errors.unflatten(0, (num_samples, -1)).mean(0)
        return errors.reshape(*tensordict.batch_size, *data.shape[1:])

    def _time(self, like: Tensor, step: Tensor) -> Tensor:
        dtype = torch.promote_types(like.dtype, torch.float32)
        return step.to(dtype) / self.num_steps

    def _guide(self, tensordict: TensorDictBase) -> Guide | None:
        chunk = tensordict.get(GUIDE_CHUNK_KEY, None)
        if chunk is None:
            return None
        weight = tensordict.get(GUIDE_WEIGHT_KEY, None)
        if weight is None:
            raise MissingKeyError(
                f"{type(self).__name__}: expected how strictly to follow the guide, "
                f"float [*B, H] at {GUIDE_WEIGHT_KEY!r}, got only {GUIDE_CHUNK_KEY!r}. "
                "An executor that guides writes both."
            )
        return chunk, weight
