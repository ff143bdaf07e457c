"""Profiles of trainings: where the time goes, and whether a change changed numbers.

Names are imported when they are first used: options need no PyTorch.
"""

from typing import TYPE_CHECKING

from torchrl_vla._internal.lazy_package import lazy_names

if TYPE_CHECKING:
    from torchrl_vla.profiling.forward_fingerprint import (
        ForwardFingerprint,
        fingerprint_forward,
    )
    from torchrl_vla.profiling.hub_publication import HubPublisher
    from torchrl_vla.profiling.orchestrator import RunProvenance, run_profiles
    from torchrl_vla.profiling.profile_cases import (
        PROFILE_CASES,
        CaseResources,
        ProfileCase,
        find_cases,
    )
    from torchrl_vla.profiling.profile_comparison import (
        ProfileComparison,
        TimeRatio,
        compare_profiles,
    )
    from torchrl_vla.profiling.profile_options import ProfileOptions
    from torchrl_vla.profiling.profile_report import (
        read_rows,
        snapshot_table,
        write_profile_report,
    )
    from torchrl_vla.profiling.reference_batch import float_images, reference_rows
    from torchrl_vla.profiling.step_timings import (
        StepSample,
        read_step_samples,
        summarize_steps,
    )
    from torchrl_vla.profiling.training_plan import (
        TrainingPlan,
        estimate_memory,
        find_bottleneck,
        memory_class,
        plan_training,
    )
    from torchrl_vla.profiling.training_profiler import Sections, TrainingProfiler

_HERE = "torchrl_vla.profiling"
_MODULES = {
    f"{_HERE}.forward_fingerprint": ("ForwardFingerprint", "fingerprint_forward"),
    f"{_HERE}.hub_publication": ("HubPublisher",),
    f"{_HERE}.orchestrator": ("RunProvenance", "run_profiles"),
    f"{_HERE}.profile_cases": (
        "PROFILE_CASES",
        "CaseResources",
        "ProfileCase",
        "find_cases",
    ),
    f"{_HERE}.profile_comparison": (
        "ProfileComparison",
        "TimeRatio",
        "compare_profiles",
    ),
    f"{_HERE}.profile_options": ("ProfileOptions",),
    f"{_HERE}.profile_report": (
        "read_rows",
        "snapshot_table",
        "write_profile_report",
    ),
    f"{_HERE}.reference_batch": ("float_images", "reference_rows"),
    f"{_HERE}.step_timings": (
        "StepSample",
        "read_step_samples",
        "summarize_steps",
    ),
    f"{_HERE}.training_plan": (
        "TrainingPlan",
        "estimate_memory",
        "find_bottleneck",
        "memory_class",
        "plan_training",
    ),
    f"{_HERE}.training_profiler": ("Sections", "TrainingProfiler"),
}

__all__ = [
    "PROFILE_CASES",
    "CaseResources",
    "ForwardFingerprint",
    "HubPublisher",
    "ProfileCase",
    "ProfileComparison",
    "ProfileOptions",
    "RunProvenance",
    "Sections",
    "StepSample",
    "TimeRatio",
    "TrainingPlan",
    "TrainingProfiler",
    "compare_profiles",
    "estimate_memory",
    "find_bottleneck",
    "find_cases",
    "fingerprint_forward",
    "float_images",
    "memory_class",
    "plan_training",
    "read_rows",
    "read_step_samples",
    "reference_rows",
    "run_profiles",
    "snapshot_table",
    "summarize_steps",
    "write_profile_report",
]

__getattr__ = lazy_names(__name__, _MODULES)
