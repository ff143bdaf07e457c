"""One dataset's border between robot space and model space, for training and acting."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torch.distributions import Distribution
from torchrl.data.replay_buffers import Storage
from torchrl.envs import Compose

from torchrl_vla.execution import MultiStepActorWrapper
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    GUIDE_CHUNK_KEY,
    PolicySpace,
    RobotDatasetMetadata,
)
from torchrl_vla.transforms import ActionChunkTransform, ActionScaling, StateScaling
from torchrl_vla.transforms.affine_scaling import ScalingMode


@dataclass(frozen=True)
class ModelSpace:
    """Make the transforms of training and the actor of a policy from one record.

    A policy trained on normalized actions and executed without denormalizing them is
    the classic silent error. Here both directions come from the same metadata and the
    same mode, so they cannot disagree.

    Args:
        metadata: of the dataset, with its statistics.
        mode: how actions and states are normalized.

    Examples:
        >>> import torch
        >>> from torchrl_vla.schema import FeatureStatistics, RobotDatasetMetadata
        >>> stats = FeatureStatistics.from_samples(torch.tensor([[1.0], [5.0]]))
        >>> space = ModelSpace(RobotDatasetMetadata("d", action_statistics=stats))
        >>> space.action_scaling.denormalize(torch.tensor([1.0]))
        tensor([5.])
    """

    metadata: RobotDatasetMetadata
    mode: ScalingMode = "mean_std"

    @property
    def action_scaling(self) -> ActionScaling:
        """Actions and chunks, robot space to model space."""
        return ActionScaling.from_metadata(self.metadata, self.mode)

    @property
    def state_scaling(self) -> StateScaling | None:
        """States, robot space to model space; None for data without a state."""
        if self.metadata.state_statistics is None:
            return None
        return StateScaling.from_metadata(self.metadata, self.mode)

    @property
    def fingerprint(self) -> str:
        """Hash of the mode and of every number that the scaling multiplies or adds."""
        scalings = [self.action_scaling, self.state_scaling]
        numbers = [
            None if scaling is None else [scaling.loc.tolist(), scaling.scale.tolist()]
            for scaling in scalings
        ]
        text = json.dumps([self.mode, numbers])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def policy_space(self) -> PolicySpace:
        """The mark of a policy that is trained in this space."""
        return PolicySpace("model", self.fingerprint, self.mode)

    def transforms(self, chunk_size: int, storage: Storage) -> Compose:
        """Return what turns sampled frames into training targets.

        Args:
            chunk_size: ``H``.
            storage: of the buffer that is sampled; chunks are gathered from it.
        """
        parts = [chunk_targets(chunk_size, storage), self.action_scaling]
        state_scaling = self.state_scaling
        if state_scaling is not None:
            parts.append(state_scaling)
        return Compose(*parts)

    def executor(
        self, policy: TensorDictModuleBase, *, replan_interval: int | None = None
    ) -> MultiStepActorWrapper:
        """Return what acts: observation in robot space to one action in robot space.

        Args:
            policy: writes ``action_chunk`` in model space.
            replan_interval: actions to execute before asking again; None = the chunk.
        """
        robot_policy = RobotSpacePolicy(policy, self.action_scaling, self.state_scaling)
        return MultiStepActorWrapper(
            robot_policy, replan_interval=replan_interval, chunk_key=ACTION_CHUNK_KEY
        )


def chunk_targets(chunk_size: int, storage: Storage) -> ActionChunkTransform:
    """Return what gathers the chunks of a dataset's frames, in robot space."""
    # The storage's indices end the episodes, also where `done` says otherwise.
    return ActionChunkTransform(chunk_size, storage=storage, done_key=None)


class RobotSpacePolicy(TensorDictModuleBase):
    """Let a policy of model space speak robot space.

    **Reads** what the policy reads, in robot space; **writes** what it writes, with
    ``action_chunk`` in robot space. The state in the tensordict is left as it was, and
    so is ``guide_chunk``, where the policy takes one: chunks in robot space. The
    choice of a stochastic policy stays in model space, so a loss takes this policy,
    and observations in robot space, as it takes the one inside.

    Args:
        policy: writes ``action_chunk`` in model space.
        action_scaling: denormalizes the chunk.
        state_scaling: normalizes the state; None = there is none.
    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        action_scaling: ActionScaling,
        state_scaling: StateScaling | None,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.action_scaling = action_scaling
        self.state_scaling = state_scaling
        self.in_keys = list(policy.in_keys)
        self.optional_in_keys = list(getattr(policy, "optional_in_keys", ()))
        self.out_keys = list(policy.out_keys)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the policy's outputs, the chunk in robot space."""
        answer = self.policy(self._to_model_space(tensordict))
        tensordict.update(answer.select(*self.out_keys))
        chunk = self.action_scaling.denormalize(answer.get(ACTION_CHUNK_KEY))
        return tensordict.set(ACTION_CHUNK_KEY, chunk)

    @property
    def sample_key(self) -> NestedKey:
        """Where a stochastic policy writes its choice, which stays in model space."""
        return self.policy.sample_key

    def get_dist(self, tensordict: TensorDictBase) -> Distribution:
        """Return a stochastic policy's distribution of choices."""
        return self.policy.get_dist(self._to_model_space(tensordict))

    def element_log_probs(self, tensordict: TensorDictBase) -> Tensor:
        """Return the terms ``[*B, H, A]`` of the choice's log-probability."""
        return self.policy.element_log_probs(self._to_model_space(tensordict, True))

    def log_prob(self, tensordict: TensorDictBase) -> Tensor:
        """Return the choice's log-probability ``[*B]``."""
        return self.policy.log_prob(self._to_model_space(tensordict, True))

    def _to_model_space(
        self, tensordict: TensorDictBase, with_sample: bool = False
    ) -> TensorDictBase:
        keys = [*self.in_keys, *self.optional_in_keys]
        if with_sample:
            keys.append(self.sample_key)
        model_space = tensordict.select(*keys, strict=False)
        guide = model_space.get(GUIDE_CHUNK_KEY, None)
        if guide is not None:
            model_space.set(GUIDE_CHUNK_KEY, self.action_scaling.normalize(guide))
        if self.state_scaling is None:
            return model_space
        return self.state_scaling(model_space)
