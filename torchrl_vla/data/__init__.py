"""Demonstration datasets: recording, storage, conversion and sampling."""

from torchrl_vla.data.collect import collect
from torchrl_vla.data.dataset_aggregation import aggregate
from torchrl_vla.data.dataset_conversion import convert_demonstrations
from torchrl_vla.data.demonstration_dataset import DemonstrationDataset
from torchrl_vla.data.demonstrations import Demonstrations
from torchrl_vla.data.hdf5 import Hdf5Demonstrations
from torchrl_vla.data.label_bounds import check_labels, clamp_labels
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
from torchrl_vla.data.mixture import Embodiment, MixtureReplay, MixtureSizes
from torchrl_vla.data.online_replay import OnlineReplay
from torchrl_vla.data.openx import OpenXConvention, OpenXExperienceReplay
from torchrl_vla.data.reworded_demonstrations import (
    RewordedDemonstrations,
    reword_demonstrations,
)
from torchrl_vla.data.rollout_frames import frames_of_rollout
from torchrl_vla.data.row_sampler import RowSampler
from torchrl_vla.data.successful_episodes import select_successes, successful_episodes

__all__ = [
    "DemonstrationDataset",
    "Demonstrations",
    "Embodiment",
    "Hdf5Demonstrations",
    "LeRobotDemonstrations",
    "LeRobotExperienceReplay",
    "LeRobotWriter",
    "MixtureReplay",
    "MixtureSizes",
    "OnlineReplay",
    "OpenXConvention",
    "OpenXExperienceReplay",
    "RecordedObservations",
    "RewordedDemonstrations",
    "RowSampler",
    "VideoEncoding",
    "aggregate",
    "check_labels",
    "clamp_labels",
    "collect",
    "convert_demonstrations",
    "decode_video",
    "frames_of_rollout",
    "reword_demonstrations",
    "select_successes",
    "successful_episodes",
    "write_lerobot",
]
