"""Construction of environments by name."""

from __future__ import annotations

from typing import Any, get_args

from torchrl.envs import EnvBase

from torchrl_vla._internal.named_objects import (
    call_with_accepted,
    import_named,
    is_named_object,
)
from torchrl_vla._internal.suggestions import did_you_mean
from torchrl_vla.envs import (
    AlohaEnv,
    AlohaTask,
    MetaWorldEnv,
    PushTEnv,
    SimulatorOptions,
    TabletopEnv,
)
from torchrl_vla.errors import NamedObjectError
from torchrl_vla.recipes.environment_options import ENVIRONMENTS, EnvironmentName

#: Films from behind the table; sees the hand, the objects and the goal.
_METAWORLD_CAMERA = "corner2"


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
    """Make an environment by name, or with a function of the user's own.

    Args:
        name: ``"tabletop"``, ``"metaworld"``, ``"pusht"`` or ``"aloha"``; one of its
            tasks, such as ``"metaworld/reach"``; or ``"module:function"``, which is
            called with those of the other arguments that it declares by name.
        tasks: of that environment; empty takes its default. PushT has ``"push-t"``
            and ALOHA ``"insertion"`` or ``"transfer_cube"``, one at a time. A tabletop
            task may name its colour, as in ``"reach-red"``: then the instruction is
            the same in every episode, for policies that read no text.
        num_envs: how many run side by side.
        image_size: side of the images in pixels. None is the environment's own size,
            and no images (state only) in MetaWorld. ALOHA has one size only.
        num_workers: processes that share the simulators; the tabletop needs none.
        render_on_demand: True = render only where the policy reads an image; images
            between two decisions are then stale, and fit neither for recording nor for
            cloning.
        seed: of the episode seeds.

    Raises:
        ValueError: there is no such environment, task or image size; or rendering on
            demand without images.
        MissingExtraError: the environment's package is not installed.

    Examples:
        >>> make_environment("tabletop", num_envs=2).batch_size
        torch.Size([2])
    """
    if is_named_object(name):
        return _make_own(
            name,
            tasks=tasks,
            num_envs=num_envs,
            image_size=image_size,
            num_workers=num_workers,
            render_on_demand=render_on_demand,
            seed=seed,
        )
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
            f"make_environment: expected one of {get_args(EnvironmentName)} or "
            f"'module:function', got {name!r}."
            f"{did_you_mean(name, get_args(EnvironmentName))}"
        )
    tasks = tuple(tasks) or ENVIRONMENTS[name].tasks
    common: dict[str, Any] = {"num_envs": num_envs, "seed": seed}
    if image_size is not None:  # each environment has its own
        common["image_size"] = image_size
    if name == "tabletop":
        tasks, colors = _split_colors(tasks)
        return TabletopEnv(
            tasks=tasks, colors=colors, render_on_demand=render_on_demand, **common
        )
    options = SimulatorOptions(num_workers, render_on_demand)
    return _make_simulated(name, tasks, {**common, "options": options})


def _make_simulated(
    name: str, tasks: tuple[str, ...], options: dict[str, Any]
) -> EnvBase:
    """Make an environment around simulators."""
    image_size = options.get("image_size")
    if name == "pusht":
        _check_one_task(name, tasks, ENVIRONMENTS[name].tasks)
        return PushTEnv(environment_state=True, **options)
    if name == "aloha":
        _check_one_task(name, tasks, get_args(AlohaTask))
        if image_size is not None:
            raise ValueError(
                "make_environment: expected no image_size for 'aloha', whose images "
                f"have 480 x 640 pixels, got {image_size}."
            )
        return AlohaEnv(tasks[0], **options)
    cameras = () if image_size is None else _METAWORLD_CAMERA
    return MetaWorldEnv(tasks, cameras=cameras, **options)


def _make_own(name: str, **available: object) -> EnvBase:
    """Call the user's function; unset arguments keep its own defaults."""
    function = import_named("make_environment", name)
    given = {key: value for key, value in available.items() if value not in (None, ())}
    env = call_with_accepted(function, **given)
    if not isinstance(env, EnvBase):
        raise NamedObjectError(
            f"make_environment: expected a TorchRL environment (EnvBase) from "
            f"{name!r}, got {type(env).__name__}. Return the environment."
        )
    return env


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
            f"{did_you_mean(tasks[0] if tasks else '', known)}"
        )
