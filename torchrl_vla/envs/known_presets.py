"""Table of the presets of environments: conventions of published checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torchrl_vla.envs.libero.libero_protocol import LiberoProtocol

#: The names of the presets.
PresetName = Literal["lerobot-libero", "openpi-libero"]


@dataclass(frozen=True)
class KnownPreset:
    """Describe what the policies of a project expect of an environment.

    Args:
        environment: to which it belongs.
        protocol: of the environment, but for the time limit.
        max_steps: time limit of each suite.
        image_size: side of the rendered images in pixels.
        rename_map: from the environment's cameras to the policy's.
        empty_cameras: of the policy, which the environment does not have.
        replan_interval: actions of a chunk to execute; None = the checkpoint's.
    """

    environment: str
    protocol: LiberoProtocol
    max_steps: Mapping[str, int]
    image_size: int
    rename_map: Mapping[str, str]
    empty_cameras: tuple[str, ...] = ()
    replan_interval: int | None = None

    def protocol_of(self, suite: str) -> LiberoProtocol:
        """Return the protocol with the time limit of a suite."""
        return replace(self.protocol, max_steps=self.max_steps[suite])


_MIRRORED = LiberoProtocol(
    settle_steps=10, rotation="axis_angle", image_orientation="mirrored"
)

#: The presets by name. Source: lerobot 0.6.1, ``lerobot/envs/libero.py`` and
#: ``lerobot/processor/env_processor.py``; openpi, ``examples/libero/main.py`` and
#: ``src/openpi/policies/libero_policy.py``.
PRESETS: dict[str, KnownPreset] = {
    "lerobot-libero": KnownPreset(
        environment="libero",
        protocol=_MIRRORED,
        max_steps={"spatial": 280, "object": 280, "goal": 300, "10": 520, "90": 400},
        image_size=256,
        rename_map={"agentview": "image", "wrist": "image2"},
    ),
    "openpi-libero": KnownPreset(
        environment="libero",
        protocol=_MIRRORED,
        max_steps={"spatial": 220, "object": 280, "goal": 300, "10": 520, "90": 400},
        image_size=256,
        rename_map={"agentview": "base_0_rgb", "wrist": "left_wrist_0_rgb"},
        empty_cameras=("right_wrist_0_rgb",),
        replan_interval=5,
    ),
}
