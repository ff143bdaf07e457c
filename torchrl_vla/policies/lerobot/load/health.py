"""Health check of a LeRobot checkpoint, without loading it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from torchrl_vla._internal.file_origin import Origin, read_text
from torchrl_vla._internal.json_source import read_json
from torchrl_vla._internal.safe_paths import path_below
from torchrl_vla.errors import SchemaError, VLAError
from torchrl_vla.policies.lerobot.load.lerobot_settings import LeRobotSettings
from torchrl_vla.policies.lerobot.load.stored_checkpoint import (
    PROCESSOR_FILES,
    name_of,
    read_steps,
    stored_problems,
)
from torchrl_vla.policies.lerobot.registry import KINDS, kind_of


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


#: The policy types that LeRobot registers, by its minor version.
LEROBOT_POLICY_TYPES: dict[str, tuple[str, ...]] = {
    "0.4": _words(
        "act diffusion groot pi0 pi05 pi0_fast reward_classifier sac sarm smolvla "
        "tdmpc vqbet wall_x xvla"
    ),
    "0.6": _words(
        "act diffusion eo1 evo1 fastwam gaussian_actor groot lingbot_va molmoact2 "
        "multi_task_dit pi0 pi05 pi0_fast smolvla tdmpc vla_jepa vqbet wall_x xvla"
    ),
}

_CALLER = "check_lerobot_health"
_INSTALL = "Install it with: pip install 'torchrl-vla[lerobot]'"
_MODELS = (
    ("config.json", "vlm_model_name"),
    ("config.json", "base_model_path"),
    ("adapter_config.json", "base_model_name_or_path"),
)
_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
_SWITCHED_ON = {"1", "true", "yes", "on"}


@dataclass(frozen=True)
class HealthReport:
    """Result of :func:`check_lerobot_health`; prints itself as a table.

    Args:
        problems: one sentence each, with what to do; empty = none was found.
        lerobot_version: of the installed package; None = it is not installed.
        path: of the checkpoint, or repo id.
        folder: local folder of the checkpoint; None = it would be downloaded.
        policy_type: of the checkpoint, or the expected one.
        device: where it would run.
        cache_folder: of the Hub's files.
        embodiment_tag: name of the robot.

    Examples:
        >>> print(HealthReport(problems=(), lerobot_version="0.6.1", device="cpu"))
        ok               yes
        lerobot_version  0.6.1
        path             -
        folder           -
        policy_type      -
        device           cpu
        cache_folder     -
        embodiment_tag   -
    """

    problems: tuple[str, ...]
    lerobot_version: str | None = None
    path: str | None = None
    folder: Path | None = None
    policy_type: str | None = None
    device: str | None = None
    cache_folder: Path | None = None
    embodiment_tag: str | None = None

    @property
    def ok(self) -> bool:
        """True = no problem was found."""
        return not self.problems

    def __str__(self) -> str:
        table = {"ok": "yes" if self.ok else "no", **asdict(self)}
        problems = table.pop("problems")
        lines = [
            f"{name:<17}{'-' if value is None else value}"
            for name, value in table.items()
        ]
        return "\n".join([*lines, *(f"problem: {text}" for text in problems)])


def check_lerobot_health(
    path: str | Path | None = None,
    policy_type: str | None = None,
    *,
    settings: LeRobotSettings | None = None,
    load: bool = False,
) -> HealthReport:
    """Find what would stop a LeRobot checkpoint from running, in milliseconds.

    Checked are the package and its version, the path, the files of the checkpoint and
    their sizes, its type, its horizons and inputs, the statistics of its processors,
    the files that these name (a tokenizer whose folder has moved), and the device.
    LeRobot is not imported, no weights are read, no network is used. Fields of another
    LeRobot's configuration and weights of another policy show only with ``load``.

    Args:
        path: folder of a checkpoint, or repo id; None = that of ``settings``.
        policy_type: the expected one; None = that of ``settings``.

    Keyword Args:
        settings: None = those of the environment variables.
        load: True = if nothing is found, load it too, which takes as long as that.

    Returns:
        The report; problems are in it, nothing is raised.

    Examples:
        >>> report = check_lerobot_health("/no/such/folder", settings=LeRobotSettings())
        >>> report.ok, report.problems[-1]
        (False, "expected a checkpoint folder at '/no/such/folder', got nothing there. \
Correct the path; a repo id looks like 'owner/name'.")
    """
    problems: list[str] = []
    if settings is None:
        try:
            settings = LeRobotSettings.from_environment()
        except ValueError as error:
            problems.append(str(error))
            settings = LeRobotSettings()
    path = settings.path if path is None else str(path)
    wanted = policy_type or settings.policy_type
    version = _installed_version()
    cache = settings.cache_folder or _default_cache()
    problems += _version_problems(version)
    folder, found = _find_checkpoint(path, cache)
    problems += found
    config: Mapping[str, Any] = {}
    if folder is not None:
        config, found = _read_object(folder / "config.json")
        problems += _file_problems(folder, found)
        problems += _model_problems(folder, cache)
        problems += _processor_problems(folder, cache)
    declared = None if config.get("type") is None else str(config["type"])
    problems += _type_problems(declared, wanted, _known_types(version))
    problems += _device_problems(settings.device)
    if folder is not None and not problems:
        problems += stored_problems(_CALLER, folder)
    if load and folder is not None and not problems:
        problems += _loading_problems(folder, settings)
    return HealthReport(
        problems=tuple(problems),
        lerobot_version=version,
        path=path,
        folder=folder,
        policy_type=declared or wanted,
        device=settings.device,
        cache_folder=cache,
        embodiment_tag=settings.embodiment_tag,
    )


def _installed_version() -> str | None:
    if importlib.util.find_spec("lerobot") is None:
        return None
    try:
        return importlib.metadata.version("lerobot")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _known_types(version: str | None) -> tuple[str, ...]:
    minor = ".".join((version or "").split(".")[:2])
    return LEROBOT_POLICY_TYPES.get(minor, LEROBOT_POLICY_TYPES["0.6"])


def _version_problems(version: str | None) -> Iterator[str]:
    if version is None:
        yield f"expected the package 'lerobot', got none. {_INSTALL}"
    elif ".".join(version.split(".")[:2]) not in LEROBOT_POLICY_TYPES:
        yield (
            f"expected lerobot of {list(LEROBOT_POLICY_TYPES)}, got {version}, which "
            f"is untested here. {_INSTALL}"
        )


def _default_cache() -> Path:
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    cache = os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")
    return Path(cache).expanduser()


def _find_checkpoint(path: str | None, cache: Path) -> tuple[Path | None, list[str]]:
    if path is None:
        return None, [
            "expected the path of a policy, got none. Pass path=, or set "
            "LEROBOT_POLICY_PATH."
        ]
    return _find_folder(path, cache, has_owner=True)


def _find_folder(
    name: str, cache: Path, *, has_owner: bool = False
) -> tuple[Path | None, list[str]]:
    """Return the local folder of a path or repo id, and its problems.

    ``has_owner``: True = a repo id is ``owner/name``; some tokenizers have none.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder, []
    if folder.exists():
        return None, [
            f"expected a checkpoint folder at {name!r}, got a file. Pass the folder "
            "that it is in."
        ]
    if not _HUB_ID.fullmatch(name) or (has_owner and "/" not in name):
        return None, [
            f"expected a checkpoint folder at {name!r}, got nothing there. Correct "
            "the path; a repo id looks like 'owner/name'."
        ]
    repo = cache / f"models--{name.replace('/', '--')}"
    reference = repo / "refs" / "main"
    if reference.is_file():
        origin = Origin(_CALLER, repr(str(reference)), "Fetch it again.")
        try:
            commit = read_text(origin, reference).strip()
            snapshot = path_below(origin, repo / "snapshots", commit, "a snapshot")
        except VLAError as error:
            return None, [str(error)]
        if snapshot.is_dir():
            return snapshot, []
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in _SWITCHED_ON:
        return None, [
            f"expected a folder, or a repo in the cache {str(cache)!r}, at {name!r}, "
            "got neither, and HF_HUB_OFFLINE forbids to download it. Correct the "
            "path, or download it first."
        ]
    return None, []


