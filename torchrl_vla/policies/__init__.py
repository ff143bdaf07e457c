"""From images, state and an instruction to a chunk of actions."""

from torchrl_vla.policies.base import (
    ContinuousVLAWrapper,
    TokenVLAWrapper,
    VLAWrapperBase,
)
from torchrl_vla.policies.tiny_vla import TinyTokenVLA, TinyVLA

__all__ = [
    "ContinuousVLAWrapper",
    "TinyTokenVLA",
    "TinyVLA",
    "TokenVLAWrapper",
    "VLAWrapperBase",
]
