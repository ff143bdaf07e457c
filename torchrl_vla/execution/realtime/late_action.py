"""Action of a step for which the policy has not answered."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_vla.execution.realtime.lateness import Lateness
from torchrl_vla.execution.realtime.requests import AsyncState
from torchrl_vla.schema import ExecutionError, RobotDatasetMetadata


class LateAction:
    """Write what an executor's :class:`Lateness` says for environments that are late.

    Args:
        caller: the executor; opens the error messages.
        lateness: says what is written.
        action_reference: of the executor.
        metadata: of the policy; None = unknown.

    Raises:
        ValueError: the reaction does not suit the actions.
    """

    def __init__(
        self,
        caller: str,
        lateness: Lateness,
        action_reference: str,
        metadata: RobotDatasetMetadata | None,
    ) -> None:
        self.caller = caller
        self.lateness = lateness
        self.action_dim = None if metadata is None else metadata.action_dim
        self.zeroed = lateness.zeroed(caller, action_reference, metadata)

    def write(
        self,
        tensordict: TensorDictBase,
        action: Tensor | None,
        state: AsyncState,
        late: Tensor,
        begun: Tensor,
    ) -> Tensor:
        """Return the step's actions ``[*B, A]``.

        Args:
            tensordict: of the step.
            action: of the environments that are not late; None = all are.
            state: with the actions of the step before.
            late: bool ``[*B]``, some are True.
            begun: bool ``[*B]``, those of them whose episode begins.

        Raises:
            ExecutionError: an episode begins without anything to execute.
        """
        last = self._last(tensordict, action, state, begun)
        if self.zeroed is not None:
            last = last.masked_fill(self.zeroed.to(last.device), 0)
        if action is None:
            return last
        return torch.where(late.unsqueeze(-1), last.to(action.dtype), action)

    def _last(
        self,
        tensordict: TensorDictBase,
        action: Tensor | None,
        state: AsyncState,
        begun: Tensor,
    ) -> Tensor:
        """Return what was executed last, or is held where an episode begins."""
        last = state.last_action
        if last is not None and not begun.any():
            return last
        if self.zeroed is not None and self.zeroed.all():
            return self._zeros(last if action is None else action, begun)
        key = self.lateness.position
        position = None if key is None else tensordict.get(key, None)
        if position is None or self.lateness.reaction == "repeat":
            raise ExecutionError(
                f"{self.caller}: expected a chunk on the first step of an episode "
                f"within timeout_s={self.lateness.timeout_s}, got none, and reaction "
                f"{self.lateness.reaction!r} has no earlier action in env indices "
                f"{begun.reshape(-1).nonzero().flatten().tolist()}. Increase timeout_s,"
                " or name the robot's position in Lateness(position=...), in the units "
                "of its actions. No action was sent."
            ).at_envs(begun)
        wanted = None if last is None else last.shape
        if position.shape[:-1] != begun.shape or wanted not in (None, position.shape):
            raise ExecutionError(
                f"{self.caller}: expected a position of shape "
                f"{list(wanted or (*begun.shape, 'A'))} at {key!r}, got "
                f"{list(position.shape)}. No action was sent."
            )
        if last is None:
            return position.clone()
        return torch.where(begun.unsqueeze(-1), position.to(last.dtype), last)

    def _zeros(self, like: Tensor | None, begun: Tensor) -> Tensor:
        if like is not None:
            return torch.zeros_like(like)
        if self.action_dim is None:
            raise ExecutionError(
                f"{self.caller}: expected a policy whose training_metadata declare "
                "action_dim, got none, and the first chunk has not arrived: it is not "
                "known how many zeros to send. Set policy.training_metadata. No action "
                "was sent."
            )
        return torch.zeros(*begun.shape, self.action_dim, device=begun.device)
