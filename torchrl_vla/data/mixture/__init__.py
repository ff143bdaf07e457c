"""Several datasets, of several robots, sampled as one."""

from torchrl_vla.data.mixture.embodiment import Embodiment
from torchrl_vla.data.mixture.mixture_replay import MixtureReplay

__all__ = ["Embodiment", "MixtureReplay"]
