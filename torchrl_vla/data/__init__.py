"""Demonstrations: recorded, kept on disk, sampled."""

from torchrl_vla.data.collect import collect
from torchrl_vla.data.dataset import DemonstrationDataset
from torchrl_vla.data.episodes import EpisodeStep, episode_seeds, run_episodes

__all__ = [
    "DemonstrationDataset",
    "EpisodeStep",
    "collect",
    "episode_seeds",
    "run_episodes",
]
