"""The border between robot space and model space."""

from torchrl_vla.transforms.action_chunk import (
    ActionChunkKeys,
    ActionChunkTransform,
)
from torchrl_vla.transforms.action_scaling import ActionScaling
from torchrl_vla.transforms.action_tokenization import ActionTokenizerTransform
from torchrl_vla.transforms.affine_scaling import AffineScaling
from torchrl_vla.transforms.conversions.conversion_keys import ConversionKeys
from torchrl_vla.transforms.conversions.openvla_images import OpenVLAImages
from torchrl_vla.transforms.conversions.previous_action import PreviousAction
from torchrl_vla.transforms.conversions.resize_with_pad import ResizeWithPad
from torchrl_vla.transforms.conversions.robot_conversion import RobotConversion
from torchrl_vla.transforms.conversions.rotations import convert_rotation
from torchrl_vla.transforms.gather.episode_index import EpisodeIndex
from torchrl_vla.transforms.instruction_wording import InstructionWording
from torchrl_vla.transforms.observation_history import ObservationHistory
from torchrl_vla.transforms.state_scaling import StateScaling
from torchrl_vla.transforms.success_reward import SuccessReward
from torchrl_vla.transforms.torchrl_names import FromTorchRLNames, ToTorchRLNames

__all__ = [
    "ActionChunkKeys",
    "ActionChunkTransform",
    "ActionScaling",
    "ActionTokenizerTransform",
    "AffineScaling",
    "ConversionKeys",
    "EpisodeIndex",
    "FromTorchRLNames",
    "InstructionWording",
    "ObservationHistory",
    "OpenVLAImages",
    "PreviousAction",
    "ResizeWithPad",
    "RobotConversion",
    "StateScaling",
    "SuccessReward",
    "ToTorchRLNames",
    "convert_rotation",
]
