"""Interface of what a person moves a robot with."""

from __future__ import annotations

from abc import abstractmethod
from types import TracebackType
from typing import Protocol, runtime_checkable

from tensordict import TensorDict
from torch import Tensor
from typing_extensions import Self

from torchrl_vla.schema import RobotDatasetMetadata


@runtime_checkable
class Teleoperator(Protocol):
    """Read what a person commands: leader arm, gamepad, keyboard, script (interface).

    A class with these members is a teleoperator; it need not inherit. One that does
    inherit gets the context manager, and no feedback.

    **Reads** the observation of a :class:`~torchrl_vla.runtime.Robot`, batch size
    ``[]``.

    **Writes** an action float32 ``[A]``, in the robot's space.
    """

    @property
    @abstractmethod
    def metadata(self) -> RobotDatasetMetadata:
        """What the numbers of its actions mean: they must be those of the robot."""

    @property
    @abstractmethod
    def is_connected(self) -> bool:
        """True = :meth:`read` may be called."""

    @property
    def has_feedback(self) -> bool:
        """True = :meth:`follow` moves the device, so that it can hand over smoothly."""
        return False

    @abstractmethod
    def connect(self) -> None:
        """Open the connection."""

    @abstractmethod
    def read(self, observation: TensorDict) -> Tensor | None:
        """Return the action float32 ``[A]`` that is commanded; None = hands off."""

    def follow(self, action: Tensor) -> None:
        """Move the device to the pose of an action float32 ``[A]``.

        A handover calls it once per control step, on a line from the device's pose to
        the robot's. Nothing happens where ``has_feedback`` is False.
        """

    @abstractmethod
    def disconnect(self) -> None:
        """Close the connection; nothing happens where there is none."""

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
