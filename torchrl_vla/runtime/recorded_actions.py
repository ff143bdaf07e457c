"""Policy that plays recorded actions back."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.runtime.control_loop import ControlLoop
from torchrl_vla.runtime.handover import linear_path
from torchrl_vla.schema import (
    ACTION_KEY,
    IS_INIT_KEY,
    PREVIOUS_ACTION_KEY,
    STATE_KEY,
    SchemaError,
)


class RecordedActions(TensorDictModuleBase):
    """Play the actions of a recorded episode, and end the loop behind the last one.

    The robot comes from where it is to the first action on a line.

    **Reads** ``previous_action`` float32 ``[1, A]`` and ``is_init`` of the episode's
    first step. **Writes** ``action`` float32 ``[1, A]``.

    Args:
        actions: float ``[T, A]``, in robot space.
        loop: that it ends.

    Keyword Args:
        approach_s: of the way to the first action; 0 = it is sent at once.

    Raises:
        SchemaError: the actions are not ``[T, A]`` with ``T >= 1``.

    Examples:
        >>> from torchrl_vla.runtime import *
        >>> from torchrl_vla.testing import FakeClock, FakeRobot
        >>> clock = FakeClock()
        >>> robot, loop = FakeRobot(clock=clock), ControlLoop(30.0, clock=clock)
        >>> env = RobotEnv(SafetyGate(robot, clock=clock), task="replay", loop=loop)
        >>> actions = torch.tensor([[0.4, 0.0], [0.5, 0.1]])
        >>> policy = RecordedActions(actions, loop, approach_s=2 / 30)
        >>> run_strategy(PlainRollout(), RobotRun(env, policy))
        >>> torch.stack([action for _, action in robot.sent])
        tensor([[0.2000, 0.0000],
                [0.4000, 0.0000],
                [0.5000, 0.1000]])
        >>> loop.ended_by
        'the recording is over'
    """

    def __init__(
        self, actions: Tensor, loop: ControlLoop, *, approach_s: float = 2.0
    ) -> None:
        super().__init__()
        if actions.ndim != 2 or not len(actions):
            raise SchemaError(
                "RecordedActions: expected actions [T, A] with T >= 1, got "
                f"{list(actions.shape)}. Take those of one episode."
            )
        self.in_keys = [STATE_KEY, PREVIOUS_ACTION_KEY, IS_INIT_KEY]
        self.out_keys = [ACTION_KEY]
        self.actions, self.loop, self.approach_s = actions.float(), loop, approach_s
        self._path: list[Tensor] = []

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the next action."""
        if tensordict.get(IS_INIT_KEY).any():
            start, first = tensordict.get(PREVIOUS_ACTION_KEY)[0], self.actions[0]
            steps = max(1, round(self.approach_s * self.loop.rate_hz))
            way = list(linear_path(start, first, steps))
            self._path = [*way, *self.actions[1:].unbind(0)]
        action = self._path.pop(0)
        if not self._path:
            self.loop.end("the recording is over")
        return tensordict.set(ACTION_KEY, torch.as_tensor(action).unsqueeze(0).clone())
