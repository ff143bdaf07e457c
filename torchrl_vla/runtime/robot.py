"""Interface of a robot."""

from __future__ import annotations

from abc import abstractmethod
from types import TracebackType
from typing import Protocol, runtime_checkable

from tensordict import TensorDict
from torch import Tensor
from typing_extensions import Self

from torchrl_vla.schema import RobotDatasetMetadata


@runtime_checkable
class Robot(Protocol):
    """Observe and move one robot arm, real or simulated (interface).

    A class with these members is a robot; it need not inherit. One that does inherit
    gets the context manager. :func:`~torchrl_vla.testing.check_robot` checks it. What
    goes between a policy and a robot is :class:`~torchrl_vla.runtime.RobotEnv`, and its
    :class:`~torchrl_vla.runtime.SafetyGate` refuses actions; a robot need not.

    **Writes** (``observe``) a tensordict of batch size ``[]``: ``("observation",
    "state")`` float32 ``[S]``; ``("observation", "image")`` uint8 ``[C, h, w]`` RGB, or
    a sub-tensordict ``{camera: image}`` where the metadata name cameras;
    ``observed_at_s`` float64 ``[1]``, when the oldest of them was taken, on the
    robot's clock.

    **Reads** (``send``) an action float32 ``[A]``, in robot space: names, units, order
    and limits of the metadata.
    """

    @property
    @abstractmethod
    def metadata(self) -> RobotDatasetMetadata:
        """What the numbers mean: known before ``connect``.

        It declares ``action_names``, ``action_units``, ``action_low`` and
        ``action_high``, ``control_frequency_hz``, ``state_dim``, and, of each camera,
        ``cameras`` and ``image_sizes``.
        """

    @property
    @abstractmethod
    def is_connected(self) -> bool:
        """True = :meth:`observe` and :meth:`send` may be called."""

    @abstractmethod
    def connect(self) -> None:
        """Open the connection. The robot does not move."""

    @abstractmethod
    def observe(self) -> TensorDict:
        """Return what the robot senses now; see the class for keys and shapes."""

    @abstractmethod
    def send(self, action: Tensor) -> Tensor:
        """Command an action float32 ``[A]``, and return what was commanded, ``[A]``.

        The two differ where the driver limits actions itself.
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
