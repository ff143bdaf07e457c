"""Executors: from a chunk of actions to one action per control step."""

from torchrl_vla._internal.option_names import OnViolation
from torchrl_vla.execution.chunk_executor import ChunkExecutor
from torchrl_vla.execution.decisions import select_decisions
from torchrl_vla.execution.executor import Executor
from torchrl_vla.execution.executor_keys import ExecutorKeys
from torchrl_vla.execution.guard.action_guard import ActionGuard, GuardKeys
from torchrl_vla.execution.guard.action_translator import EmbodimentActionTranslator
from torchrl_vla.execution.guard.embodiment_contract import EmbodimentContract
from torchrl_vla.execution.interpolation import ActionInterpolation
from torchrl_vla.execution.interventions.intervention_policy import InterventionPolicy
from torchrl_vla.execution.interventions.takeover import EpisodeMixing
from torchrl_vla.execution.multi_action import MultiAction
from torchrl_vla.execution.multi_step_executor import MultiStepActorWrapper
from torchrl_vla.execution.realtime.asynchronous import AsyncExecutor
from torchrl_vla.execution.realtime.inference_workers import (
    InferenceWorker,
    StepClockWorker,
    ThreadWorker,
)
from torchrl_vla.execution.realtime.real_time_chunking import RealTimeChunking
from torchrl_vla.execution.realtime.rtc_weights import (
    ExponentialPrefix,
    LinearPrefix,
    OnesPrefix,
    PrefixSchedule,
    ZerosPrefix,
)
from torchrl_vla.execution.skip_waiting import SkipWaiting
from torchrl_vla.execution.temporal_ensemble import TemporalEnsemble
from torchrl_vla.execution.transparent_wrapper import PolicyWrapper

__all__ = [
    "ActionGuard",
    "ActionInterpolation",
    "AsyncExecutor",
    "ChunkExecutor",
    "EmbodimentActionTranslator",
    "EmbodimentContract",
    "EpisodeMixing",
    "Executor",
    "ExecutorKeys",
    "ExponentialPrefix",
    "GuardKeys",
    "InferenceWorker",
    "InterventionPolicy",
    "LinearPrefix",
    "MultiAction",
    "MultiStepActorWrapper",
    "OnViolation",
    "OnesPrefix",
    "PolicyWrapper",
    "PrefixSchedule",
    "RealTimeChunking",
    "SkipWaiting",
    "StepClockWorker",
    "TemporalEnsemble",
    "ThreadWorker",
    "ZerosPrefix",
    "select_decisions",
]
