"""Loading of LeRobot checkpoints by folder or repo id, as the policies they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torchrl_vla.policies.denoising.flow_noise import read_noise
from torchrl_vla.policies.lerobot.load.lerobot_checkpoint import (
    read_ensemble_coefficient,
)
from torchrl_vla.policies.lerobot.run.flow_policy import LeRobotFlowPolicy
from torchrl_vla.policies.lerobot.run.policy_wrapper import LeRobotPolicyWrapper


def is_lerobot_folder(folder: Path | str) -> bool:
    """Return whether a folder is a LeRobot checkpoint, or the one around it."""
    folder = Path(folder)
    if (folder / "weights.pt").exists() or (folder / "policy").exists():
        return False  # ours
    return any((folder / name).exists() for name in ("config.json", "pretrained_model"))


def load_lerobot_policy(source: Path | str, **options: Any) -> LeRobotPolicyWrapper:
    """Load a checkpoint of LeRobot's for an executor.

    Unlike :meth:`LeRobotPolicyWrapper.from_pretrained`, it takes an ACT with a
    ``temporal_ensemble_coeff``. Its chunks are as they are without; the executor
    averages them with ``policy.ensemble_coefficient``, as LeRobot's ``select_action``.

    Args:
        source: a folder, or a repo id of the Hugging Face Hub.
        options: of :meth:`LeRobotPolicyWrapper.from_pretrained`.

    Raises:
        MissingExtraError: ``lerobot`` is not installed.
        FileNotFoundError: there is no such folder or repo.
        ValueError: an option has no effect on a checkpoint.
        SchemaError: the checkpoint lacks files, statistics or weights, or names files
            that are gone.
    """
    where = {name: options.get(name) for name in ("revision", "cache_folder")}
    overrides = options.pop("overrides", None)
    coefficient = read_ensemble_coefficient(source, overrides=overrides, **where)
    if coefficient is not None:
        overrides = {**(overrides or {}), "temporal_ensemble_coeff": None}
    policy = LeRobotPolicyWrapper.from_pretrained(
        source, overrides=overrides, **options
    )
    policy.ensemble_coefficient = coefficient
    return policy


def read_lerobot_folder(
    folder: Path | str,
) -> LeRobotPolicyWrapper | LeRobotFlowPolicy:
    """Read the policy that ``to_folder`` wrote, of the class that wrote it.

    A folder with ``noise.pt`` holds a :class:`LeRobotFlowPolicy`; every other LeRobot
    checkpoint a :class:`LeRobotPolicyWrapper`.

    Args:
        folder: a checkpoint, or the folder around its ``pretrained_model``.
    """
    if read_noise(folder) is not None:
        return LeRobotFlowPolicy.from_folder(folder)
    return load_lerobot_policy(folder)
