"""LeRobot v3.0 datasets, written without LeRobot."""

from torchrl_vla.data.lerobot_writer.lerobot_conversion import write_lerobot
from torchrl_vla.data.lerobot_writer.lerobot_writer import LeRobotWriter
from torchrl_vla.data.lerobot_writer.video_encoder import VideoEncoding

__all__ = ["LeRobotWriter", "VideoEncoding", "write_lerobot"]
