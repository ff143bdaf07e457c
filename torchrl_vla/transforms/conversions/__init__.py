"""Conversions between the conventions of robots, and of images."""

from torchrl_vla.transforms.conversions.conversion_keys import ConversionKeys
from torchrl_vla.transforms.conversions.conversion_plan import ConversionPlan
from torchrl_vla.transforms.conversions.previous_action import PreviousAction
from torchrl_vla.transforms.conversions.robot_conversion import RobotConversion

__all__ = ["ConversionKeys", "ConversionPlan", "PreviousAction", "RobotConversion"]
