"""Options of an environment, which every command gives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from torchrl_vla.envs.known_presets import PresetName


@dataclass(frozen=True)
class EnvironmentOptions:
    """Options of an environment.

    Args:
        name: Environment: tabletop, metaworld, libero, pusht or aloha; one of its
            tasks, e.g. metaworld/reach, metaworld/mt50 (all), libero/object/6 (without
            a number, the whole suite), aloha/transfer_cube or tabletop/reach-red; or a
            function of your own as module:function, which is called with those of
            num_envs, seed, tasks, image_size, num_workers and render_on_demand that it
            declares.
        tasks: Tasks of the environment; empty takes its default.
        num_envs: Environments that run side by side. The result of an evaluation does
            not depend on it.
        image_size: Side of the images in pixels. Left out, MetaWorld has state alone.
        num_workers: Processes that share the simulators (the tabletop takes none).
        render_on_demand: Render images only where the policy reads them: much faster
            for chunks in simulators that are slow to render. Refused with policies that
            read an observation at every step.
        preset: Conventions of published checkpoints: time limit, settle steps, layout
            of the state, orientation and size of the images, and in `evaluate` names of
            the cameras and interval of replanning.
    """

    name: Annotated[str, arg(name="env")] = "tabletop"
    tasks: tuple[str, ...] = ()
    num_envs: int = 32
    image_size: int | None = None
    num_workers: int = 0
    render_on_demand: bool = False
    preset: PresetName | None = None


DEFAULT_ENVIRONMENT = EnvironmentOptions()
