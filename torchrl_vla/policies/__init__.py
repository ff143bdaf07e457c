"""From images, state and an instruction to a chunk of actions."""

from torchrl_vla.policies.base import (
    ContinuousVLAWrapper,
    TokenVLAWrapper,
    VLAWrapperBase,
)
from torchrl_vla.policies.image_encoder import KeypointImageEncoder
from torchrl_vla.policies.lerobot import LeRobotPolicyWrapper
from torchrl_vla.policies.text_encoder import ByteTextEncoder
from torchrl_vla.policies.tiny_vla import TinyTokenVLA, TinyVLA
from torchrl_vla.policies.token_distribution import TokenDistribution

__all__ = [
    "ByteTextEncoder",
    "ContinuousVLAWrapper",
    "KeypointImageEncoder",
    "LeRobotPolicyWrapper",
    "TinyTokenVLA",
    "TinyVLA",
    "TokenDistribution",
    "TokenVLAWrapper",
    "VLAWrapperBase",
]
