"""Which LeRobot checkpoint to run, from the environment variables of the process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LeRobotSettings:
    """Which LeRobot checkpoint to run, and where.

    Args:
        path: folder of a checkpoint, or repo id on the Hub.
        policy_type: what the checkpoint should be, e.g. ``"act"``; None = whatever it
            says it is.
        device: device to run on.
        cache_folder: where the Hub's files are kept; None = Hugging Face's default.
        embodiment_tag: name of the robot.

    Examples:
        >>> LeRobotSettings.from_environment({"LEROBOT_POLICY": "me/act-cube"}).path
        'me/act-cube'
    """

    path: str | None = None
    policy_type: str | None = None
    device: str = "cpu"
    cache_folder: Path | None = None
    embodiment_tag: str | None = None

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str] | None = None
    ) -> LeRobotSettings:
        """Read the variables; empty ones count as unset.

        ``LEROBOT_POLICY_PATH`` or ``LEROBOT_POLICY``, ``LEROBOT_POLICY_TYPE``,
        ``LEROBOT_DEVICE``, ``LEROBOT_CACHE_DIR``, ``LEROBOT_EMBODIMENT_TAG``.

        Args:
            environment: variables by name; None = those of the process.

        Raises:
            ValueError: both variables of the path are set, to different values.
        """
        variables = os.environ if environment is None else environment

        def read(name: str) -> str | None:
            return variables.get(f"LEROBOT_{name}", "").strip() or None

        path, alias = read("POLICY_PATH"), read("POLICY")
        if path and alias and path != alias:
            raise ValueError(
                "LeRobotSettings: expected LEROBOT_POLICY_PATH and LEROBOT_POLICY to "
                f"agree, got {path!r} and {alias!r}. Unset one of them."
            )
        cache_folder = read("CACHE_DIR")
        return cls(
            path=path or alias,
            policy_type=read("POLICY_TYPE"),
            device=read("DEVICE") or cls.device,
            cache_folder=Path(cache_folder).expanduser() if cache_folder else None,
            embodiment_tag=read("EMBODIMENT_TAG"),
        )

    def check(self, *, policy_type: str, embodiment_tag: str | None) -> None:
        """Refuse a checkpoint or a robot that is not what the variables say.

        Args:
            policy_type: of the checkpoint.
            embodiment_tag: of the robot; None = it is not known.

        Raises:
            ValueError: one of them is another.
        """
        if self.policy_type not in (None, policy_type):
            raise ValueError(
                f"LeRobotSettings: expected LEROBOT_POLICY_TYPE={self.policy_type!r} "
                f"at {self.path!r}, got {policy_type!r}. Correct one of the two."
            )
        if None not in (self.embodiment_tag, embodiment_tag) and (
            self.embodiment_tag != embodiment_tag
        ):
            raise ValueError(
                "LeRobotSettings: expected LEROBOT_EMBODIMENT_TAG="
                f"{self.embodiment_tag!r}, got {embodiment_tag!r} for the robot. "
                "Correct one of the two."
            )
