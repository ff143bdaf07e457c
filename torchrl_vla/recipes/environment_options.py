"""Environments by name, and the options that every command gives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

#: The names that :func:`make_environment` knows.
EnvironmentName = Literal["tabletop", "metaworld", "pusht", "aloha"]

#: Those of them with a scripted expert: there one can collect, and see the demo.
ExpertEnvironmentName = Literal["tabletop", "metaworld"]


@dataclass(frozen=True)
class EnvironmentDefaults:
    """Defaults of an environment.

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


@dataclass(frozen=True)
class EnvironmentOptions:
    """Options of an environment.

    Args:
        name: Environment: tabletop, metaworld, pusht or aloha; one of its tasks, e.g.
            metaworld/reach, aloha/transfer_cube or tabletop/reach-red; or a function of
            your own as module:function, which is called with those of num_envs, seed,
            tasks, image_size, num_workers and render_on_demand that it declares.
        tasks: Tasks of the environment; empty takes its default.
        num_envs: Environments that run side by side. The result of an evaluation does
            not depend on it.
        image_size: Side of the images in pixels. Left out, MetaWorld has state alone.
        num_workers: Processes that share the simulators (the tabletop needs none).
        render_on_demand: Render images only where the policy reads them: much faster
            for chunks in simulators that are slow to render. Refused with policies that
            read an observation at every step.
    """

    name: Annotated[str, arg(name="env")] = "tabletop"
    tasks: tuple[str, ...] = ()
    num_envs: int = 32
    image_size: int | None = None
    num_workers: int = 0
    render_on_demand: bool = False


DEFAULT_ENVIRONMENT = EnvironmentOptions()
