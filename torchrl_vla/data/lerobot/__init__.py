"""LeRobot datasets, formats v2.1 and v3.0, read without LeRobot."""

from torchrl_vla.data.lerobot.lerobot_dataset import LeRobotDemonstrations
from torchrl_vla.data.lerobot.lerobot_replay import LeRobotExperienceReplay
from torchrl_vla.data.lerobot.recorded_observations import RecordedObservations
from torchrl_vla.data.lerobot.video_decoder import decode_video

__all__ = [
    "LeRobotDemonstrations",
    "LeRobotExperienceReplay",
    "RecordedObservations",
    "decode_video",
]
