"""LeRobot checkpoints on disk or on the Hugging Face Hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch

from torchrl_vla._internal.durable_files import writing_folder
from torchrl_vla._internal.json_source import read_json
from torchrl_vla.policies.lerobot.lerobot_types import (
    Config,
    Policy,
    Processor,
    optional_field,
)
from torchrl_vla.policies.lerobot.load.lora_adapters import (
    ADAPTER,
    WEIGHTS,
    base_of,
    put_adapter_on,
    save_policy,
)
from torchrl_vla.policies.lerobot.load.override_checks import check_overrides
from torchrl_vla.policies.lerobot.load.pipeline import LeRobotPipeline
from torchrl_vla.policies.lerobot.load.robot_fit import RobotFit, replace_statistics
from torchrl_vla.policies.lerobot.load.safetensors_file import TensorFile
from torchrl_vla.policies.lerobot.load.stored_checkpoint import (
    PROCESSOR_FILES,
    name_of,
    read_config,
    read_steps,
)
from torchrl_vla.policies.lerobot.load.weights import check_weights
from torchrl_vla.policies.lerobot.registry import KINDS, horizon_problems, kind_of
from torchrl_vla.schema import SchemaError, VLAError, import_extra
from torchrl_vla.schema.lerobot_names import is_repo_id

_CALLER = "LeRobotPolicyWrapper.from_pretrained"


def read_checkpoint(
    source: Path | str,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    overrides: Mapping[str, Any] | None = None,
    processor_overrides: Mapping[str, Mapping[str, Any]] | None = None,
    statistics: Mapping[str, Mapping[str, Any]] | None = None,
    cache_folder: Path | str | None = None,
    fit: RobotFit | None = None,
    any_type: bool = False,
) -> tuple[Policy, LeRobotPipeline]:
    """Load a policy, in evaluation mode, and its processors as ``lerobot-eval`` does.

    The arguments are those of :meth:`LeRobotPolicyWrapper.from_pretrained`;
    ``any_type`` is True with a ``predict_fn``, where no registered type is needed.

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
    kind = read_config(_CALLER, folder).get("type")
    if not any_type:
        kind_of(str(kind))
    find_plugins(str(kind))
    config = _read_config(configs.PreTrainedConfig, folder, device, overrides, fit)
    policy = _read_policy(factory, folder, config, cache_folder)
    before, after = _read_processors(factory, folder, config, processor_overrides)
    if fit is not None:
        fit.fit_processors(config, before, after)
    if statistics is not None:
        unknown = set(statistics) - {*config.input_features, *config.output_features}
        if unknown:
            raise SchemaError(
                f"{_CALLER}: expected features of the policy at argument 'statistics', "
                f"got {sorted(unknown)}. It has "
                f"{sorted({*config.input_features, *config.output_features})}."
            )
        replace_statistics(before, after, statistics)
    return policy, LeRobotPipeline(before, after)


def find_plugins(policy_type: str) -> None:
    """Let installed packages register their policy types with LeRobot.

    Raises:
        SchemaError: no package has registered the type.
    """
    configs = import_extra("lerobot.configs.policies", "lerobot", _CALLER)
    import_extra("lerobot.policies", "lerobot", _CALLER)  # registers LeRobot's own
    known = configs.PreTrainedConfig.get_known_choices()
    if policy_type not in known:
        utils = import_extra("lerobot.utils.import_utils", "lerobot", _CALLER)
        register = optional_field(utils, "register_third_party_plugins")
        if register is not None:
            register()
        known = configs.PreTrainedConfig.get_known_choices()
    if policy_type not in known:
        raise SchemaError(
            f"{_CALLER}: expected a policy type that LeRobot or an installed plugin "
            f"registers, got {policy_type!r} beside {sorted(known)}. Correct it, or "
            "import the module with its @PreTrainedConfig.register_subclass("
            f"{policy_type!r}) first."
        )


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
        if revision is not None:
            raise ValueError(
                f"{_CALLER}: expected no revision beside the folder {text!r}, got "
                f"{revision!r}. It chooses a version of a repo id 'owner/name'."
            )
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
    for path in folder.glob("*.safetensors"):
        TensorFile(_CALLER, path)


