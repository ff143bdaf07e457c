"""Policy of a person: a teleoperator, alone or to correct another policy."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.execution import InterventionPolicy
from torchrl_vla.runtime.robot_env import ANSWERED_AT_KEY, IS_HELD_KEY
from torchrl_vla.runtime.teleoperator import Teleoperator
from torchrl_vla.schema import (
    ACTION_KEY,
    IS_INIT_KEY,
    IS_INTERVENTION_KEY,
    OBSERVED_AT_KEY,
    PREVIOUS_ACTION_KEY,
    STATE_KEY,
)


class TeleoperatorPolicy(TensorDictModuleBase):
    """Act as a person commands with a teleoperator.

    Where the person lets go, the robot stays at its last action. Where they take over,
    the robot comes to the teleoperator's pose within ``handover_s``, on a line; one
    with feedback follows the robot meanwhile, so that it is at its pose already.

    **Reads** the observation; ``previous_action`` float32 ``[1, A]``; ``is_init``.

    **Writes** ``action`` float32 ``[1, A]``; ``is_intervention`` bool ``[1, 1]``, True
    = the person commands.

    Args:
        teleoperator: that is connected.

    Keyword Args:
        handover_s: of a takeover.
        rate_hz: control steps per second.

    Raises:
        ValueError: ``handover_s`` is negative.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl_vla.testing import FakeRobot, FakeTeleoperator
        >>> metadata = FakeRobot().metadata
        >>> person = FakeTeleoperator(metadata, lambda call: torch.ones(2))
        >>> policy = TeleoperatorPolicy(person, handover_s=0.1, rate_hz=20.0)
        >>> step = TensorDict(
        ...     {"observation": {"state": torch.zeros(1, 2)}}, [1]
        ... )
        >>> step["previous_action"] = torch.zeros(1, 2)
        >>> step["previous_action"] = policy(step)["action"]
        >>> step["previous_action"], policy(step)["action"]
        (tensor([[0.5000, 0.5000]]), tensor([[1., 1.]]))
    """

    def __init__(
        self, teleoperator: Teleoperator, *, handover_s: float = 0.0, rate_hz: float
    ) -> None:
        super().__init__()
        if handover_s < 0:
            raise ValueError(
                f"TeleoperatorPolicy: expected handover_s >= 0, got {handover_s}."
            )
        self.in_keys = [STATE_KEY, PREVIOUS_ACTION_KEY]
        self.out_keys = [ACTION_KEY, IS_INTERVENTION_KEY]
        self.teleoperator = teleoperator
        self.metadata = teleoperator.metadata  # compared with the robot's
        self.handover_steps = max(1, round(handover_s * rate_hz))
        self._taken = 0  # steps since the person took over

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the person's action, or the last one."""
        before = tensordict.get(PREVIOUS_ACTION_KEY)
        begins = tensordict.get(IS_INIT_KEY, None)
        if begins is not None and begins.any():
            self._taken = 0
        wanted = self.teleoperator.read(tensordict[0].copy())
        if wanted is None:
            self._taken = 0
            action = before.clone()
            if self.teleoperator.has_feedback:
                self.teleoperator.follow(before[0])
        else:
            action = self._approach(before, wanted.to(before).unsqueeze(0))
        acts = torch.full((*tensordict.batch_size, 1), wanted is not None)
        tensordict.set(ACTION_KEY, action)
        return tensordict.set(IS_INTERVENTION_KEY, acts)

    def _approach(self, before: Tensor, wanted: Tensor) -> Tensor:
        left = self.handover_steps - self._taken
        self._taken += 1
        return before + (wanted - before) / left if left > 1 else wanted


class CorrectionPolicy(InterventionPolicy):
    """Act with a policy's executor, and let a person correct it (HG-DAgger).

    An :class:`~torchrl_vla.execution.InterventionPolicy` on a robot: a person's action
    is sent also while the policy is late, and when they let go the executor plans anew.

    **Reads** and **writes** as :class:`~torchrl_vla.execution.InterventionPolicy`; of a
    :class:`DeadlinePolicy` also ``is_held`` and ``answered_at_s``, which are the
    person's where they act.

    Args:
        policy: an executor, or a :class:`DeadlinePolicy` around one.
        person: that corrects.
    """

    def __init__(
        self, policy: TensorDictModuleBase, person: TeleoperatorPolicy
    ) -> None:
        super().__init__(policy, person, label_all=False)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the action of the policy or the person."""
        tensordict = super().forward(tensordict)
        acts = tensordict.get(IS_INTERVENTION_KEY)
        held = tensordict.get(IS_HELD_KEY, None)
        if held is not None:
            tensordict.set(IS_HELD_KEY, held & ~acts)
            answered = tensordict.get(ANSWERED_AT_KEY)
            present = tensordict.get(OBSERVED_AT_KEY)
            tensordict.set(ANSWERED_AT_KEY, torch.where(acts, present, answered))
        return tensordict
