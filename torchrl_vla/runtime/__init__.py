"""Control of a robot: interfaces, safety gate, control loop, recording."""

from torchrl_vla.runtime.clock import Clock, MonotonicClock
from torchrl_vla.runtime.robot import Robot
from torchrl_vla.runtime.teleoperator import Teleoperator

__all__ = ["Clock", "MonotonicClock", "Robot", "Teleoperator"]
