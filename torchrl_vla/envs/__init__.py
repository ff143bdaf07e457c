"""Environments that speak the canonical schema."""

from torchrl_vla.envs.tabletop import TabletopEnv, TabletopExpert
from torchrl_vla.envs.toy import ToyVLAEnv

__all__ = ["TabletopEnv", "TabletopExpert", "ToyVLAEnv"]
