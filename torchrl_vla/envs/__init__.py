"""Simulated robots in the canonical schema."""

from torchrl_vla.envs.aloha import AlohaEnv, AlohaTask
from torchrl_vla.envs.gymnasium import GymnasiumEnv
from torchrl_vla.envs.lazy_rendering import RenderSpec
from torchrl_vla.envs.metaworld import MetaWorldEnv, MetaWorldExpert
from torchrl_vla.envs.mujoco_renderer import RenderingError
from torchrl_vla.envs.observation_keys import ObservationKeys
from torchrl_vla.envs.pusht import PushTEnv
from torchrl_vla.envs.tabletop import TabletopEnv, TabletopExpert
from torchrl_vla.envs.toy import ToyVLAEnv

__all__ = [
    "AlohaEnv",
    "AlohaTask",
    "GymnasiumEnv",
    "MetaWorldEnv",
    "MetaWorldExpert",
    "ObservationKeys",
    "PushTEnv",
    "RenderSpec",
    "RenderingError",
    "TabletopEnv",
    "TabletopExpert",
    "ToyVLAEnv",
]
