"""Configuration and processors of a LeRobot checkpoint, read without LeRobot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TypedDict

from torch import Tensor

from torchrl_vla._internal.file_origin import Origin
from torchrl_vla._internal.json_source import read_json
from torchrl_vla._internal.safe_paths import path_below
from torchrl_vla._internal.typed_values import typed
from torchrl_vla.errors import VLAError
from torchrl_vla.policies.lerobot.lerobot_types import Config, Processor, Step
from torchrl_vla.policies.lerobot.load.pipeline import LeRobotPipeline
from torchrl_vla.policies.lerobot.load.processor_checks import (
    check_processors,
    find_step,
)
from torchrl_vla.policies.lerobot.load.safetensors_file import TensorFile
from torchrl_vla.policies.lerobot.registry import KINDS, horizon_problems
from torchrl_vla.policies.lerobot.run.policy_inputs import PolicyInputs

#: The files of the two processors in a checkpoint.
PROCESSOR_FILES = ("policy_preprocessor.json", "policy_postprocessor.json")
_REMEDY = "Save or download the checkpoint again."


#: Entry of a step in the file of a processor.
StoredStep = TypedDict(
    "StoredStep",
    {
        "registry_name": str | None,
        "class": str | None,
        "config": dict[str, object] | None,
        "state_file": str | None,
    },
)


class _StoredProcessor(TypedDict):
    steps: list[StoredStep]


class _Feature(TypedDict):
    type: str
    shape: tuple[int, ...]


class _Normalization(TypedDict):
    features: dict[str, _Feature]
    norm_map: dict[str, str]


class _StoredConfig(TypedDict):
    type: str
    input_features: dict[str, _Feature]
    output_features: dict[str, _Feature]
    normalization_mapping: dict[str, str]


def read_config(caller: str, folder: Path) -> dict[str, object]:
    """Return the configuration of a checkpoint.

    Raises:
        FileNotFoundError: there is none.
        SchemaError: it is no JSON object.
    """
    path = folder / "config.json"
    return read_json(caller, path, dict[str, object], remedy=_REMEDY)


def read_steps(caller: str, folder: Path, name: str) -> list[StoredStep]:
    """Return the steps of one of a checkpoint's processors.

    Raises:
        FileNotFoundError: there is no such processor, or no state of a step.
        SchemaError: it is damaged, or the state of a step is outside of the folder.
    """
    stored = read_json(caller, folder / name, _StoredProcessor, remedy=_REMEDY)
    origin = Origin.of_file(caller, folder / name, _REMEDY)
    for step in stored["steps"]:
        if step["state_file"] is not None:
            path = path_below(origin, folder, step["state_file"], "a step's state")
            if not path.is_file():
                raise FileNotFoundError(
                    f"{caller}: expected the state of {name_of(step)!r} at "
                    f"{str(path)!r}, which {name!r} names, got nothing. Copy the whole "
                    "folder."
                )
    return stored["steps"]


def name_of(step: StoredStep) -> str:
    """Return the name that LeRobot's overrides call a step by."""
    return step["registry_name"] or str(step["class"]).rsplit(".", 1)[-1]


def stored_problems(caller: str, folder: Path) -> Iterator[str]:
    """Yield what is wrong with configuration, processors and sizes of weights.

    Args:
        caller: whose errors these are.
        folder: with all files of a checkpoint, of a registered type.
    """
    try:
        for path in sorted(folder.glob("*.safetensors")):
            TensorFile(caller, path)
        config = _as_lerobots(caller, folder)
        before, after = (_processor(caller, folder, name) for name in PROCESSOR_FILES)
        relative = find_step(before, "relative_actions_processor")
        absolute = find_step(after, "absolute_actions_processor")
        if absolute is not None:
            absolute.relative_step = relative  # as LeRobot does while it loads them
        kind, pipeline = KINDS[config.type], LeRobotPipeline(before, after)
        check_processors(f"a policy of type {config.type!r}", config, pipeline)
        PolicyInputs.from_config(config, kind, pipeline)
        for problem in horizon_problems(config, kind):
            yield f"expected {problem}, in {str(folder / 'config.json')!r}. Correct it."
    except (VLAError, FileNotFoundError) as error:
        yield str(error)
    except (AttributeError, TypeError, ValueError, LookupError) as error:
        yield (
            f"expected LeRobot's configuration in {str(folder / 'config.json')!r}, got "
            f"one that cannot act: {error}. {_REMEDY}"
        )


def _as_lerobots(caller: str, folder: Path) -> Config:
    """Return the configuration as an object with LeRobot's attributes."""
    content = read_config(caller, folder)
    origin = Origin.of_file(caller, folder / "config.json", _REMEDY)
    known = typed(content, _StoredConfig, origin)
    modes = known["normalization_mapping"]
    return SimpleNamespace(
        **{
            **content,
            "input_features": _features(known["input_features"]),
            "output_features": _features(known["output_features"]),
            "normalization_mapping": {k: _Name(v) for k, v in modes.items()},
        }
    )


def _processor(caller: str, folder: Path, name: str) -> Processor:
    origin = Origin.of_file(caller, folder / name, _REMEDY)
    steps = []
    for entry in read_steps(caller, folder, name):
        step: Step = SimpleNamespace(**(entry["config"] or {}))
        step._registry_name = entry["registry_name"]
        if "norm_map" in vars(step):
            known = typed(entry["config"], _Normalization, origin)
            step.features = _features(known["features"])
            step.norm_map = {_Name(k): _Name(v) for k, v in known["norm_map"].items()}
            step._tensor_stats = _statistics(caller, folder, entry["state_file"])
        steps.append(step)
    return SimpleNamespace(steps=steps)


def _statistics(
    caller: str, folder: Path, state_file: str | None
) -> dict[str, dict[str, Tensor]]:
    statistics: dict[str, dict[str, Tensor]] = {}
    if state_file is not None:
        file = TensorFile(caller, folder / state_file)
        for key in file.shapes:
            feature, _, name = key.rpartition(".")
            statistics.setdefault(feature, {})[name] = file.read(key).double()
    return statistics


def _features(stored: dict[str, _Feature]) -> dict[str, SimpleNamespace]:
    return {
        name: SimpleNamespace(type=_Name(value["type"]), shape=value["shape"])
        for name, value in stored.items()
    }


class _Name(str):
    """Name of a feature's type or normalization, as LeRobot's enumerations give it."""

    @property
    def value(self) -> str:
        return str(self)
