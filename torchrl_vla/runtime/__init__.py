"""Control of a robot: interfaces, safety gate, control loop, recording.

Names are imported when they are first used: tables of names need no PyTorch.
"""

from typing import TYPE_CHECKING

from torchrl_vla._internal.lazy_package import lazy_names

if TYPE_CHECKING:
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
    from torchrl_vla.runtime.live_view import LiveView
    from torchrl_vla.runtime.loop_statistics import LoopStatistics, Spread
    from torchrl_vla.runtime.recorded_actions import RecordedActions
    from torchrl_vla.runtime.recording.background_recorder import (
        BackgroundRecorder,
        EpisodeWriter,
    )
    from torchrl_vla.runtime.recording.recorded_frames import EXTRA_KEYS, recorded_frame
    from torchrl_vla.runtime.recording.ring_buffer import FrameRing
    from torchrl_vla.runtime.robot import Robot
    from torchrl_vla.runtime.robot_env import RobotEnv
    from torchrl_vla.runtime.robot_registry import make_robot, make_teleoperator
    from torchrl_vla.runtime.run_report import RunReport
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

_HERE = "torchrl_vla.runtime"
_MODULES = {
    f"{_HERE}.clock": (
        "Clock",
        "MonotonicClock",
    ),
    f"{_HERE}.control_loop": ("ControlLoop",),
    f"{_HERE}.deadline_policy": (
        "DeadlinePolicy",
        "PolicyThread",
        "PolicyWorker",
    ),
    f"{_HERE}.gate_checks": (
        "RobotStoppedError",
        "StaleActionError",
    ),
    f"{_HERE}.gate_log": (
        "GateIntervention",
        "GateLog",
    ),
    f"{_HERE}.gate_options": ("GateOptions",),
    f"{_HERE}.handover": (
        "linear_path",
        "move_robot",
        "move_teleoperator",
    ),
    f"{_HERE}.key_events": (
        "KeyEvent",
        "KeyEvents",
        "NoKeys",
        "ScriptedKeys",
        "TerminalKeys",
        "make_keys",
    ),
    f"{_HERE}.live_view": ("LiveView",),
    f"{_HERE}.loop_statistics": (
        "LoopStatistics",
        "Spread",
    ),
    f"{_HERE}.recorded_actions": ("RecordedActions",),
    f"{_HERE}.recording.background_recorder": (
        "BackgroundRecorder",
        "EpisodeWriter",
    ),
    f"{_HERE}.recording.recorded_frames": (
        "EXTRA_KEYS",
        "recorded_frame",
    ),
    f"{_HERE}.recording.ring_buffer": ("FrameRing",),
    f"{_HERE}.robot": ("Robot",),
    f"{_HERE}.robot_env": ("RobotEnv",),
    f"{_HERE}.robot_registry": (
        "make_robot",
        "make_teleoperator",
    ),
    f"{_HERE}.run_report": ("RunReport",),
    f"{_HERE}.safety_gate": (
        "ActionOrigin",
        "SafetyGate",
    ),
    f"{_HERE}.strategies.plain_rollout": ("PlainRollout",),
    f"{_HERE}.strategies.recordings": (
        "ContinuousRecording",
        "CorrectionRecording",
        "EpisodicRecording",
        "HighlightRecording",
        "Recording",
    ),
    f"{_HERE}.strategies.robot_run": (
        "RobotRun",
        "RolloutStrategy",
        "StepListener",
        "run_strategy",
    ),
    f"{_HERE}.teleoperator": ("Teleoperator",),
    f"{_HERE}.teleoperator_policy": (
        "CorrectionPolicy",
        "TeleoperatorPolicy",
    ),
}

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
    "LiveView",
    "LoopStatistics",
    "MonotonicClock",
    "NoKeys",
    "PlainRollout",
    "PolicyThread",
    "PolicyWorker",
    "RecordedActions",
    "Recording",
    "Robot",
    "RobotEnv",
    "RobotRun",
    "RobotStoppedError",
    "RolloutStrategy",
    "RunReport",
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
    "make_robot",
    "make_teleoperator",
    "move_robot",
    "move_teleoperator",
    "recorded_frame",
    "run_strategy",
]

__getattr__ = lazy_names(__name__, _MODULES)
