"""Model space: normalized actions and states, and the executors that leave it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar, overload

from tensordict.nn import TensorDictModuleBase
from torchrl.data.replay_buffers import Storage
from torchrl.envs import Compose

from torchrl_vla.execution import (
    ActionGuard,
    ChunkExecutor,
    ExecutorKeys,
    GuardKeys,
    MultiStepActorWrapper,
    OnViolation,
)
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    PolicySpace,
    RobotDatasetMetadata,
    SpaceError,
    metadata_of,
    space_of,
)
from torchrl_vla.spaces.robot_space_policy import RobotSpacePolicy
from torchrl_vla.transforms import (
    ActionChunkKeys,
    ActionChunkTransform,
    ActionScaling,
    StateScaling,
)
from torchrl_vla.transforms.affine_scaling import ScalingMode

ExecutorT = TypeVar("ExecutorT", bound=ChunkExecutor)


@dataclass(frozen=True)
class ModelSpace:
    """Make the transforms of training and the executor of a policy from one record.

    A policy trained on normalized actions and executed without denormalizing them is
    the classic silent error. Here both directions come from the same metadata and the
    same mode, so they cannot disagree, and a policy that training has marked with its
    space is refused in another one.

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
        """Hash of the mode and of every number that the scaling multiplies or adds.

        Two spaces with one fingerprint convert all actions and states alike.

        Raises:
            MetadataError: the metadata have no statistics of the actions.
        """
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
        """Return the transforms from sampled frames to training targets.

        Args:
            chunk_size: ``H``.
            storage: of the buffer that is sampled; chunks are gathered from it.
        """
        parts = [chunk_targets(chunk_size, storage), self.action_scaling]
        state_scaling = self.state_scaling
        if state_scaling is not None:
            parts.append(state_scaling)
        return Compose(*parts)

    def robot_policy(self, policy: TensorDictModuleBase) -> RobotSpacePolicy:
        """Return a policy of this space as one of robot space.

        Args:
            policy: reads and writes this space; ``action_chunk`` is its chunk.

        Raises:
            SpaceError: the policy is marked with another space, or with robot space.
            IncompatibleMetadataError: it was trained on data of another robot.
        """
        marked = space_of(policy)
        if marked is not None and marked != self.policy_space:
            way_out = "Use the space that load_checkpoint returned beside it, or train"
            way_out += " it in this one."
            if marked.kind == "robot":
                way_out = "It would be scaled twice. Use it without a ModelSpace."
            raise SpaceError(
                f"ModelSpace: expected a policy of {self.policy_space}, got "
                f"{type(policy).__name__} of {marked}. {way_out}"
            )
        wrapped = RobotSpacePolicy(policy, self.action_scaling, self.state_scaling)
        weight = next(policy.parameters(), None)
        if weight is not None:  # the scalings, too
            wrapped.to(weight.device)
        known, trained = self.metadata, metadata_of(policy)
        if trained is not None:
            sides = ("the policy's training data", "the space")
            trained.check_compatible(known, sides=sides)
            known = replace(known, image_sizes=known.image_sizes or trained.image_sizes)
        wrapped.training_metadata = known
        return wrapped

    @overload
    def executor(
        self,
        policy: TensorDictModuleBase,
        *,
        guard: OnViolation | None = "clip",
        **options: Any,
    ) -> MultiStepActorWrapper: ...

    @overload
    def executor(
        self,
        policy: TensorDictModuleBase,
        executor_class: Callable[..., ExecutorT],
        *,
        guard: OnViolation | None = "clip",
        **options: Any,
    ) -> ExecutorT: ...

    def executor(
        self,
        policy: TensorDictModuleBase,
        executor_class: Callable[..., ChunkExecutor] = MultiStepActorWrapper,
        *,
        guard: OnViolation | None = "clip",
        **options: Any,
    ) -> ChunkExecutor:
        """Make an executor: observations to one action per step, both in robot space.

        It lies on the policy's device.

        Args:
            policy: reads and writes this space; ``action_chunk`` is its chunk.
            executor_class: takes a policy of robot space and the options, such as
                :class:`TemporalEnsemble`, :class:`RealTimeChunking`,
                :class:`AsyncExecutor`.

        Keyword Args:
            guard: what the :class:`ActionGuard` inside does with actions beyond the
                limits that the metadata declare; actions that are not finite are never
                sent. None = no guard.
            options: of ``executor_class``, such as ``replan_interval``.

        Raises:
            SpaceError: the policy is marked with another space, or with robot space.

        Examples:
            >>> import torch
            >>> from tensordict.nn import TensorDictModule
            >>> from torchrl_vla.execution import TemporalEnsemble
            >>> from torchrl_vla.schema import FeatureStatistics
            >>> stats = FeatureStatistics.from_samples(torch.tensor([[1.0], [5.0]]))
            >>> space = ModelSpace(RobotDatasetMetadata("d", action_statistics=stats))
            >>> policy = TensorDictModule(
            ...     torch.zeros_like, ["state"], ["action_chunk"]
            ... )
            >>> executor = space.executor(
            ...     policy, TemporalEnsemble, action_reference="absolute"
            ... )
            >>> type(executor).__name__
            'TemporalEnsemble'
        """
        robot_policy: TensorDictModuleBase = self.robot_policy(policy)
        if guard is not None:
            robot_policy = ActionGuard.from_metadata(
                robot_policy,
                self.metadata,
                on_violation=guard,
                keys=GuardKeys(action=ACTION_CHUNK_KEY),
            )
        options.setdefault("keys", ExecutorKeys(chunk=ACTION_CHUNK_KEY))
        executor = executor_class(robot_policy, **options)
        devices = {parameter.device for parameter in policy.parameters()}
        # Scaling and limits go where the policy is, if it is in one place.
        return executor.to(*devices) if len(devices) == 1 else executor


def chunk_targets(chunk_size: int, storage: Storage) -> ActionChunkTransform:
    """Return the transform that gathers the chunks of frames, in robot space.

    Args:
        chunk_size: ``H``.
        storage: of the buffer that is sampled.
    """
    # The storage's indices end the episodes, also where `done` says otherwise.
    keys = ActionChunkKeys(done=None)
    return ActionChunkTransform(chunk_size, storage=storage, keys=keys)
