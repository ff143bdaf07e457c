"""Simulated robots in the canonical schema.

Names are imported when they are first used: the table of names needs no PyTorch.
"""

from typing import TYPE_CHECKING

from torchrl_vla._internal.lazy_package import lazy_names

if TYPE_CHECKING:
    from torchrl_vla.envs.aloha import AlohaEnv, AlohaTask
    from torchrl_vla.envs.gymnasium import GymnasiumEnv
    from torchrl_vla.envs.lazy_rendering import RenderSpec
    from torchrl_vla.envs.libero import LiberoEnv, LiberoProtocol
    from torchrl_vla.envs.metaworld import MetaWorldEnv, MetaWorldExpert
    from torchrl_vla.envs.mujoco_renderer import RenderingError
    from torchrl_vla.envs.pusht import PushTEnv
    from torchrl_vla.envs.simulator_interface import (
        SimulatorInterface,
        SimulatorOptions,
    )
    from torchrl_vla.envs.simulator_keys import SimulatorKeys
    from torchrl_vla.envs.tabletop import TabletopEnv, TabletopExpert
    from torchrl_vla.envs.toy import ToyVLAEnv

_HERE = "torchrl_vla.envs"
_MODULES = {
    f"{_HERE}.aloha": (
        "AlohaEnv",
        "AlohaTask",
    ),
    f"{_HERE}.gymnasium": ("GymnasiumEnv",),
    f"{_HERE}.lazy_rendering": ("RenderSpec",),
    f"{_HERE}.libero": ("LiberoEnv", "LiberoProtocol"),
    f"{_HERE}.metaworld": (
        "MetaWorldEnv",
        "MetaWorldExpert",
    ),
    f"{_HERE}.mujoco_renderer": ("RenderingError",),
    f"{_HERE}.pusht": ("PushTEnv",),
    f"{_HERE}.simulator_interface": (
        "SimulatorInterface",
        "SimulatorOptions",
    ),
    f"{_HERE}.simulator_keys": ("SimulatorKeys",),
    f"{_HERE}.tabletop": (
        "TabletopEnv",
        "TabletopExpert",
    ),
    f"{_HERE}.toy": ("ToyVLAEnv",),
}

__all__ = [
    "AlohaEnv",
    "AlohaTask",
    "GymnasiumEnv",
    "LiberoEnv",
    "LiberoProtocol",
    "MetaWorldEnv",
    "MetaWorldExpert",
    "PushTEnv",
    "RenderSpec",
    "RenderingError",
    "SimulatorInterface",
    "SimulatorKeys",
    "SimulatorOptions",
    "TabletopEnv",
    "TabletopExpert",
    "ToyVLAEnv",
]

__getattr__ = lazy_names(__name__, _MODULES)
