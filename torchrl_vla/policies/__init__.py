"""From images, state and an instruction to a chunk of actions."""

from torchrl_vla.policies.chunk_distribution import ChunkDistribution
from torchrl_vla.policies.denoising.denoising_distribution import DenoisingDistribution
from torchrl_vla.policies.denoising.denoising_policy import DenoisingVLAWrapper
from torchrl_vla.policies.denoising.diffusion_policy import DiffusionVLAWrapper
from torchrl_vla.policies.denoising.flow_noise import (
    FlowNoise,
    FlowSDENoise,
    LearnedNoise,
)
from torchrl_vla.policies.denoising.flow_policy import FlowVLAWrapper
from torchrl_vla.policies.denoising.guidance import guided_velocity
from torchrl_vla.policies.gaussian.gaussian_distribution import GaussianDistribution
from torchrl_vla.policies.gaussian.gaussian_policy import GaussianVLAWrapper
from torchrl_vla.policies.lerobot import (
    LeRobotFlowDistribution,
    LeRobotFlowPolicy,
    LeRobotPipeline,
    LeRobotPolicyWrapper,
    load_lerobot_policy,
    make_lerobot_policy,
)
from torchrl_vla.policies.lerobot.load.health import (
    LEROBOT_POLICY_TYPES,
    HealthReport,
    check_lerobot_health,
)
from torchrl_vla.policies.lerobot.load.lerobot_settings import LeRobotSettings
from torchrl_vla.policies.stochastic_policy import StochasticVLAWrapper
from torchrl_vla.policies.tiny.image_encoder import KeypointImageEncoder
from torchrl_vla.policies.tiny.text_encoder import ByteTextEncoder
from torchrl_vla.policies.tiny.tiny_critic import TinyCritic
from torchrl_vla.policies.tiny.tiny_denoising import TinyDiffusionVLA, TinyFlowVLA
from torchrl_vla.policies.tiny.tiny_gaussian import TinyGaussianVLA
from torchrl_vla.policies.tiny.tiny_vla import TinyTokenVLA, TinyVLA
from torchrl_vla.policies.tokens.token_distribution import TokenDistribution
from torchrl_vla.policies.tokens.token_policy import TokenVLAWrapper
from torchrl_vla.policies.tokens.token_sampling import TokenSampling
from torchrl_vla.policies.vla_policy import ContinuousVLAWrapper, VLAWrapperBase

__all__ = [
    "LEROBOT_POLICY_TYPES",
    "ActionTranslator",
    "ByteTextEncoder",
    "ChunkDistribution",
    "ContinuousVLAWrapper",
    "DenoisingDistribution",
    "DenoisingVLAWrapper",
    "DiffusionVLAWrapper",
    "FlowNoise",
    "FlowSDENoise",
    "FlowVLAWrapper",
    "GaussianDistribution",
    "GaussianVLAWrapper",
    "HealthReport",
    "KeypointImageEncoder",
    "LeRobotFlowDistribution",
    "LeRobotFlowPolicy",
    "LeRobotPipeline",
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
    "load_lerobot_policy",
    "make_lerobot_policy",
]
