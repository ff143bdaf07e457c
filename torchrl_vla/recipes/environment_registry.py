"""Construction of environments by name."""

from __future__ import annotations

from typing import Any, get_args

from torchrl.envs import EnvBase

from torchrl_vla._internal.named_objects import (
    accepts,
    call_with_accepted,
    import_named,
    is_named_object,
)
from torchrl_vla._internal.suggestions import did_you_mean
from torchrl_vla.envs.known_environments import ENVIRONMENTS, EnvironmentName
from torchrl_vla.envs.known_presets import PRESETS, PresetName
from torchrl_vla.errors import NamedObjectError
from torchrl_vla.rollout import checked_env


def make_environment(
    name: EnvironmentName | str,
    *,
    tasks: tuple[str, ...] = (),
    num_envs: int = 32,
    image_size: int | None = None,
    num_workers: int = 0,
    render_on_demand: bool = False,
    seed: int | None = None,
    preset: PresetName | None = None,
) -> EnvBase:
    """Make an environment by name, or with a function of the user's own.

    Args:
        name: ``"tabletop"``, ``"metaworld"``, ``"libero"``, ``"pusht"`` or ``"aloha"``;
            one of its tasks, such as ``"metaworld/reach"``, ``"libero/object"`` (a
            suite) or ``"libero/object/6"``; or ``"module:function"``, which is called
            with those of the other arguments that it declares by name; one that is
            given and not declared is refused. What it returns comes inside a
            :class:`~torchrl_vla.rollout.CheckedEnv`, unless it checks its actions.
        tasks: of that environment; empty takes its default. PushT has ``"push-t"``
            and ALOHA ``"insertion"`` or ``"transfer_cube"``, one at a time. A tabletop
            task may name its colour, as in ``"reach-red"``: then the instruction is
            the same in every episode, for policies that read no text.
        num_envs: how many run side by side.
        image_size: side of the images in pixels. None is the environment's own size,
            and no images (state only) in MetaWorld. ALOHA has one size only.
        num_workers: processes that share the simulators; the tabletop takes none.
        render_on_demand: True = render only where the policy reads an image; images
            between two decisions are then stale, and fit neither for recording nor for
            cloning.
        seed: of the episode seeds.
        preset: conventions of published checkpoints: ``"lerobot-libero"`` or
            ``"openpi-libero"``, for LIBERO.

    Raises:
        ValueError: there is no such environment, preset, task or image size; the preset
            is of another environment; an argument has no effect on it; or rendering on
            demand without images.
        MissingExtraError: the environment's package is not installed.

    Examples:
        >>> make_environment("tabletop", num_envs=2).batch_size
        torch.Size([2])
    """
    options: dict[str, Any] = {
        "num_envs": num_envs,
        "image_size": image_size,
        "num_workers": num_workers,
        "render_on_demand": render_on_demand,
        "seed": seed,
    }
    if preset is not None:
        _check_preset(preset, name)
        options["preset"] = preset
    if is_named_object(name):
        given = {"tasks": tasks, **options}  # unset ones keep the user's own defaults
        given = {key: x for key, x in given.items() if x not in (None, ())}
        function = import_named("make_environment", name)
        chosen = {"tasks": tasks, "image_size": image_size, "num_workers": num_workers}
        chosen["render_on_demand"] = render_on_demand
        unread = {k: x for k, x in chosen.items() if x and not accepts(function, k)}
        if unread:
            flags = ", ".join("--" + key.replace("_", "-") for key in unread)
            raise ValueError(
                f"make_environment: expected {name!r} to take {sorted(unread)} "
                f"({flags}) by name, got a function that does not and would ignore "
                f"{unread}. Declare them, or leave them out."
            )
        return checked_env(_checked(name, call_with_accepted(function, **given)))
    name, _, task = name.partition("/")
    if task and tasks:
        raise ValueError(
            f"make_environment: expected tasks in one place, got {name!r} with "
            f"{task!r} and tasks={tasks}."
        )
    if name not in ENVIRONMENTS:
        raise ValueError(
            f"make_environment: expected one of {get_args(EnvironmentName)} or "
            f"'module:function', got {name!r}."
            f"{did_you_mean(name, get_args(EnvironmentName))}"
        )
    known = ENVIRONMENTS[name]
    tasks = (task,) if task else tuple(tasks) or known.tasks
    make = import_named("make_environment", known.maker)
    return _checked(name, make(tasks, **options))


def _check_preset(preset: str, name: str) -> None:
    if preset not in PRESETS:
        raise ValueError(
            f"make_environment: expected a preset of {get_args(PresetName)}, got "
            f"{preset!r}.{did_you_mean(preset, get_args(PresetName))}"
        )
    environment = PRESETS[preset].environment
    if name.partition("/")[0] != environment:
        raise ValueError(
            f"make_environment: expected the environment {environment!r} with the "
            f"preset {preset!r}, got {name!r}. Name one of its tasks, such as "
            f"{environment}/object, or leave the preset out."
        )


def _checked(name: str, env: object) -> EnvBase:
    if not isinstance(env, EnvBase):
        raise NamedObjectError(
            f"make_environment: expected a TorchRL environment (EnvBase) from "
            f"{name!r}, got {type(env).__name__}. Return the environment."
        )
    return env
