"""The environments that the command line knows by name, and their defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torchrl.envs import EnvBase

from torchrl_vla.envs import MetaWorldEnv, TabletopEnv

EnvironmentName = Literal["tabletop", "metaworld"]


@dataclass(frozen=True)
class EnvironmentDefaults:
    """What a newcomer should not have to choose.

    Args:
        tasks: the tasks of the demo.
        noise: standard deviation of the noise on the expert's executed action; the
            intended action is the training target, so that the policy sees how to
            come back.
    """

    tasks: tuple[str, ...]
    noise: float


ENVIRONMENTS: dict[str, EnvironmentDefaults] = {
    "tabletop": EnvironmentDefaults(tasks=("reach",), noise=0.3),
    "metaworld": EnvironmentDefaults(
        tasks=(
            "reach",
            "push",
            "pick-place",
            "door-open",
            "drawer-close",
            "button-press",
        ),
        noise=0.1,
    ),
}
