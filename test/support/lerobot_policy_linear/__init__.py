"""A LeRobot plugin with a policy type of its own, as a third party writes it."""

from lerobot_policy_linear.configuration_linear import LinearConfig

__all__ = ["LinearConfig"]
