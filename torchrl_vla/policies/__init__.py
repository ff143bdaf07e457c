"""From images, state and an instruction to a chunk of actions."""

from torchrl_vla.policies.action_boundary import (
    ActionBoundary,
    ActionTranslator,
    EmbodimentActionTranslator,
)
from torchrl_vla.policies.base import ContinuousVLAWrapper, VLAWrapperBase
from torchrl_vla.policies.chunk_distribution import ChunkDistribution
from torchrl_vla.policies.critic import TinyCritic
from torchrl_vla.policies.denoising import DenoisingVLAWrapper
from torchrl_vla.policies.denoising_distribution import DenoisingDistribution
from torchrl_vla.policies.diffusion import DiffusionVLAWrapper
from torchrl_vla.policies.embodiment_contract import EmbodimentContract
from torchrl_vla.policies.flow import FlowVLAWrapper
from torchrl_vla.policies.flow_noise import FlowNoise, FlowSDENoise, LearnedNoise
from torchrl_vla.policies.gaussian import GaussianVLAWrapper
from torchrl_vla.policies.gaussian_distribution import GaussianDistribution
from torchrl_vla.policies.guidance import guided_velocity
from torchrl_vla.policies.image_encoder import KeypointImageEncoder
from torchrl_vla.policies.lerobot import (
    LeRobotFlowDistribution,
    LeRobotFlowPolicy,
    LeRobotPolicyWrapper,
    make_lerobot_policy,
)
from torchrl_vla.policies.lerobot_health import (
    LEROBOT_POLICY_TYPES,
    HealthReport,
    check_lerobot_health,
)
from torchrl_vla.policies.lerobot_settings import LeRobotSettings
from torchrl_vla.policies.stochastic import StochasticVLAWrapper
from torchrl_vla.policies.text_encoder import ByteTextEncoder
from torchrl_vla.policies.tiny_denoising import TinyDiffusionVLA, TinyFlowVLA
from torchrl_vla.policies.tiny_gaussian import TinyGaussianVLA
from torchrl_vla.policies.tiny_vla import TinyTokenVLA, TinyVLA
from torchrl_vla.policies.token import TokenVLAWrapper
from torchrl_vla.policies.token_distribution import TokenDistribution
from torchrl_vla.policies.token_sampling import TokenSampling

__all__ = [
    "LEROBOT_POLICY_TYPES",
    "ActionBoundary",
    "ActionTranslator",
    "ByteTextEncoder",
    "ChunkDistribution",
    "ContinuousVLAWrapper",
    "DenoisingDistribution",
    "DenoisingVLAWrapper",
    "DiffusionVLAWrapper",
    "EmbodimentActionTranslator",
    "EmbodimentContract",
    "FlowNoise",
    "FlowSDENoise",
    "FlowVLAWrapper",
    "GaussianDistribution",
    "GaussianVLAWrapper",
    "HealthReport",
    "KeypointImageEncoder",
    "LeRobotFlowDistribution",
    "LeRobotFlowPolicy",
    "LeRobotPolicyWrapper",
    "LeRobotSettings",
    "LearnedNoise",
    "StochasticVLAWrapper",
    "TinyCritic",
    "TinyDiffusionVLA",
    "TinyFlowVLA",
    "TinyGaussianVLA",
    "TinyTokenVLA",
    "TinyVLA",
    "TokenDistribution",
    "TokenSampling",
    "TokenVLAWrapper",
    "VLAWrapperBase",
    "check_lerobot_health",
    "guided_velocity",
    "make_lerobot_policy",
]
