"""Policy of robot space around a policy of model space."""

from __future__ import annotations

from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torch.distributions import Distribution

from torchrl_vla.execution import PolicyWrapper
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    GUIDE_CHUNK_KEY,
    IS_DECISION_KEY,
    IS_EXECUTED_KEY,
    ROBOT_SPACE,
    SpaceError,
    space_of,
)
from torchrl_vla.transforms import ActionScaling, StateScaling


class RobotSpacePolicy(PolicyWrapper):
    """Read and write robot space with a policy of model space.

    **Reads** what the policy reads, in robot space; **writes** what it writes, with
    ``action_chunk`` in robot space. The state in the tensordict stays as it was, and
    so does ``guide_chunk``, where the policy takes one: a chunk in robot space. The
    sample of a stochastic policy stays in model space, so a loss takes this policy, and
    observations in robot space, as it takes the one inside. Other members of the policy
    are forwarded (:class:`~torchrl_vla.execution.PolicyWrapper`).

    Args:
        policy: writes ``action_chunk`` in model space.
        action_scaling: denormalizes the chunk.
        state_scaling: normalizes the state; None = there is none.

    Raises:
        SpaceError: the policy is marked with robot space.
    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        action_scaling: ActionScaling,
        state_scaling: StateScaling | None,
    ) -> None:
        if space_of(policy) == ROBOT_SPACE:
            raise SpaceError(
                f"RobotSpacePolicy: expected a policy of model space, got "
                f"{type(policy).__name__} of robot space, which would be scaled twice. "
                "Use it as it is."
            )
        super().__init__(policy)
        self.action_scaling = action_scaling
        self.state_scaling = state_scaling
        self.policy_space = ROBOT_SPACE

    @property
    def optional_in_keys(self) -> list[NestedKey]:
        """Inputs that the policy reads where they are."""
        return list(getattr(self.policy, "optional_in_keys", ()))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the policy's outputs, the chunk in robot space."""
        answer = self.policy(self._to_model_space(tensordict))
        tensordict.update(answer.select(*self.out_keys))
        chunk = self.action_scaling.denormalize(answer.get(ACTION_CHUNK_KEY))
        return tensordict.set(ACTION_CHUNK_KEY, chunk)

    def predict_chunk(self, tensordict: TensorDictBase) -> Tensor:
        """Return the policy's chunk ``[*B, H, A]`` in robot space."""
        chunk = self.policy.predict_chunk(self._to_model_space(tensordict))
        return self.action_scaling.denormalize(chunk)

    def decode(self, sample: Tensor) -> Tensor:
        """Return the chunk ``[*B, H, A]`` of a sample, in robot space."""
        return self.action_scaling.denormalize(self.policy.decode(sample))

    def get_dist(self, tensordict: TensorDictBase) -> Distribution:
        """Return a stochastic policy's distribution of samples."""
        kept = [IS_DECISION_KEY, ("next", IS_EXECUTED_KEY), self.element_log_probs_key]
        return self.policy.get_dist(self._to_model_space(tensordict, *kept))

    def element_log_probs(self, tensordict: TensorDictBase) -> Tensor:
        """Return the terms ``[*B, H, A]`` of the sample's log-probability."""
        inputs = self._to_model_space(tensordict, self.sample_key)
        return self.policy.element_log_probs(inputs)

    def log_prob(self, tensordict: TensorDictBase) -> Tensor:
        """Return the sample's log-probability ``[*B]``."""
        inputs = self._to_model_space(tensordict, self.sample_key)
        return self.policy.log_prob(inputs)

    def _to_model_space(
        self, tensordict: TensorDictBase, *more: NestedKey
    ) -> TensorDictBase:
        keys = [*self.in_keys, *self.optional_in_keys, *more]
        model_space = tensordict.select(*keys, strict=False)
        guide = model_space.get(GUIDE_CHUNK_KEY, None)
        if guide is not None:
            model_space.set(GUIDE_CHUNK_KEY, self.action_scaling.normalize(guide))
        if self.state_scaling is None:
            return model_space
        return self.state_scaling(model_space)
