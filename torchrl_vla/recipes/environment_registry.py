"""The environments that the command line knows by name, and their defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torchrl.envs import EnvBase

from torchrl_vla.envs import (
    AlohaEnv,
    AlohaTask,
    MetaWorldEnv,
    PushTEnv,
    SimulatorOptions,
    TabletopEnv,
)

#: The names that :func:`make_environment` knows.
EnvironmentName = Literal["tabletop", "metaworld", "pusht", "aloha"]

#: Those of them with a scripted expert: there one can collect, and see the demo.
ExpertEnvironmentName = Literal["tabletop", "metaworld"]

#: Films from behind the table; sees the hand, the objects and the goal.
_METAWORLD_CAMERA = "corner2"


@dataclass(frozen=True)
class EnvironmentDefaults:
    """What a newcomer should not have to choose.

    Args:
        tasks: the tasks of the demo.
        noise: standard deviation of the noise on the expert's executed action; the
            intended action is the training target, so that the policy sees how to
            come back. None = the environment has no expert.
    """

    tasks: tuple[str, ...]
    noise: float | None = None


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
    "pusht": EnvironmentDefaults(tasks=("push-t",)),
    "aloha": EnvironmentDefaults(tasks=("insertion",)),
}


def make_environment(
    name: EnvironmentName | str,
    *,
    tasks: tuple[str, ...] = (),
    num_envs: int = 32,
    image_size: int | None = None,
    num_workers: int = 0,
    render_on_demand: bool = False,
    seed: int | None = None,
) -> EnvBase:
    """Make one of the environments that the command line knows.

    Args:
        name: ``"tabletop"``, ``"metaworld"``, ``"pusht"`` or ``"aloha"``, or one of
            its tasks, such as ``"metaworld/reach"``.
        tasks: of that environment; empty takes its default. PushT has ``"push-t"``
            and ALOHA ``"insertion"`` or ``"transfer_cube"``, one at a time. A tabletop
            task may name its colour, as in ``"reach-red"``: then the instruction is
            the same in every episode, for policies that read no text.
        num_envs: how many run side by side.
        image_size: side of the images in pixels. None is the environment's own size,
            and no images (state only) in MetaWorld. ALOHA has one size only.
        num_workers: processes that share the simulators; the tabletop needs none.
        render_on_demand: True = draw only where the policy looks; images between two
            decisions are then stale, and fit neither for recording nor for cloning.
        seed: of the episode seeds.

    Raises:
        ValueError: there is no such environment, task or image size; or drawing on
            demand without images.
        MissingExtraError: the environment's package is not installed.

    Examples:
        >>> make_environment("tabletop", num_envs=2).batch_size
        torch.Size([2])
    """
    name, _, task = name.partition("/")
    if task and tasks:
        raise ValueError(
            f"make_environment: expected tasks in one place, got {name!r} with "
            f"{task!r} and tasks={tasks}."
        )
    if task:
        tasks = (task,)
    if name not in get_args(EnvironmentName):
        raise ValueError(
            f"make_environment: expected one of {get_args(EnvironmentName)}, got "
            f"{name!r}."
        )
    tasks = tuple(tasks) or ENVIRONMENTS[name].tasks
    size = {} if image_size is None else {"image_size": image_size}
    if name == "tabletop":
        tasks, colors = _split_colors(tasks)
        drawing = {"render_on_demand": render_on_demand, **size}
        return TabletopEnv(num_envs, tasks=tasks, colors=colors, seed=seed, **drawing)
    simulators = {
        "num_envs": num_envs,
        "options": SimulatorOptions(num_workers, render_on_demand),
        "seed": seed,
    }
    if name == "pusht":
        _check_one_task(name, tasks, ENVIRONMENTS[name].tasks)
        return PushTEnv(environment_state=True, **size, **simulators)
    if name == "aloha":
        _check_one_task(name, tasks, get_args(AlohaTask))
        if image_size is not None:
            raise ValueError(
                "make_environment: expected no image_size for 'aloha', whose images "
                f"have 480 x 640 pixels, got {image_size}."
            )
        return AlohaEnv(tasks[0], **simulators)
    return MetaWorldEnv(
        tasks,
        cameras=() if image_size is None else _METAWORLD_CAMERA,
        **size,
        **simulators,
    )


def _split_colors(tasks: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split tabletop tasks such as ``"reach-red"`` into tasks and named colours."""
    parts = [task.partition("-")[::2] for task in tasks]
    names = tuple(dict.fromkeys(name for name, _ in parts))
    colors = tuple(dict.fromkeys(color for _, color in parts if color))
    if colors and set(parts) != {(name, color) for name in names for color in colors}:
        raise ValueError(
            f"make_environment: expected every task with every colour, got {tasks}."
        )
    return names, colors


def _check_one_task(name: str, tasks: tuple[str, ...], known: tuple[str, ...]) -> None:
    if len(tasks) != 1 or tasks[0] not in known:
        raise ValueError(
            f"make_environment: expected one task of {known} for {name!r}, got {tasks}."
        )
