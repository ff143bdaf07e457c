"""Loading of LeRobot checkpoints by folder or repo id, as the policies they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torchrl_vla.policies.lerobot.load.lerobot_checkpoint import (
    read_ensemble_coefficient,
)
from torchrl_vla.policies.lerobot.run.policy_wrapper import LeRobotPolicyWrapper


def is_lerobot_folder(folder: Path | str) -> bool:
    """Return whether a folder is a LeRobot checkpoint, or the one around it."""
    folder = Path(folder)
    if (folder / "weights.pt").exists() or (folder / "policy").exists():
        return False
    return any((folder / name).exists() for name in ("config.json", "pretrained_model"))


def load_lerobot_policy(source: Path | str, **options: Any) -> LeRobotPolicyWrapper:
    """Load a checkpoint of LeRobot's for an executor."""
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


def read_lerobot_folder(folder: Path | str) -> LeRobotPolicyWrapper:
    """Read the policy that ``to_folder`` wrote."""
    return load_lerobot_policy(folder)
