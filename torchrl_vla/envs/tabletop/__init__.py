"""Coloured blocks on a table: the embedded default environment."""

from torchrl_vla.envs.tabletop.env import TabletopEnv
from torchrl_vla.envs.tabletop.expert import TabletopExpert

__all__ = ["TabletopEnv", "TabletopExpert"]
