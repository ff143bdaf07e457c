"""Names for the types of LeRobot's objects, which are never imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

#: A ``PreTrainedConfig``.
Config: TypeAlias = Any
#: A ``PreTrainedPolicy``, or one inside a peft adapter.
Policy: TypeAlias = Any
#: A ``PolicyProcessorPipeline``.
Processor: TypeAlias = Any
#: A ``ProcessorStep`` of such a pipeline.
Step: TypeAlias = Any
#: Inputs by LeRobot's names: tensors ``[N, ...]`` and lists of texts.
Batch: TypeAlias = dict[str, Any]
#: ``(policy, batch) -> chunk [N, H, A]``.
PredictFunction: TypeAlias = Callable[[Any, Batch], Any]


def optional_field(owner: object, name: str, default: object = None) -> Any:
    """Return a field of LeRobot's that not every type or version has."""
    return getattr(owner, name, default)
