"""Checks of the configuration's fields that a user overrides in a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torchrl_vla.policies.lerobot.lerobot_types import Config
from torchrl_vla.schema import SchemaError

_PREPROCESSOR = (
    "It is stored in the checkpoint's preprocessor: pass processor_overrides={%s}."
)
_TRAINED = (
    "The weights and processors were trained with the checkpoint's: fit them to other "
    "data with fit_lerobot_policy(folder, dataset, config={...})."
)
#: Fields whose value the loading itself decides, with what to do instead.
_DECIDED = {
    "pretrained_path": "Pass the folder or repo id as the first argument.",
    "pretrained_backbone_weights": "The checkpoint's own weights take its place.",
}
#: Fields that only the processors read, which keep the value they were saved with.
_PROCESSORS = {
    "tokenizer_max_length": _PREPROCESSOR
    % "'tokenizer_processor': {'max_length': ...}",
    "tokenizer_name": _PREPROCESSOR % "'tokenizer_processor': {'tokenizer_name': ...}",
    "tokenizer_padding_side": _PREPROCESSOR
    % "'tokenizer_processor': {'padding_side': ...}",
    "pad_language_to": _PREPROCESSOR % "'tokenizer_processor': {'padding': ...}",
}
#: Fields that a fit to data gives to the processors, too.
_FITTED = dict.fromkeys(
    (
        "input_features",
        "output_features",
        "normalization_mapping",
        "use_relative_actions",
        "relative_exclude_joints",
        "action_feature_names",
    ),
    _TRAINED,
)


def check_overrides(
    caller: str,
    config: Config,
    overrides: Mapping[str, Any],
    *,
    device: object,
    fitted: bool,
) -> None:
    """Refuse fields that are unknown, or that would have no effect.

    Args:
        caller: starts the error message.
        config: of the checkpoint, before the overrides.
        overrides: values by field.

    Keyword Args:
        device: that was asked for beside the overrides; None = none was.
        fitted: True = the checkpoint is fitted to data, and its processors with it.

    Raises:
        SchemaError: names the field and what to do instead.
    """
    fields = {field.name for field in dataclasses.fields(config) if field.init}
    if unknown := sorted(set(overrides) - fields):
        raise SchemaError(
            f"{caller}: expected fields of {type(config).__name__} at argument "
            f"'overrides', got {unknown}. It has {sorted(fields)}."
        )
    if "device" in overrides and str(device) not in ("None", overrides["device"]):
        raise SchemaError(
            f"{caller}: expected one device, got device={str(device)!r} and "
            f"overrides={{'device': {overrides['device']!r}}}. Leave one out."
        )
    instead = {**_DECIDED, **_PROCESSORS, **({} if fitted else _FITTED)}
    for name in overrides.keys() & instead.keys():
        own, given = vars(config)[name], overrides[name]
        if given != own and not (given is None and name in _DECIDED):
            raise SchemaError(
                f"{caller}: expected no override of {name!r}, which has no effect on a "
                f"loaded checkpoint, got {given!r} for {own!r}. {instead[name]}"
            )
