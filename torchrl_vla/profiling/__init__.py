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
    from torchrl_vla.profiling.profile_options import ProfileOptions
    from torchrl_vla.profiling.reference_batch import float_images, reference_rows
    from torchrl_vla.profiling.step_timings import (
        StepSample,
        read_step_samples,
        summarize_steps,
    )
    from torchrl_vla.profiling.training_profiler import Sections, TrainingProfiler

_HERE = "torchrl_vla.profiling"
_MODULES = {
    f"{_HERE}.forward_fingerprint": ("ForwardFingerprint", "fingerprint_forward"),
    f"{_HERE}.profile_options": ("ProfileOptions",),
    f"{_HERE}.reference_batch": ("float_images", "reference_rows"),
    f"{_HERE}.step_timings": (
        "StepSample",
        "read_step_samples",
        "summarize_steps",
    ),
    f"{_HERE}.training_profiler": ("Sections", "TrainingProfiler"),
}

__all__ = [
    "ForwardFingerprint",
    "ProfileOptions",
    "Sections",
    "StepSample",
    "TrainingProfiler",
    "fingerprint_forward",
    "float_images",
    "read_step_samples",
    "reference_rows",
    "summarize_steps",
]

__getattr__ = lazy_names(__name__, _MODULES)
