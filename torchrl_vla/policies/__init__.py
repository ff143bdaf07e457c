"""From images, state and an instruction to a chunk of actions."""

from torchrl_vla.policies.action_boundary import (
    ActionBoundary,
    ActionTranslator,
    EmbodimentActionTranslator,
)
from torchrl_vla.policies.base import (
    ContinuousVLAWrapper,
    TokenVLAWrapper,
    VLAWrapperBase,
)
from torchrl_vla.policies.embodiment_contract import EmbodimentContract
from torchrl_vla.policies.image_encoder import KeypointImageEncoder
from torchrl_vla.policies.lerobot import LeRobotPolicyWrapper, make_lerobot_policy
from torchrl_vla.policies.lerobot_health import (
    LEROBOT_POLICY_TYPES,
    HealthReport,
    check_lerobot_health,
)
from torchrl_vla.policies.lerobot_settings import LeRobotSettings
from torchrl_vla.policies.text_encoder import ByteTextEncoder
from torchrl_vla.policies.tiny_vla import TinyTokenVLA, TinyVLA
from torchrl_vla.policies.token_distribution import TokenDistribution

__all__ = [
    "LEROBOT_POLICY_TYPES",
    "ActionBoundary",
    "ActionTranslator",
    "ByteTextEncoder",
    "ContinuousVLAWrapper",
    "EmbodimentActionTranslator",
    "EmbodimentContract",
    "HealthReport",
    "KeypointImageEncoder",
    "LeRobotPolicyWrapper",
    "LeRobotSettings",
    "TinyTokenVLA",
    "TinyVLA",
    "TokenDistribution",
    "TokenVLAWrapper",
    "VLAWrapperBase",
    "check_lerobot_health",
    "make_lerobot_policy",
]
