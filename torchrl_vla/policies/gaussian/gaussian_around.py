"""Gaussian policy around a policy that predicts a chunk."""

from __future__ import annotations

import math

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.envs import Compose

from torchrl_vla.policies.gaussian.gaussian_policy import GaussianVLAWrapper
from torchrl_vla.policies.vla_policy import ContinuousVLAWrapper
from torchrl_vla.schema import InstructionTable, PolicySpace


class GaussianAround(GaussianVLAWrapper):
    """Sample chunks around those that a policy predicts.

    The policy is the mean, and is trained with one learned standard deviation per
    action dimension. Without sampling the chunk is the policy's own.

    **Reads** what the policy reads. **Writes** ``action_chunk`` and ``chunk_sample``
    float ``[*B, H, A]``, ``log_probs`` float ``[*B]``, ``element_log_probs`` float
    ``[*B, H, A]``.

    Note:
        The log-probability of a stored sample is exact only as far as the policy
        computes an env index alike in every batch, which kernels need not do.
        ``FinetuneSettings(recompute=True)`` evaluates it in the learner's batches.

    Args:
        policy: predicts the mean; is contained, not copied.

    Keyword Args:
        initial_std: first standard deviation, in model space.
        min_std: lower bound of the standard deviation.
        max_std: upper bound.

    Raises:
        ValueError: not ``0 < min_std <= initial_std <= max_std``.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl_vla.policies import as_policy
        >>> class Still(nn.Module):
        ...     chunk_size, action_dim = 4, 2
        ...
        ...     def forward(self, tensordict):
        ...         return torch.zeros(*tensordict.batch_size, 4, 2)
        >>> policy = GaussianAround(as_policy(Still()), initial_std=0.1)
        >>> policy(TensorDict(batch_size=[3]))["log_probs"].shape
        torch.Size([3])
    """

    def __init__(
        self,
        policy: ContinuousVLAWrapper,
        *,
        initial_std: float = 0.2,
        min_std: float = 0.01,
        max_std: float = 1.0,
    ) -> None:
        super().__init__(
            action_dim=policy.action_dim,
            chunk_size=policy.chunk_size,
            keys=policy.keys,
            min_std=min_std,
            max_std=max_std,
        )
        if not min_std <= initial_std <= max_std:
            raise ValueError(
                "GaussianAround: expected min_std <= initial_std <= max_std, got "
                f"{initial_std!r} outside [{min_std!r}, {max_std!r}]."
            )
        self.policy = policy
        self.initial_std = initial_std
        self.in_keys = list(policy.in_keys)
        self.cloning_loss = policy.cloning_loss
        device = next((p.device for p in policy.parameters()), None)
        log_std = torch.full((self.action_dim,), math.log(initial_std), device=device)
        self.log_std = nn.Parameter(log_std)

    @property
    def policy_space(self) -> PolicySpace | None:
        """The space of the policy inside."""
        return self.policy.policy_space

    @policy_space.setter
    def policy_space(self, space: PolicySpace | None) -> None:
        self.policy.policy_space = space

    @property
    def instructions(self) -> InstructionTable | None:
        """The inner policy's table that gives instruction ids their texts."""
        return getattr(self.policy, "instructions", None)

    @instructions.setter
    def instructions(self, table: InstructionTable | None) -> None:
        self.policy.instructions = table

    def predict_mean_and_log_std(
        self, tensordict: TensorDictBase
    ) -> tuple[Tensor, Tensor]:
        """Return the policy's chunk and the logarithm of the standard deviation."""
        return self.policy.predict_chunk(tensordict), self.log_std

    def make_critic(self) -> TensorDictModuleBase | None:
        """Return the critic of the policy inside."""
        return self.policy.make_critic()

    def make_environment_transform(self) -> Compose:
        """Return what the policy inside needs from step to step."""
        return self.policy.make_environment_transform()
