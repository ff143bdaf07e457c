"""Processing of LeRobot's training and acting, for the parity doctor."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial

from tensordict import TensorDictBase
from torch import Tensor

from torchrl_vla.data import Demonstrations
from torchrl_vla.policies import (
    LeRobotPipeline,
    LeRobotPolicyWrapper,
    VLAWrapperBase,
)
from torchrl_vla.policies.lerobot import RobotFit
from torchrl_vla.policies.module_policy import declared
from torchrl_vla.recipes.relative_statistics import relative_action_statistics
from torchrl_vla.schema import ENVIRONMENT_STATE_KEY, FeatureStatistics

_STATE_NAMES = ("observation.state", "observation.environment_state")


@dataclass(frozen=True)
class LeRobotProcessing:
    """Hold a policy as it acts, and as ``train_lerobot`` would train it.

    Args:
        acting: with the processors of its checkpoint.
        training: the same policy with the statistics of the dataset.
    """

    acting: LeRobotPolicyWrapper
    training: LeRobotPolicyWrapper

    @classmethod
    def of(
        cls, policy: VLAWrapperBase, dataset: Demonstrations
    ) -> LeRobotProcessing | None:
        """Return the processing of a policy; None = it is none of LeRobot's."""
        acting = declared(policy, "wrapper", None)
        if acting is None or acting.pipeline is None:
            return None
        environment = dataset.frames.get(ENVIRONMENT_STATE_KEY, None)
        if environment is not None:
            environment = FeatureStatistics.from_samples(environment)
        fit = RobotFit(
            dataset.metadata,
            environment,
            partial(relative_action_statistics, dataset),
            caller="diagnose",
        )
        pipeline = acting.pipeline
        before, after = copy.deepcopy((pipeline.preprocessor, pipeline.postprocessor))
        fit.fit_processors(acting.policy.config, before, after)
        training = LeRobotPolicyWrapper(
            acting.policy,
            pipeline=LeRobotPipeline(before, after),
            instructions=acting.instructions,
        )
        return cls(acting, training)

    @property
    def first_step(self) -> int:
        """First step of the training's targets, from the frame; at most 0."""
        return self.acting.target_steps[0]

    @property
    def target_size(self) -> int:
        """Actions of the training's targets."""
        return len(self.acting.target_steps)

    def executed(self, chunk: Tensor) -> Tensor:
        """Return of targets ``[..., L, A]`` the steps that the policy's chunk has."""
        chunk = chunk[..., -self.first_step :, :]
        return chunk[..., : self.acting.chunk_size, :]

    def target(self, frames: TensorDictBase) -> Tensor:
        """Return the training's targets in model space, ``[N, T, L, A]``."""
        batch = self.training.make_training_batch(frames)
        return batch["action"].unflatten(0, frames.batch_size)

    def deliver(self, target: Tensor) -> Tensor:
        """Return targets ``[N, L, A]`` as the acting postprocessor sends them."""
        assert self.acting.pipeline is not None
        return self.executed(self.acting.pipeline.postprocessor(target))

    def states(self, frames: TensorDictBase, *, training: bool) -> dict[str, Tensor]:
        """Return the states in model space, ``[N, T, S]``, of the last observation."""
        wrapper = self.training if training else self.acting
        adapter = wrapper.adapter.as_pretrained("diagnose")
        batch = adapter.preprocess(adapter.make_frames(frames)[-1])
        return {
            name: batch[name].unflatten(0, frames.batch_size)
            for name in _STATE_NAMES
            if name in batch
        }