def _read_config(
    config_class: Any,
    folder: Path,
    device: str | torch.device | None,
    overrides: Mapping[str, Any] | None,
    fit: RobotFit | None,
) -> Config:
    try:
        config = config_class.from_pretrained(folder)
    except Exception as error:
        raise _unreadable(folder, "configuration", error) from error
    values = dict(overrides or {})
    check_overrides(_CALLER, config, values, device=device, fitted=fit is not None)
    if device is not None:
        values["device"] = str(device)
    if "pretrained_backbone_weights" in vars(config):
        # The checkpoint's own weights follow; ImageNet's would only be downloaded.
        values["pretrained_backbone_weights"] = None
    try:
        config = dataclasses.replace(config, **values)
        if fit is not None:
            config = dataclasses.replace(config, **fit.config_changes(config))
        kind = KINDS.get(config.type)
        illegal = [] if kind is None else [*horizon_problems(config, kind)]
    except VLAError:
        raise
    except Exception as error:  # LeRobot checks in its constructors
        illegal = [f"{type(error).__name__}: {error}"]
    if illegal:
        raise SchemaError(
            f"{_CALLER}: expected a configuration that a policy of type "
            f"{config.type!r} can act with in {str(folder)!r}, but: "
            f"{'; '.join(illegal)}. Correct it with overrides={{<field>: <value>}}."
        )
    if device is not None and config.device != str(device):
        raise SchemaError(
            f"{_CALLER}: expected an available device, got {str(device)!r}. Pass "
            f"device={config.device!r}."
        )
    config.pretrained_path = folder
    return config


def _read_policy(
    factory: Any, folder: Path, config: Config, cache_folder: Path | str | None
) -> Policy:
    is_adapter = not (folder / WEIGHTS).is_file()
    base = _find_base(folder, cache_folder) if is_adapter else folder
    try:
        policy_class = factory.get_policy_class(config.type)
        policy = policy_class.from_pretrained(str(base), config=config)
    except RuntimeError as error:
        raise SchemaError(
            f"{_CALLER}: expected weights that fit the configuration in "
            f"{str(folder)!r}, got: {error}. An override changed a size, or the files "
            "are mixed up."
        ) from error
    except Exception as error:
        raise _unreadable(folder, "policy", error) from error
    weights = policy.state_dict(keep_vars=True)
    check_weights(weights, base / WEIGHTS, type(policy).__name__)
    return put_adapter_on(policy, folder) if is_adapter else policy


def _read_processors(
    factory: Any,
    folder: Path,
    config: Config,
    overrides: Mapping[str, Mapping[str, Any]] | None,
) -> tuple[Processor, Processor]:
    before, _ = (read_steps(_CALLER, folder, name) for name in PROCESSOR_FILES)
    known = [name_of(step) for step in before]
    if unknown := sorted(set(overrides or ()) - set(known)):
        raise SchemaError(
            f"{_CALLER}: expected steps of the preprocessor at argument "
            f"'processor_overrides', got {unknown}. It has {known}."
        )
    steps: dict[str, dict[str, Any]] = {
        "device_processor": {"device": str(config.device)}
    }
    for name, arguments in (overrides or {}).items():
        steps[name] = {**steps.get(name, {}), **arguments}
    steps = {name: arguments for name, arguments in steps.items() if name in known}
    try:
        return factory.make_pre_post_processors(
            policy_cfg=config,
            pretrained_path=str(folder),
            preprocessor_overrides=steps,
        )
    except Exception as error:
        raise _unreadable(folder, "processors", error) from error


def _find_base(folder: Path, cache_folder: Path | str | None) -> Path:
    name = base_of(folder)
    try:
        base = _find_folder(name, None, cache_folder)
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
        f"got {type(error).__name__}: {error}. Correct the field in its JSON file. If "
        "it names a folder that has moved "
        "(a tokenizer, a backbone), point to it with overrides={'vlm_model_name': "
        "folder} (configuration) and processor_overrides={'tokenizer_processor': "
        "{'tokenizer_name': folder}} (preprocessor): both store the path."
    )