def _read_object(file: Path) -> tuple[Mapping[str, Any], list[str]]:
    if not file.is_file():
        return {}, [f"{file.name!r} is missing"]
    try:
        return read_json(_CALLER, file, dict[str, object]), []
    except VLAError as error:
        return {}, [f"{file.name!r} is damaged ({error})"]


def _loading_problems(folder: Path, settings: LeRobotSettings) -> Iterator[str]:
    # It is built from this module's siblings.
    from torchrl_vla.policies.lerobot.lerobot_folder import load_lerobot_policy

    try:
        load_lerobot_policy(
            folder, device=settings.device, cache_folder=settings.cache_folder
        )
    except (VLAError, OSError, ValueError) as error:
        yield str(error)


def _file_problems(folder: Path, found: list[str]) -> Iterator[str]:
    """Yield the files that a checkpoint lacks; ``found`` is wrong with its config."""
    adapter = (folder / "adapter_config.json").is_file()
    weights = "adapter_model.safetensors" if adapter else "model.safetensors"
    names = (weights, *PROCESSOR_FILES)
    missing = [name for name in names if not (folder / name).exists()]
    found = [*found, *(f"{name!r} is missing" for name in missing)]
    if not found:
        return
    advice = "Save it again with LeRobot"
    if (folder / "pretrained_model").is_dir():
        advice = f"Pass {str(folder / 'pretrained_model')!r}, which is inside"
    elif set(missing) & set(PROCESSOR_FILES) and weights not in missing:
        advice = (
            "Without its processors the policy would read and write unnormalized "
            "numbers: convert an old checkpoint with LeRobot's "
            "migrate_policy_normalization"
        )
    yield f"expected a checkpoint in {str(folder)!r}, but {', '.join(found)}. {advice}."


