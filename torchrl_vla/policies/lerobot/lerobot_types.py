"""Names for the types of LeRobot's objects, which are never imported."""

from __future__ import annotations

from typing import Any, TypeAlias

#: A ``PreTrainedConfig``.
Config: TypeAlias = Any
#: A ``PreTrainedPolicy``, or one inside a peft adapter.
Policy: TypeAlias = Any
#: A ``PolicyProcessorPipeline``.
Processor: TypeAlias = Any
#: Inputs by LeRobot's names: tensors ``[N, ...]`` and lists of texts.
Batch: TypeAlias = dict[str, Any]


def optional_field(config: Config, name: str, default: object = None) -> Any:
    """Return a field of a configuration that not every type or version has."""
    return getattr(config, name, default)
