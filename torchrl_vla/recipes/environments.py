"""The environments that the command line knows by name, and their defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torchrl.envs import EnvBase

from torchrl_vla.envs import MetaWorldEnv, TabletopEnv

#: The names that :func:`make_environment` knows.
EnvironmentName = Literal["tabletop", "metaworld"]

#: Films from behind the table; sees the hand, the objects and the goal.
_METAWORLD_CAMERA = "corner2"


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


#: Tasks and expert noise of each environment, by name.
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


def make_environment(
    name: EnvironmentName,
    *,
    tasks: tuple[str, ...] = (),
    num_envs: int = 32,
    image_size: int | None = None,
    num_workers: int = 0,
    seed: int | None = None,
) -> EnvBase:
    """Make one of the environments that the command line knows.

    Args:
        name: ``"tabletop"`` or ``"metaworld"``.
        tasks: of that environment; empty takes its default.
        num_envs: how many run side by side.
        image_size: side of the images in pixels. None is the tabletop's own size, and
            no images (state only) in MetaWorld, whose images are drawn in software.
        num_workers: processes that share MetaWorld's rows; the tabletop needs none.
        seed: of the episode seeds.

    Raises:
        ValueError: there is no such environment or task.
        MissingExtraError: the environment's package is not installed.

    Examples:
        >>> make_environment("tabletop", num_envs=2).batch_size
        torch.Size([2])
    """
    if name not in get_args(EnvironmentName):
        raise ValueError(
            f"make_environment: expected one of {get_args(EnvironmentName)}, got "
            f"{name!r}."
        )
    tasks = tuple(tasks) or ENVIRONMENTS[name].tasks
    if name == "tabletop":
        size = {} if image_size is None else {"image_size": image_size}
        return TabletopEnv(num_envs, tasks=tasks, seed=seed, **size)
    return MetaWorldEnv(
        tasks,
        num_envs=num_envs,
        cameras=() if image_size is None else _METAWORLD_CAMERA,
        image_size=image_size or 64,
        num_workers=num_workers,
        seed=seed,
    )
