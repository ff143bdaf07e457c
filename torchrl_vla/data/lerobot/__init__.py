"""LeRobot datasets, formats v2.1 and v3.0, read without LeRobot."""

from torchrl_vla.data.lerobot.dataset import LeRobotDemonstrations
from torchrl_vla.data.lerobot.observations import RecordedObservations
from torchrl_vla.data.lerobot.replay import LeRobotExperienceReplay
from torchrl_vla.data.lerobot.video import decode_video

__all__ = [
    "LeRobotDemonstrations",
    "LeRobotExperienceReplay",
    "RecordedObservations",
    "decode_video",
]
