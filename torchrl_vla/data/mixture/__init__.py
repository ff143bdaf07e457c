"""Weighted mixtures of datasets of several robots."""

from torchrl_vla.data.mixture.embodiment import Embodiment
from torchrl_vla.data.mixture.mixture_layout import MixtureSizes
from torchrl_vla.data.mixture.mixture_replay import MixtureReplay

__all__ = ["Embodiment", "MixtureReplay", "MixtureSizes"]
