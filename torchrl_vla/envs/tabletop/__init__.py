"""Tabletop environment with coloured blocks, and its expert."""

from torchrl_vla.envs.tabletop.expert import TabletopExpert
from torchrl_vla.envs.tabletop.tabletop_env import TabletopEnv

__all__ = ["TabletopEnv", "TabletopExpert"]
