"""Demonstrations: recorded, kept on disk, sampled."""

from torchrl_vla.data.collect import collect
from torchrl_vla.data.dataset import DemonstrationDataset
from torchrl_vla.data.episodes import EpisodeStep, episode_seeds, run_episodes
from torchrl_vla.data.hdf5 import Hdf5Demonstrations
from torchrl_vla.data.lerobot import (
    LeRobotDemonstrations,
    LeRobotExperienceReplay,
    RecordedObservations,
    decode_video,
)
from torchrl_vla.data.lerobot_writer import (
    LeRobotWriter,
    VideoEncoding,
    write_lerobot,
)
from torchrl_vla.data.mixture import Embodiment, MixtureReplay
from torchrl_vla.data.openx import OpenXConvention, OpenXExperienceReplay

__all__ = [
    "DemonstrationDataset",
    "Embodiment",
    "EpisodeStep",
    "Hdf5Demonstrations",
    "LeRobotDemonstrations",
    "LeRobotExperienceReplay",
    "LeRobotWriter",
    "MixtureReplay",
    "OpenXConvention",
    "OpenXExperienceReplay",
    "RecordedObservations",
    "VideoEncoding",
    "collect",
    "decode_video",
    "episode_seeds",
    "run_episodes",
    "write_lerobot",
]
