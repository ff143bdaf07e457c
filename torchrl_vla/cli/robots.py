"""Names of the robot runtime that the commands use, imported when first used."""

from typing import TYPE_CHECKING

from torchrl_vla._internal.lazy_package import lazy_names

if TYPE_CHECKING:
    from torchrl.envs import EnvBase

    from torchrl_vla.data import LeRobotDemonstrations, LeRobotWriter
    from torchrl_vla.data.lerobot_writer.lerobot_writer import check_writer_extras
    from torchrl_vla.recipes import prepare_environment
    from torchrl_vla.recipes.own_policies import load_any_executor
    from torchrl_vla.runtime import (
        EXTRA_KEYS,
        BackgroundRecorder,
        ContinuousRecording,
        ControlLoop,
        CorrectionPolicy,
        CorrectionRecording,
        DeadlinePolicy,
        EpisodicRecording,
        HighlightRecording,
        KeyEvents,
        LiveView,
        PlainRollout,
        RecordedActions,
        Recording,
        RobotEnv,
        RobotRun,
        RolloutStrategy,
        RunReport,
        SafetyGate,
        Teleoperator,
        TeleoperatorPolicy,
        make_keys,
        make_robot,
        make_teleoperator,
        run_strategy,
    )
    from torchrl_vla.schema import check_robot_metadata

_MODULES = {
    "torchrl.envs": ("EnvBase",),
    "torchrl_vla.data": ("LeRobotDemonstrations", "LeRobotWriter"),
    "torchrl_vla.data.lerobot_writer.lerobot_writer": ("check_writer_extras",),
    "torchrl_vla.recipes": ("prepare_environment",),
    "torchrl_vla.recipes.own_policies": ("load_any_executor",),
    "torchrl_vla.runtime": (
        "BackgroundRecorder",
        "ContinuousRecording",
        "ControlLoop",
        "CorrectionPolicy",
        "CorrectionRecording",
        "DeadlinePolicy",
        "EXTRA_KEYS",
        "EpisodicRecording",
        "HighlightRecording",
        "KeyEvents",
        "LiveView",
        "PlainRollout",
        "RecordedActions",
        "Recording",
        "RobotEnv",
        "RobotRun",
        "RolloutStrategy",
        "RunReport",
        "SafetyGate",
        "Teleoperator",
        "TeleoperatorPolicy",
        "make_keys",
        "make_robot",
        "make_teleoperator",
        "run_strategy",
    ),
    "torchrl_vla.schema": ("check_robot_metadata",),
}

__all__ = [
    "EXTRA_KEYS",
    "BackgroundRecorder",
    "ContinuousRecording",
    "ControlLoop",
    "CorrectionPolicy",
    "CorrectionRecording",
    "DeadlinePolicy",
    "EnvBase",
    "EpisodicRecording",
    "HighlightRecording",
    "KeyEvents",
    "LeRobotDemonstrations",
    "LeRobotWriter",
    "LiveView",
    "PlainRollout",
    "RecordedActions",
    "Recording",
    "RobotEnv",
    "RobotRun",
    "RolloutStrategy",
    "RunReport",
    "SafetyGate",
    "Teleoperator",
    "TeleoperatorPolicy",
    "check_robot_metadata",
    "check_writer_extras",
    "load_any_executor",
    "make_keys",
    "make_robot",
    "make_teleoperator",
    "prepare_environment",
    "run_strategy",
]

__getattr__ = lazy_names(__name__, _MODULES)
