"""Checks of a robot, its observations and its actions, which hold no state."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_vla.errors import VLAError
from torchrl_vla.execution import EmbodimentContract
from torchrl_vla.execution.guard.action_limits import StepLimit
from torchrl_vla.runtime.gate_options import GateOptions
from torchrl_vla.schema import (
    ROBOT_FIELDS,
    STATE_KEY,
    ExecutionError,
    MetadataError,
    RobotDatasetMetadata,
    SchemaError,
    declared_observations,
)


class RobotStoppedError(ExecutionError):
    """The robot was stopped, and takes no action until somebody releases it."""


class StaleActionError(ExecutionError):
    """An action answers an observation that is too old, or of another session."""


def check_declared(metadata: RobotDatasetMetadata) -> None:
    """Refuse a robot that does not declare what a gate checks.

    Raises:
        MetadataError: lists what is missing.
    """
    missing = [name for name in ROBOT_FIELDS if vars(metadata)[name] is None]
    if "relative" in (metadata.action_reference or ()):
        missing.append("action_reference of 'absolute' or 'delta'")
    if missing:
        raise MetadataError(
            f"SafetyGate: expected the metadata of robot {metadata.dataset_id!r} to "
            f"declare {missing}, got none. A gate cannot check what it does not know: "
            "declare it in the robot's metadata. Nothing was sent."
        )


def check_observation(metadata: RobotDatasetMetadata, observed: TensorDict) -> None:
    """Refuse an observation that is not what a robot's metadata declare.

    Raises:
        SchemaError: lists every difference.
    """
    found = []
    for key, (dtype, shape) in declared_observations(metadata).items():
        value = observed.get(key, None)
        got = None if value is None else (value.dtype, tuple(value.shape))
        if got != (dtype, shape):
            found.append(f"expected {dtype} {list(shape)} at {key!r}, got {got}")
    if not found and not observed[STATE_KEY].isfinite().all():
        found.append(f"expected finite numbers at {STATE_KEY!r}, got others")
    if found:
        raise SchemaError(
            f"SafetyGate: the robot {metadata.dataset_id!r} observes something else "
            f"than its metadata declare: {'; '.join(found)}. Correct the driver or the "
            "metadata. The robot goes on with its last command."
        )


class ActionChecks:
    """Find what is illegal in one action, and the nearest legal one.

    Args:
        contract: of the robot's actions.
        options: of the gate.
    """

    def __init__(self, contract: EmbodimentContract, options: GateOptions) -> None:
        self.contract, self.options = contract, options
        for limit in (options.max_step, options.max_velocity):
            if limit is not None:
                StepLimit(limit, contract.action_dim)  # refuses what is no limit

    def reason(
        self, action: Tensor, before: Tensor | None, elapsed_s: float
    ) -> str | None:
        """Return what is wrong with an action; None = it is legal.

        Args:
            action: float32 ``[A]``.
            before: what was sent last ``[A]``; None = nothing.
            elapsed_s: seconds since then.
        """
        if not action.isfinite().all():
            return "not finite"
        if not self.contract.limits.legal(action).all():
            return "limits"
        for limit in self._step_limits(elapsed_s):
            if before is not None and not limit.legal(action[None], before).all():
                return "step"
        return None

    def clip(self, action: Tensor, before: Tensor | None, elapsed_s: float) -> Tensor:
        """Return the nearest legal action of a finite one."""
        clipped = self.contract.limits.clip(action)
        for limit in self._step_limits(elapsed_s):
            if before is not None:
                clipped = limit.clip(clipped[None], before)[0]
        return clipped

    def refusal(self, action: Tensor, reason: str) -> VLAError:
        """Make the error of a refused action."""
        found = list(self.contract.describe_illegal(action[None]))
        if reason == "step":
            options = self.options
            found.append(
                f"expected a change of at most max_step={options.max_step} and "
                f"max_velocity={options.max_velocity} per second from the action "
                "before, got more"
            )
        return self.contract.refusal("an action within the contract", found)

    def _step_limits(self, elapsed_s: float) -> list[StepLimit]:
        options, found = self.options, []
        if options.max_step is not None:
            found.append(StepLimit(options.max_step))
        if options.max_velocity is not None:
            speed = torch.as_tensor(options.max_velocity, dtype=torch.float64)
            found.append(StepLimit((speed * elapsed_s).tolist()))
        return found
