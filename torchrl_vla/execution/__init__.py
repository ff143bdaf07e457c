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
from torchrl_vla.execution.realtime.latency_tracker import LatencyTracker
from torchrl_vla.execution.realtime.lateness import Lateness, Reaction
from torchrl_vla.execution.realtime.overlap_blending import (
    ACTEnsemble,
    OverlapBlending,
    Replace,
    WeightedAverage,
)
from torchrl_vla.execution.realtime.process_worker import ProcessWorker
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
    "ACTEnsemble",
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
    "LatencyTracker",
    "Lateness",
    "LinearPrefix",
    "MultiAction",
    "MultiStepActorWrapper",
    "OnViolation",
    "OnesPrefix",
    "OverlapBlending",
    "PolicyWrapper",
    "PrefixSchedule",
    "ProcessWorker",
    "Reaction",
    "RealTimeChunking",
    "Replace",
    "SkipWaiting",
    "StepClockWorker",
    "TemporalEnsemble",
    "ThreadWorker",
    "WeightedAverage",
    "ZerosPrefix",
    "select_decisions",
]
