"""Acting path of a policy: its executor, as it is loaded to act."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from tensordict.nn import TensorDictModuleBase
from torch import nn

from torchrl_vla._internal.named_objects import is_named_object
from torchrl_vla.diagnosis.recorded_environment import RecordedEnvironment
from torchrl_vla.execution import MultiStepActorWrapper
from torchrl_vla.execution.executor import Executor
from torchrl_vla.policies import VLAWrapperBase, as_policy
from torchrl_vla.policies.module_policy import declared
from torchrl_vla.recipes.checkpoints import interval_of
from torchrl_vla.recipes.own_policies import load_any_executor
from torchrl_vla.schema import RobotDatasetMetadata, SchemaError, space_of
from torchrl_vla.spaces import ModelSpace, RobotSpacePolicy
from torchrl_vla.transforms.affine_scaling import ScalingMode


@dataclass(frozen=True)
class ActingPath:
    """Hold what acts, and what is known of its training.

    Args:
        executor: writes an action per step, in robot space.
        policy: inside it; reads model space, or robot space without a mode.
        metadata: of the training data; None = unknown.
        mode: how its space normalizes; None = it is of robot space.
    """

    executor: TensorDictModuleBase
    policy: VLAWrapperBase
    metadata: RobotDatasetMetadata | None
    mode: ScalingMode | None

    @classmethod
    def open(
        cls,
        policy: Path | str | TensorDictModuleBase,
        recorded: RecordedEnvironment,
        space: ModelSpace | None = None,
    ) -> ActingPath:
        """Load or make the executor of a policy.

        Args:
            policy: a source of ``load_any_executor``, an executor, or a policy.
            recorded: stands for the robot.
            space: of a policy or executor that is given as an object.

        Raises:
            SchemaError: the executor holds no policy; and as ``load_any_executor``.
        """
        metadata = None if space is None else space.metadata
        match policy:
            case str() | Path():
                executor, metadata = _load(str(policy), recorded)
            case Executor():
                executor = policy
            case _:
                executor = _make(policy, space)
        inside = _policy_of(executor)
        mark = space_of(inside)
        mode = None if space is None else space.mode
        if mark is not None:
            mode = cast(ScalingMode | None, mark.mode)
        elif mode is None and _find(executor, RobotSpacePolicy) is not None:
            mode = "mean_std"
        return cls(executor, inside, metadata, mode)

    @property
    def history_size(self) -> int:
        """Observations that the policy reads, the current one included."""
        sizes = (declared(m, "history_size", None) for m in self.policy.modules())
        return next((size for size in sizes if size), 1)

    @property
    def robot_policy(self) -> TensorDictModuleBase:
        """The policy in robot space that the executor calls."""
        return declared(self.executor, "policy", self.policy)

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Put every part in evaluation mode, without gradients, and undo it."""
        flags = [(part, part.training) for part in self.executor.modules()]
        self.executor.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for part, training in flags:
                part.training = training


def trained_metadata(folder: Path) -> RobotDatasetMetadata | None:
    """Return the metadata of a checkpoint's training data; None = it has none."""
    for path in (folder / "metadata.json", folder / "pretrained_model/metadata.json"):
        if path.is_file():
            return RobotDatasetMetadata.from_json(path)
    return None


def _load(
    source: str, recorded: RecordedEnvironment
) -> tuple[TensorDictModuleBase, RobotDatasetMetadata | None]:
    if is_named_object(source) and not Path(source).is_dir():
        return load_any_executor(source, recorded), None
    folder = Path(source).expanduser()
    known = recorded.metadata
    # Nothing is declared, so nothing is refused here: the stages compare it.
    recorded.metadata = RobotDatasetMetadata("undeclared")
    try:
        return load_any_executor(source, recorded), trained_metadata(folder)
    finally:
        recorded.metadata = known


def _make(
    policy: TensorDictModuleBase, space: ModelSpace | None
) -> TensorDictModuleBase:
    policy = as_policy(policy)
    interval = interval_of(policy, None)
    if space is not None:
        return space.executor(policy, replan_interval=interval)
    return MultiStepActorWrapper(policy, replan_interval=interval)


def _find(module: nn.Module, cls: type[nn.Module]) -> nn.Module | None:
    return next((part for part in module.modules() if isinstance(part, cls)), None)


def _policy_of(executor: nn.Module) -> VLAWrapperBase:
    found = _find(executor, VLAWrapperBase)
    if found is None:
        raise SchemaError(
            "diagnose: expected an executor around a policy, got "
            f"{type(executor).__name__} around none. Pass the policy through "
            "as_policy(module, chunk_size=, action_dim=) first."
        )
    return found  # type: ignore[return-value]
