"""LeRobot checkpoints on disk or on the Hugging Face Hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch

from torchrl_vla._internal.durable_files import writing_folder
from torchrl_vla._internal.json_source import read_json
from torchrl_vla.policies.lerobot.lerobot_types import Config, Policy
from torchrl_vla.policies.lerobot.load.lora_adapters import (
    ADAPTER,
    WEIGHTS,
    base_of,
    put_adapter_on,
    save_policy,
)
from torchrl_vla.policies.lerobot.load.pipeline import LeRobotPipeline
from torchrl_vla.policies.lerobot.load.weights import check_weights
from torchrl_vla.policies.lerobot.registry import kind_of
from torchrl_vla.schema import SchemaError, import_extra
from torchrl_vla.schema.lerobot_names import is_repo_id

_CALLER = "LeRobotPolicyWrapper.from_pretrained"
#: The files of the two processors in a checkpoint.
PROCESSOR_FILES = ("policy_preprocessor.json", "policy_postprocessor.json")


def read_checkpoint(
    source: Path | str,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    overrides: Mapping[str, Any] | None = None,
    processor_overrides: Mapping[str, Mapping[str, Any]] | None = None,
    statistics: Mapping[str, Mapping[str, Any]] | None = None,
    cache_folder: Path | str | None = None,
) -> tuple[Policy, LeRobotPipeline]:
    """Load a policy, in evaluation mode, and its processors as ``lerobot-eval`` does.

    The arguments are those of :meth:`LeRobotPolicyWrapper.from_pretrained`.

    Raises:
        MissingExtraError: ``lerobot`` is not installed.
        FileNotFoundError: ``source`` is a path to nothing.
        SchemaError: the checkpoint lacks files, statistics or weights, is of an
            unsupported type, or names files that are gone.
    """
    factory = import_extra("lerobot.policies.factory", "lerobot", _CALLER)
    configs = import_extra("lerobot.configs.policies", "lerobot", _CALLER)
    folder = _find_folder(source, revision, cache_folder)
    _check_files(folder)
    config = _read_config(configs.PreTrainedConfig, folder, device, overrides)
    kind_of(config.type)
    policy = _read_policy(factory, folder, config)
    steps: dict[str, dict[str, Any]] = {
        "device_processor": {"device": str(config.device)}
    }
    for name, arguments in (processor_overrides or {}).items():
        steps[name] = {**steps.get(name, {}), **arguments}
    try:
        before, after = factory.make_pre_post_processors(
            policy_cfg=config,
            pretrained_path=str(folder),
            preprocessor_overrides=steps,
        )
    except Exception as error:
        raise _unreadable(folder, "processors", error) from error
    if statistics is not None:
        return policy, LeRobotPipeline.with_statistics(before, after, statistics)
    return policy, LeRobotPipeline(before, after)


def write_checkpoint(
    folder: Path | str,
    policy: Policy,
    config: Config,
    pipeline: LeRobotPipeline,
    ensemble_coefficient: float | None,
) -> None:
    """Write policy and processors, whole or not at all, as LeRobot itself loads them.

    Args:
        folder: is created if need be.
        policy: LeRobot's, or one inside an adapter.
        config: the policy's configuration.
        pipeline: its processors.
        ensemble_coefficient: written to the configuration, which is not changed.

    Raises:
        SchemaError: the checkpoint under an adapter is not on disk, or is another.
    """
    with writing_folder(Path(folder), "config.json") as partial:
        if ensemble_coefficient is not None:
            config.temporal_ensemble_coeff = ensemble_coefficient
        try:
            save_policy(policy, config, partial)
        finally:
            if ensemble_coefficient is not None:
                config.temporal_ensemble_coeff = None
        pipeline.preprocessor.save_pretrained(partial)
        pipeline.postprocessor.save_pretrained(partial)


def read_ensemble_coefficient(
    source: Path | str,
    *,
    revision: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    cache_folder: Path | str | None = None,
) -> float | None:
    """Return the ``temporal_ensemble_coeff`` of a checkpoint's configuration.

    LeRobot's ACT averages its chunks with it; None = it executes them as they are, as
    every other type does. The arguments are those of :func:`read_checkpoint`.

    Raises:
        FileNotFoundError: ``source`` is a path to nothing.
        MissingExtraError: ``lerobot`` is not installed.
        SchemaError: the checkpoint lacks files.
    """
    import_extra("lerobot.policies.factory", "lerobot", _CALLER)
    folder = _find_folder(source, revision, cache_folder)
    _check_files(folder)
    remedy = "Fetch the checkpoint again."
    config = read_json(_CALLER, folder / "config.json", _Ensemble, remedy=remedy)
    return {**config, **(overrides or {})}["temporal_ensemble_coeff"]


class _Ensemble(TypedDict):
    temporal_ensemble_coeff: float | None


def _find_folder(
    source: Path | str, revision: str | None, cache_folder: Path | str | None
) -> Path:
    path, text = Path(source).expanduser(), str(source)
    if path.is_dir():
        inner = path / "pretrained_model"  # LeRobot's training saves one level deeper
        return inner if inner.is_dir() and not (path / "config.json").exists() else path
    if not is_repo_id(source):
        raise FileNotFoundError(
            f"{_CALLER}: expected a checkpoint folder or a repo id 'owner/name', got "
            f"{text!r}, where there is no folder. Check the path."
        )
    hub = import_extra("huggingface_hub", "lerobot", _CALLER)
    try:
        snapshot = hub.snapshot_download(
            text,
            revision=revision,
            cache_dir=cache_folder,
            allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"],
        )
    except Exception as error:
        raise FileNotFoundError(
            f"{_CALLER}: expected a folder, or a repo id that the Hugging Face Hub "
            f"has, got {text!r} (revision {revision}): {type(error).__name__}: "
            f"{error}. Check the name, the network, and HF_HUB_OFFLINE."
        ) from error
    return Path(snapshot)


def _check_files(folder: Path) -> None:
    there = sorted(path.name for path in folder.iterdir())
    if "config.json" not in there or not {WEIGHTS, ADAPTER} & set(there):
        raise SchemaError(
            f"{_CALLER}: expected 'config.json' and {WEIGHTS!r} (or {ADAPTER!r}) in "
            f"{str(folder)!r}, got {there}. Pass the folder that LeRobot saved as "
            "'pretrained_model'."
        )
    missing = [name for name in PROCESSOR_FILES if name not in there]
    if missing:
        raise SchemaError(
            f"{_CALLER}: expected {list(PROCESSOR_FILES)} in {str(folder)!r}, got no "
            f"{missing}. Without its processors a policy neither normalizes nor "
            "tokenizes. Save them with preprocessor.save_pretrained(folder) and "
            "postprocessor.save_pretrained(folder), or convert an old checkpoint with "
            "`python -m lerobot.processor.migrate_policy_normalization`."
        )


def _read_config(
    config_class: Any,
    folder: Path,
    device: str | torch.device | None,
    overrides: Mapping[str, Any] | None,
) -> Config:
    try:
        config = config_class.from_pretrained(folder)
    except Exception as error:
        raise _unreadable(folder, "configuration", error) from error
    values = dict(overrides or {})
    fields = {field.name for field in dataclasses.fields(config) if field.init}
    if unknown := sorted(set(values) - fields):
        raise SchemaError(
            f"{_CALLER}: expected fields of {type(config).__name__} at argument "
            f"'overrides', got {unknown}. It has {sorted(fields)}."
        )
    if device is not None:
        values["device"] = str(device)
    if "pretrained_backbone_weights" in fields:
        # The checkpoint's own weights follow; ImageNet's would only be downloaded.
        values["pretrained_backbone_weights"] = None
    config = dataclasses.replace(config, **values)
    if device is not None and config.device != str(device):
        raise SchemaError(
            f"{_CALLER}: expected an available device, got {str(device)!r}. Pass "
            f"device={config.device!r}."
        )
    config.pretrained_path = folder
    return config


def _read_policy(factory: Any, folder: Path, config: Config) -> Policy:
    policy_class = factory.get_policy_class(config.type)
    is_adapter = not (folder / WEIGHTS).is_file()
    base = _find_base(folder) if is_adapter else folder
    try:
        policy = policy_class.from_pretrained(str(base), config=config)
    except RuntimeError as error:
        raise SchemaError(
            f"{_CALLER}: expected weights that fit the configuration in "
            f"{str(folder)!r}, got: {error}. An override changed a size, or the files "
            "are mixed up."
        ) from error
    except Exception as error:  # safetensors' own, of a file that was cut off, too
        raise _unreadable(folder, "policy", error) from error
    weights = policy.state_dict(keep_vars=True)
    check_weights(weights, base / WEIGHTS, type(policy).__name__)
    return put_adapter_on(policy, folder) if is_adapter else policy


def _find_base(folder: Path) -> Path:
    name = base_of(folder)
    try:
        base = _find_folder(name, None, None)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{_CALLER}: expected the checkpoint {name!r}, which the adapter in "
            f"{str(folder)!r} was trained on, got: {error} Or write where it is now to "
            "'base_model_name_or_path' in adapter_config.json."
        ) from error
    if not (base / WEIGHTS).is_file():
        there = sorted(path.name for path in base.iterdir())
        raise SchemaError(
            f"{_CALLER}: expected {WEIGHTS!r} in {str(base)!r}, which the adapter in "
            f"{str(folder)!r} was trained on, got {there}."
        )
    return base


def _unreadable(folder: Path, part: str, error: Exception) -> SchemaError:
    return SchemaError(
        f"{_CALLER}: expected the {part} of the checkpoint {str(folder)!r} to load, "
        f"got {type(error).__name__}: {error}. If it names a folder that has moved "
        "(a tokenizer, a backbone), point to it with overrides={'vlm_model_name': "
        "folder} (configuration) and processor_overrides={'tokenizer_processor': "
        "{'tokenizer_name': folder}} (preprocessor): both store the path."
    )
