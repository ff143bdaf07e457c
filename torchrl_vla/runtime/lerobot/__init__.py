"""Robots and teleoperators of LeRobot's drivers."""

from torchrl_vla.runtime.lerobot.driver_features import describe_driver
from torchrl_vla.runtime.lerobot.lerobot_robot import LeRobotRobot
from torchrl_vla.runtime.lerobot.lerobot_teleoperator import LeRobotTeleoperator

__all__ = ["LeRobotRobot", "LeRobotTeleoperator", "describe_driver"]
