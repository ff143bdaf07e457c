"""Policy in one robot's conventions around a policy of another's."""

from __future__ import annotations

from dataclasses import replace

from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torch.distributions import Distribution

from torchrl_vla.execution import PolicyWrapper
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    GUIDE_CHUNK_KEY,
    RobotDatasetMetadata,
    SpaceError,
    check_robot_space,
    metadata_of,
)
from torchrl_vla.transforms import RobotConversion
from torchrl_vla.transforms.conversions.chunk_resampling import resampled_size


class ConvertedPolicy(PolicyWrapper):
    """Drive a robot with a chunk policy that was trained in other conventions.

    The whole chunk is converted when it is made, with the state that it is measured
    from, so that any executor can execute, average or continue it: relative actions
    become absolute here. A chunk to continue (``guide_chunk``) is measured anew from
    the new state on its way in.

    **Reads** what the policy reads, and the state that actions are measured from, in
    the source's conventions; **writes** what it writes, with ``action_chunk`` in the
    source's. Observations in the tensordict stay as they were. Other members of the
    policy are forwarded (:class:`~torchrl_vla.execution.PolicyWrapper`).

    Args:
        policy: writes ``action_chunk`` in the target's conventions, robot space.
        conversion: ``robot_metadata.conversion_to(policy_metadata)``.

    Raises:
        SpaceError: the policy is of model space (wrap ``space.robot_policy(policy)``),
            or a chunk to continue comes at another control rate.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl_vla.schema import RobotDatasetMetadata
        >>> robot = RobotDatasetMetadata(
        ...     "robot",
        ...     action_names=("x",),
        ...     action_reference="absolute",
        ...     state_names=("x",),
        ... )
        >>> trained = RobotDatasetMetadata(
        ...     "trained", action_names=("x",), action_reference="relative"
        ... )
        >>> step = TensorDictModule(
        ...     lambda state: torch.ones(*state.shape[:-1], 2, 1),
        ...     [("observation", "state")],
        ...     ["action_chunk"],
        ... )
        >>> policy = ConvertedPolicy(step, robot.conversion_to(trained))
        >>> seen = TensorDict({"observation": {"state": torch.tensor([[5.0]])}}, [1])
        >>> policy(seen)["action_chunk"]
        tensor([[[6.],
                 [6.]]])
    """

    def __init__(
        self, policy: TensorDictModuleBase, conversion: RobotConversion
    ) -> None:
        check_robot_space(type(self).__name__, policy)
        super().__init__(policy)
        self.conversion = conversion
        self.training_metadata = self._in_robots_conventions(policy)
        bases = conversion.base_keys
        self.in_keys = list(dict.fromkeys([*self.in_keys, *bases]))

    def _in_robots_conventions(self, policy: nn.Module) -> RobotDatasetMetadata:
        """Return the robot's metadata, with the images that the policy knows."""
        known = metadata_of(policy) or RobotDatasetMetadata("unknown")
        return replace(
            self.conversion.plan.source,
            cameras=known.cameras,
            image_sizes=known.image_sizes,
        )

    @property
    def optional_in_keys(self) -> list[NestedKey]:
        """Inputs that the policy reads where they are."""
        return list(getattr(self.policy, "optional_in_keys", ()))

    @property
    def chunk_size(self) -> int:
        """Actions per chunk, at the robot's control rate."""
        ratio = self.conversion.plan.rate_ratio
        return resampled_size(self.policy.chunk_size, 1 / ratio)

    @property
    def action_dim(self) -> int:
        """Numbers per action of the robot."""
        actions = self.conversion.actions
        return self.policy.action_dim if actions is None else actions.source_dim

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the policy's outputs, the chunk in the robot's conventions."""
        inputs = self._inputs(tensordict)
        answer = self.policy(inputs.copy())
        tensordict.update(answer.select(*self.out_keys))
        chunk = self._to_robot(inputs, answer.get(ACTION_CHUNK_KEY))
        return tensordict.set(ACTION_CHUNK_KEY, chunk)

    def predict_chunk(self, tensordict: TensorDictBase) -> Tensor:
        """Return the policy's chunk ``[*B, H, A]`` in the robot's conventions."""
        inputs = self._inputs(tensordict)
        return self._to_robot(inputs, self.policy.predict_chunk(inputs.copy()))

    def get_dist(self, tensordict: TensorDictBase) -> Distribution:
        """Return a stochastic policy's distribution of samples."""
        return self.policy.get_dist(self._inputs(tensordict))

    def element_log_probs(self, tensordict: TensorDictBase) -> Tensor:
        """Return the terms ``[*B, H, A]`` of the sample's log-probability."""
        inputs = self._inputs(tensordict, self.policy.sample_key)
        return self.policy.element_log_probs(inputs)

    def log_prob(self, tensordict: TensorDictBase) -> Tensor:
        """Return the sample's log-probability ``[*B]``."""
        return self.policy.log_prob(self._inputs(tensordict, self.policy.sample_key))

    def _inputs(self, tensordict: TensorDictBase, *more: NestedKey) -> TensorDictBase:
        keys = [*self.in_keys, *self.optional_in_keys, *more]
        inputs = tensordict.select(*keys, strict=False)
        guide = inputs.get(GUIDE_CHUNK_KEY, None)
        if guide is not None:
            if self.conversion.plan.rate_ratio != 1.0:
                raise SpaceError(
                    "ConvertedPolicy: expected the policy's own control rate for "
                    f"{GUIDE_CHUNK_KEY!r}, whose weights belong to its actions, got "
                    f"{self.conversion.plan.rate_ratio:g} times the robot's. Use an "
                    "executor that guides no chunk."
                )
            guided = inputs.select(*self.conversion.base_keys)
            guided.set(ACTION_CHUNK_KEY, guide)
            guide = self.conversion.to_target(guided).get(ACTION_CHUNK_KEY)
            inputs.set(GUIDE_CHUNK_KEY, guide)
        return self.conversion.observations_to_target(inputs)

    def _to_robot(self, inputs: TensorDictBase, chunk: Tensor) -> Tensor:
        answer = inputs.copy().set(ACTION_CHUNK_KEY, chunk)
        return self.conversion.actions_to_source(answer).get(ACTION_CHUNK_KEY)
