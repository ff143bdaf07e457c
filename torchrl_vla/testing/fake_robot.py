"""Robot and teleoperator without hardware."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import torch
from tensordict import TensorDict
from torch import Tensor
from typing_extensions import Self

from torchrl_vla.schema import (
    IMAGE_KEY,
    OBSERVED_AT_KEY,
    STATE_KEY,
    ExecutionError,
    RobotDatasetMetadata,
)

_JOINTS = ("shoulder", "elbow", "wrist", "gripper")


class _Clock(Protocol):
    def now_s(self) -> float: ...


class _WallClock:
    def now_s(self) -> float:
        return time.monotonic()


@dataclass(frozen=True)
class FakeRobotOptions:
    """Size, rate and weaknesses of a :class:`FakeRobot`.

    Args:
        num_joints: 1 to 4; all between -1 and 1 rad.
        rate_hz: declared control frequency.
        image_size: side of the two cameras' images in pixels; None = no cameras.
        observation_delay_s: how old what it observes is.
        driver_limit: the largest absolute value that it commands, as a driver that
            limits actions itself does; None = what it is sent.
    """

    num_joints: int = 2
    rate_hz: float = 30.0
    image_size: int | None = None
    observation_delay_s: float = 0.0
    driver_limit: float | None = None


class FakeRobot:
    """Move joints at once to where they are sent, and remember all that was sent.

    ``sent`` is the robot's log: every action that reached it, with the instant.
    ``events`` counts connections: ``["connect", "disconnect", ...]``. The images show
    the joints' positions as brightness.

    **Reads** (``send``) an action float32 ``[A]``, rad.

    **Writes** (``observe``) ``("observation", "state")`` float32 ``[A]``, rad; with
    cameras ``("observation", "image")`` with ``front`` and ``wrist`` uint8 ``[3, h,
    w]``; ``observed_at_s`` float64 ``[1]``.

    Args:
        options: of its size; None = ``FakeRobotOptions()``.

    Keyword Args:
        clock: shared with the loop and the gate; None = the monotonic one.
        on_observe: is called with each observation's number, and may raise.

    Raises:
        ExecutionError: it is used without a connection.

    Examples:
        >>> with FakeRobot() as robot:
        ...     _ = robot.send(torch.tensor([0.5, -0.5]))
        ...     robot.observe()["observation", "state"]
        tensor([ 0.5000, -0.5000])
        >>> [action.tolist() for _, action in robot.sent], robot.events
        ([[0.5, -0.5]], ['connect', 'disconnect'])
    """

    def __init__(
        self,
        options: FakeRobotOptions | None = None,
        *,
        clock: _Clock | None = None,
        on_observe: Callable[[int], None] | None = None,
    ) -> None:
        self.options = FakeRobotOptions() if options is None else options
        self.clock: _Clock = _WallClock() if clock is None else clock
        self.on_observe = on_observe
        self.metadata = _describe(self.options)
        self.sent: list[tuple[float, Tensor]] = []
        self.events: list[str] = []
        self.is_connected = False
        self._position = torch.zeros(self.options.num_joints)
        self._observations = 0

    def place(self, seed: int) -> None:
        """Put the joints where an episode of a seed begins, without an action."""
        generator = torch.Generator().manual_seed(seed)
        self._position = torch.rand(self.options.num_joints, generator=generator) - 0.5

    def connect(self) -> None:
        """Open the connection."""
        self.events.append("connect")
        self.is_connected = True

    def observe(self) -> TensorDict:
        """Return the joints' positions, and images of them."""
        self._check_is_connected("observe")
        if self.on_observe is not None:
            self.on_observe(self._observations)
        self._observations += 1
        taken_s = self.clock.now_s() - self.options.observation_delay_s
        out = TensorDict({STATE_KEY: self._position.clone()})
        out.set(OBSERVED_AT_KEY, torch.tensor([taken_s], dtype=torch.float64))
        size = self.options.image_size
        if size is not None:
            level = ((self._position.mean() + 1) * 127).to(torch.uint8)
            image = level.expand(3, size, size).clone()
            out.set((IMAGE_KEY, "front"), image)
            out.set((IMAGE_KEY, "wrist"), 255 - image)
        return out

    def send(self, action: Tensor) -> Tensor:
        """Move the joints, and remember the action."""
        self._check_is_connected("send")
        limit = self.options.driver_limit
        done = action.clone() if limit is None else action.clamp(-limit, limit)
        self.sent.append((self.clock.now_s(), action.clone()))
        self._position = done.clone()
        return done

    def disconnect(self) -> None:
        """Close the connection; nothing happens where there is none."""
        if self.is_connected:
            self.events.append("disconnect")
        self.is_connected = False

    def _check_is_connected(self, caller: str) -> None:
        if not self.is_connected:
            raise ExecutionError(
                f"FakeRobot.{caller}: expected a connection, got none. Call connect()."
            )

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Disconnect, also after an error."""
        self.disconnect()


class FakeTeleoperator:
    """Command what a script says, and remember where it was moved.

    Args:
        metadata: of the robot that it moves.
        script: takes the number of the call, from 0, and returns the action ``[A]``;
            None = hands off.

    Keyword Args:
        has_feedback: True = it can be moved to a pose.

    Examples:
        >>> robot = FakeRobot()
        >>> hands_off_first = lambda i: None if i == 0 else torch.ones(2)
        >>> teleoperator = FakeTeleoperator(robot.metadata, hands_off_first)
        >>> with teleoperator:
        ...     [teleoperator.read(TensorDict()) for _ in range(2)]
        [None, tensor([1., 1.])]
    """

    def __init__(
        self,
        metadata: RobotDatasetMetadata,
        script: Callable[[int], Tensor | None],
        *,
        has_feedback: bool = False,
    ) -> None:
        self.metadata = metadata
        self.has_feedback = has_feedback
        self.followed: list[Tensor] = []
        self.events: list[str] = []
        self.is_connected = False
        self._script, self._calls = script, 0

    def connect(self) -> None:
        """Open the connection."""
        self.events.append("connect")
        self.is_connected = True

    def read(self, observation: TensorDict) -> Tensor | None:
        """Return what the script commands."""
        action = self._script(self._calls)
        self._calls += 1
        return action

    def follow(self, action: Tensor) -> None:
        """Remember the pose that it is moved to."""
        self.followed.append(action.clone())

    def disconnect(self) -> None:
        """Close the connection; nothing happens where there is none."""
        if self.is_connected:
            self.events.append("disconnect")
        self.is_connected = False

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Disconnect, also after an error."""
        self.disconnect()


def _describe(options: FakeRobotOptions) -> RobotDatasetMetadata:
    count, size = options.num_joints, options.image_size
    return RobotDatasetMetadata(
        "fake_robot",
        embodiment_id="fake_robot",
        action_names=_JOINTS[:count],
        action_units=("rad",) * count,
        action_reference=("absolute",) * count,
        action_space=("joint",) * count,
        action_low=(-1.0,) * count,
        action_high=(1.0,) * count,
        state_names=_JOINTS[:count],
        state_units=("rad",) * count,
        control_frequency_hz=options.rate_hz,
        cameras=() if size is None else ("front", "wrist"),
        image_sizes=None if size is None else ((3, size, size),) * 2,
        image_orientation=None if size is None else "upright",
    )
