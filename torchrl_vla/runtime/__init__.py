"""Control of a robot: interfaces, safety gate, control loop, recording."""

from torchrl_vla.runtime.clock import Clock, MonotonicClock
from torchrl_vla.runtime.control_loop import ControlLoop
from torchrl_vla.runtime.deadline_policy import (
    DeadlinePolicy,
    PolicyThread,
    PolicyWorker,
)
from torchrl_vla.runtime.gate_checks import RobotStoppedError, StaleActionError
from torchrl_vla.runtime.gate_log import GateIntervention, GateLog
from torchrl_vla.runtime.gate_options import GateOptions
from torchrl_vla.runtime.loop_statistics import LoopStatistics, Spread
from torchrl_vla.runtime.robot import Robot
from torchrl_vla.runtime.robot_env import RobotEnv
from torchrl_vla.runtime.safety_gate import ActionOrigin, SafetyGate
from torchrl_vla.runtime.teleoperator import Teleoperator

__all__ = [
    "ActionOrigin",
    "Clock",
    "ControlLoop",
    "DeadlinePolicy",
    "GateIntervention",
    "GateLog",
    "GateOptions",
    "LoopStatistics",
    "MonotonicClock",
    "PolicyThread",
    "PolicyWorker",
    "Robot",
    "RobotEnv",
    "RobotStoppedError",
    "SafetyGate",
    "Spread",
    "StaleActionError",
    "Teleoperator",
]
