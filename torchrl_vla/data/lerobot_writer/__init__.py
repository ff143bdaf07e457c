"""LeRobot v3.0 datasets, written without LeRobot."""

from torchrl_vla.data.lerobot_writer.convert import write_lerobot
from torchrl_vla.data.lerobot_writer.encoder import VideoEncoding
from torchrl_vla.data.lerobot_writer.writer import LeRobotWriter

__all__ = ["LeRobotWriter", "VideoEncoding", "write_lerobot"]
