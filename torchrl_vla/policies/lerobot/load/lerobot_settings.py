"""Settings of a LeRobot checkpoint from the process's environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LeRobotSettings:
    """Name a LeRobot checkpoint, and the device to run it on.

    Args:
        path: folder of a checkpoint, or repo id on the Hub.
        policy_type: expected type of the checkpoint, e.g. ``"act"``; None = any.
        device: device to run on.
        cache_folder: of the Hub's files; None = Hugging Face's default.
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

    @property
    def checked_path(self) -> str:
        """The path of the checkpoint.

        Raises:
            ValueError: there is none.
        """
        if self.path is None:
            raise ValueError(
                "LeRobotSettings: expected a folder or repo id in LEROBOT_POLICY_PATH, "
                "got none. Set it."
            )
        return self.path

    def check(self, *, policy_type: str, embodiment_tag: str | None) -> None:
        """Refuse a checkpoint or a robot that the variables contradict.

        Args:
            policy_type: of the checkpoint.
            embodiment_tag: of the robot's contract; None = there is none.

        Raises:
            ValueError: one of them is another.
        """
        found = {"policy_type": policy_type, "embodiment_tag": embodiment_tag}
        expected = {
            "policy_type": self.policy_type,
            "embodiment_tag": self.embodiment_tag,
        }
        for name, value in found.items():
            if None not in (value, expected[name]) and value != expected[name]:
                raise ValueError(
                    f"LeRobotSettings: expected LEROBOT_{name.upper()}="
                    f"{expected[name]!r} at {self.path!r}, got {value!r}. Correct one "
                    "of the two."
                )
