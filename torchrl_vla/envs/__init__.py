"""Simulated robots in the canonical schema."""

from torchrl_vla.envs.gymnasium import GymnasiumEnv
from torchrl_vla.envs.metaworld import MetaWorldEnv, MetaWorldExpert
from torchrl_vla.envs.mujoco_painter import RenderingError
from torchrl_vla.envs.tabletop import TabletopEnv, TabletopExpert
from torchrl_vla.envs.toy import ToyVLAEnv

__all__ = [
    "GymnasiumEnv",
    "MetaWorldEnv",
    "MetaWorldExpert",
    "RenderingError",
    "TabletopEnv",
    "TabletopExpert",
    "ToyVLAEnv",
]