def _model_problems(folder: Path, cache: Path) -> Iterator[str]:
    """Yield the missing models that the checkpoint names."""
    for file, entry in _MODELS:
        name = _read_object(folder / file)[0].get(entry)
        if name:
            for problem in _find_folder(str(name), cache)[1]:
                yield (
                    f"{entry!r} in {str(folder / file)!r}: {problem} A moved model "
                    f"takes from_pretrained(..., overrides={{{entry!r}: folder}})."
                )


def _processor_problems(folder: Path, cache: Path) -> Iterator[str]:
    """Yield the missing files and tokenizers that the processors name."""
    for name in PROCESSOR_FILES:
        if not (folder / name).exists():
            continue
        try:
            steps = read_steps(_CALLER, folder, name)
        except (VLAError, FileNotFoundError) as error:
            yield str(error)
            continue
        for step in steps:
            label = name_of(step)
            tokenizer = (step["config"] or {}).get("tokenizer_name")
            for wrong in _find_folder(str(tokenizer), cache)[1] if tokenizer else ():
                yield (
                    f"'tokenizer_name' of {label!r} in {name!r}: {wrong} A moved "
                    "checkpoint takes from_pretrained(..., processor_overrides="
                    f"{{{label!r}: {{'tokenizer_name': folder}}}})."
                )


def _type_problems(
    declared: str | None, wanted: str | None, types: tuple[str, ...]
) -> Iterator[str]:
    builtin = {name for names in LEROBOT_POLICY_TYPES.values() for name in names}
    for name in dict.fromkeys((declared, wanted)):
        if name is None or (
            name in KINDS and name in {*types} | (KINDS.keys() - builtin)
        ):
            continue
        if name in types:
            yield _refusal(name)
        else:
            yield (
                f"expected a policy type of {list(types)}, got {name!r}. Correct it, "
                "or install the LeRobot that has it; a plugin's type takes an entry in "
                "KINDS, or predict_fn."
            )
    if declared and wanted and declared != wanted:
        yield (
            f"expected a policy of type {wanted!r}, got {declared!r} in its "
            "'config.json'. Correct the path or LEROBOT_POLICY_TYPE."
        )


def _refusal(policy_type: str) -> str:
    try:
        kind_of(policy_type)
    except SchemaError as error:
        return str(error)
    return ""


def _device_problems(name: str) -> Iterator[str]:
    try:
        device = torch.device(name)
    except RuntimeError:
        yield f"expected a device such as 'cpu' or 'cuda:0', got {name!r}."
        return
    counts = {"cpu": 1, "cuda": torch.cuda.device_count()}
    counts["mps"] = torch.mps.device_count()
    counts["xpu"] = torch.xpu.device_count()
    count = counts.get(device.type, 0)
    if device.type != "cpu" and (device.index or 0) >= count:
        yield (
            f"expected a device that is there, got {name!r}, of which torch sees "
            f"{count}. Use 'cpu', or install a torch for that device."
        )
