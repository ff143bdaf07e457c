"""Robot space and model space: one record makes the transforms of both directions."""

from torchrl_vla.spaces.converted_policy import ConvertedPolicy
from torchrl_vla.spaces.model_space import ModelSpace, chunk_targets
from torchrl_vla.spaces.robot_space_policy import RobotSpacePolicy

__all__ = ["ConvertedPolicy", "ModelSpace", "RobotSpacePolicy", "chunk_targets"]
