"""Simulated SO-101 arm, and the script that solves its task."""

from torchrl_vla.runtime.so101.hardware_effects import HardwareEffects
from torchrl_vla.runtime.so101.scripted_teleoperator import SO101Teleoperator
from torchrl_vla.runtime.so101.so101_robot import SO101Robot

__all__ = ["HardwareEffects", "SO101Robot", "SO101Teleoperator"]
