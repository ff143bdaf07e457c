"""Makers of the environments that have a name."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict, cast, get_args

from torchrl_vla._internal.suggestions import did_you_mean
from torchrl_vla.envs.aloha import AlohaEnv, AlohaTask
from torchrl_vla.envs.known_environments import ENVIRONMENTS
from torchrl_vla.envs.libero import LiberoEnv
from torchrl_vla.envs.metaworld import MetaWorldEnv
from torchrl_vla.envs.pusht import PushTEnv
from torchrl_vla.envs.simulator_interface import SimulatorOptions
from torchrl_vla.envs.tabletop import TabletopEnv

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: Films from behind the table; sees the hand, the objects and the goal.
_METAWORLD_CAMERA = "corner2"


#: Most environments of LIBERO that are made by name, but for one per worker.
_SIMULATIONS = 8


class MakerOptions(TypedDict):
    """Name the options of every maker, as those of ``make_environment``."""

    num_envs: int
    image_size: int | None
    num_workers: int
    render_on_demand: bool
    seed: int | None


class _Size(TypedDict, total=False):
    image_size: int


def make_tabletop(
    tasks: tuple[str, ...], **options: Unpack[MakerOptions]
) -> TabletopEnv:
    """Make the tabletop; a task may name its colour, as in ``"reach-red"``."""
    names, colors = _split_colors(tasks)
    return TabletopEnv(
        tasks=names,
        colors=colors,
        render_on_demand=options["render_on_demand"],
        num_envs=options["num_envs"],
        seed=options["seed"],
        **_size(options),
    )


def make_metaworld(
    tasks: tuple[str, ...], **options: Unpack[MakerOptions]
) -> MetaWorldEnv:
    """Make MetaWorld; without a size of images it has the state alone."""
    return MetaWorldEnv(
        tasks,
        cameras=() if options["image_size"] is None else _METAWORLD_CAMERA,
        num_envs=options["num_envs"],
        seed=options["seed"],
        options=_simulators(options),
        **_size(options),
    )


def make_libero(tasks: tuple[str, ...], **options: Unpack[MakerOptions]) -> LiberoEnv:
    """Make LIBERO; a task is a suite, or one of its tasks, as in ``"object/6"``.

    Of more environments than there are workers, at most eight are made: no result
    depends on their number, and each may build a simulation of 400 MB.
    """
    suites, names = zip(*(task.partition("/")[::2] for task in tasks), strict=True)
    if len(set(suites)) > 1:
        raise ValueError(
            f"make_environment: expected tasks of one suite for 'libero', got {tasks}. "
            "Evaluate the suites one after another."
        )
    return LiberoEnv(
        suites[0],
        [name for name in names if name],
        num_envs=min(options["num_envs"], max(_SIMULATIONS, options["num_workers"])),
        seed=options["seed"],
        options=_simulators(options),
        **_size(options),
    )


def make_pusht(tasks: tuple[str, ...], **options: Unpack[MakerOptions]) -> PushTEnv:
    """Make PushT, whose one task is ``"push-t"``."""
    _check_one_task("pusht", tasks, ENVIRONMENTS["pusht"].tasks)
    return PushTEnv(
        environment_state=True,
        num_envs=options["num_envs"],
        seed=options["seed"],
        options=_simulators(options),
        **_size(options),
    )


def make_aloha(tasks: tuple[str, ...], **options: Unpack[MakerOptions]) -> AlohaEnv:
    """Make ALOHA with one of its tasks; its images have one size only."""
    _check_one_task("aloha", tasks, get_args(AlohaTask))
    if options["image_size"] is not None:
        raise ValueError(
            "make_environment: expected no image_size for 'aloha', whose images "
            f"have 480 x 640 pixels, got {options['image_size']}."
        )
    return AlohaEnv(
        cast(AlohaTask, tasks[0]),
        num_envs=options["num_envs"],
        seed=options["seed"],
        options=_simulators(options),
    )


def _simulators(options: MakerOptions) -> SimulatorOptions:
    return SimulatorOptions(options["num_workers"], options["render_on_demand"])


def _size(options: MakerOptions) -> _Size:
    """Return the size of images where one is asked for; else it is the env's own."""
    size = options["image_size"]
    return {} if size is None else {"image_size": size}


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
