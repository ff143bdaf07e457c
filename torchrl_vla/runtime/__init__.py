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
from torchrl_vla.runtime.handover import (
    linear_path,
    move_robot,
    move_teleoperator,
)
from torchrl_vla.runtime.key_events import (
    KeyEvent,
    KeyEvents,
    NoKeys,
    ScriptedKeys,
    TerminalKeys,
    make_keys,
)
from torchrl_vla.runtime.loop_statistics import LoopStatistics, Spread
from torchrl_vla.runtime.recording.background_recorder import (
    BackgroundRecorder,
    EpisodeWriter,
)
from torchrl_vla.runtime.recording.recorded_frames import EXTRA_KEYS, recorded_frame
from torchrl_vla.runtime.recording.ring_buffer import FrameRing
from torchrl_vla.runtime.robot import Robot
from torchrl_vla.runtime.robot_env import RobotEnv
from torchrl_vla.runtime.safety_gate import ActionOrigin, SafetyGate
from torchrl_vla.runtime.strategies.plain_rollout import PlainRollout
from torchrl_vla.runtime.strategies.recordings import (
    ContinuousRecording,
    CorrectionRecording,
    EpisodicRecording,
    HighlightRecording,
    Recording,
)
from torchrl_vla.runtime.strategies.robot_run import (
    RobotRun,
    RolloutStrategy,
    StepListener,
    run_strategy,
)
from torchrl_vla.runtime.teleoperator import Teleoperator
from torchrl_vla.runtime.teleoperator_policy import (
    CorrectionPolicy,
    TeleoperatorPolicy,
)

__all__ = [
    "EXTRA_KEYS",
    "ActionOrigin",
    "BackgroundRecorder",
    "Clock",
    "ContinuousRecording",
    "ControlLoop",
    "CorrectionPolicy",
    "CorrectionRecording",
    "DeadlinePolicy",
    "EpisodeWriter",
    "EpisodicRecording",
    "FrameRing",
    "GateIntervention",
    "GateLog",
    "GateOptions",
    "HighlightRecording",
    "KeyEvent",
    "KeyEvents",
    "LoopStatistics",
    "MonotonicClock",
    "NoKeys",
    "PlainRollout",
    "PolicyThread",
    "PolicyWorker",
    "Recording",
    "Robot",
    "RobotEnv",
    "RobotRun",
    "RobotStoppedError",
    "RolloutStrategy",
    "SafetyGate",
    "ScriptedKeys",
    "Spread",
    "StaleActionError",
    "StepListener",
    "Teleoperator",
    "TeleoperatorPolicy",
    "TerminalKeys",
    "linear_path",
    "make_keys",
    "move_robot",
    "move_teleoperator",
    "recorded_frame",
    "run_strategy",
]
