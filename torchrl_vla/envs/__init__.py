"""Simulated robots in the canonical schema."""

from torchrl_vla.envs.aloha import AlohaEnv, AlohaTask
from torchrl_vla.envs.gymnasium import GymnasiumEnv
from torchrl_vla.envs.lazy_rendering import RenderSpec
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

__all__ = [
    "AlohaEnv",
    "AlohaTask",
    "GymnasiumEnv",
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
