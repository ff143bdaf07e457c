"""Policies: from images, state and an instruction to a chunk of actions."""

from torchrl_vla.policies.chunk_distribution import ChunkDistribution
from torchrl_vla.policies.critics.chunk_critic import (
    ChunkCriticConfig,
    TinyChunkCritic,
)
from torchrl_vla.policies.critics.observation_encoder import ObservationEncoder
from torchrl_vla.policies.denoising.denoising_distribution import DenoisingDistribution
from torchrl_vla.policies.denoising.denoising_policy import DenoisingVLAWrapper
from torchrl_vla.policies.denoising.diffusion_policy import (
    DiffusionConfig,
    DiffusionVLAWrapper,
)
from torchrl_vla.policies.denoising.flow_matching_policy import FlowVLAWrapper
from torchrl_vla.policies.denoising.flow_noise import (
    FlowNoise,
    FlowSDENoise,
    LearnedNoise,
)
from torchrl_vla.policies.denoising.guidance import guided_velocity
from torchrl_vla.policies.encoders.efficientnet_lite import EfficientNetLiteEncoder
from torchrl_vla.policies.encoders.frozen_text import FrozenTextEncoder, TextFeature
from torchrl_vla.policies.encoders.image_features import (
    ImageEncoder,
    ImageFeatures,
    as_features,
    image_features_key,
)
from torchrl_vla.policies.encoders.image_input import ImageInput
from torchrl_vla.policies.encoders.named_encoders import (
    make_image_encoder,
    make_text_encoder,
)
from torchrl_vla.policies.encoders.named_text_encoders import prompted_smollm2
from torchrl_vla.policies.encoders.text_features import TextEncoder, TokenStates
from torchrl_vla.policies.encoders.timm_image import TimmImageEncoder
from torchrl_vla.policies.encoders.transformers_image import TransformersImageEncoder
from torchrl_vla.policies.encoders.transformers_text import TransformersTextEncoder
from torchrl_vla.policies.gaussian.gaussian_around import GaussianAround
from torchrl_vla.policies.gaussian.gaussian_distribution import GaussianDistribution
from torchrl_vla.policies.gaussian.gaussian_policy import GaussianVLAWrapper
from torchrl_vla.policies.lerobot import (
    LeRobotFlowDistribution,
    LeRobotFlowPolicy,
    LeRobotPipeline,
    LeRobotPolicyWrapper,
    make_lerobot_policy,
)
from torchrl_vla.policies.lerobot.lerobot_folder import (
    is_lerobot_folder,
    load_lerobot_policy,
)
from torchrl_vla.policies.lerobot.load.health import (
    LEROBOT_POLICY_TYPES,
    HealthReport,
    check_lerobot_health,
)
from torchrl_vla.policies.lerobot.load.lerobot_settings import LeRobotSettings
from torchrl_vla.policies.module_description import PolicyFactory
from torchrl_vla.policies.module_policy import ModulePolicy
from torchrl_vla.policies.policy_folder import check_writable
from torchrl_vla.policies.protocol import (
    as_policy,
    cloning_loss_name,
    environment_transforms,
    load_policy,
    make_critic,
    make_critic_for,
    make_from_factory,
    observation_encoder,
    save_policy,
    target_transform,
    to_stochastic,
)
from torchrl_vla.policies.steering.best_of_n import BestOfN
from torchrl_vla.policies.steering.bounded_head import HeadConfig
from torchrl_vla.policies.steering.noise_space_policy import NoiseSpacePolicy
from torchrl_vla.policies.steering.one_step_policy import OneStepPolicy
from torchrl_vla.policies.steering.residual_policy import ResidualPolicy
from torchrl_vla.policies.steering.squashed_chunk import SquashedChunkDistribution
from torchrl_vla.policies.steering.steered_policies import (
    make_best_of_n,
    make_chunk_critic,
    make_noise_space_policy,
    make_residual_policy,
)
from torchrl_vla.policies.steering.steering_policy import SteeringPolicy
from torchrl_vla.policies.stochastic_policy import OutputKeys, StochasticVLAWrapper
from torchrl_vla.policies.tiny.backbone import BackboneConfig
from torchrl_vla.policies.tiny.heads import HEADS
from torchrl_vla.policies.tiny.image_encoder import KeypointImageEncoder
from torchrl_vla.policies.tiny.text_encoder import ByteTextEncoder
from torchrl_vla.policies.tiny.tiny_critic import TinyCritic
from torchrl_vla.policies.tiny.tiny_denoising import TinyDiffusionVLA, TinyFlowVLA
from torchrl_vla.policies.tiny.tiny_gaussian import StdConfig, TinyGaussianVLA
from torchrl_vla.policies.tiny.tiny_sequence import TinySequenceVLA
from torchrl_vla.policies.tiny.tiny_vla import TinyTokenVLA, TinyVLA
from torchrl_vla.policies.tokens.sequence_distribution import (
    TokenDecoder,
    TokenSequenceDistribution,
)
from torchrl_vla.policies.tokens.sequence_policy import TokenSequenceVLAWrapper
from torchrl_vla.policies.tokens.token_distribution import TokenDistribution
from torchrl_vla.policies.tokens.token_policy import TokenVLAWrapper
from torchrl_vla.policies.tokens.token_sampling import TokenSampling
from torchrl_vla.policies.vla_policy import ContinuousVLAWrapper, VLAWrapperBase
from torchrl_vla.policies.vlm.action_expert import ExpertConfig
from torchrl_vla.policies.vlm.adaptation import LoRAConfig
from torchrl_vla.policies.vlm.adapter_folder import load_adapter, save_adapter
from torchrl_vla.policies.vlm.parallel_head import VLMChunkPolicy, VLMGaussianPolicy
from torchrl_vla.policies.vlm.prefix import Prefix
from torchrl_vla.policies.vlm.token_head import VLMTokenPolicy
from torchrl_vla.policies.vlm.trunk import VLATrunk
from torchrl_vla.policies.vlm.trunk_config import TrunkConfig
from torchrl_vla.policies.vlm.trunk_critic import VLMCritic
from torchrl_vla.policies.vlm.trunk_loading import load_trunk
from torchrl_vla.policies.vlm.vlm_flow_policy import FlowTrainingConfig, VLMFlowPolicy
from torchrl_vla.policies.vlm.vlm_heads import VLM_HEADS, VLMHeadConfig
from torchrl_vla.policies.vlm.vlm_policy import VLMPolicy

__all__ = [
    "HEADS",
    "LEROBOT_POLICY_TYPES",
    "VLM_HEADS",
    "BackboneConfig",
    "BestOfN",
    "ByteTextEncoder",
    "ChunkCriticConfig",
    "ChunkDistribution",
    "ContinuousVLAWrapper",
    "DenoisingDistribution",
    "DenoisingVLAWrapper",
    "DiffusionConfig",
    "DiffusionVLAWrapper",
    "EfficientNetLiteEncoder",
    "ExpertConfig",
    "FlowNoise",
    "FlowSDENoise",
    "FlowTrainingConfig",
    "FlowVLAWrapper",
    "FrozenTextEncoder",
    "GaussianAround",
    "GaussianDistribution",
    "GaussianVLAWrapper",
    "HeadConfig",
    "HealthReport",
    "ImageEncoder",
    "ImageFeatures",
    "ImageInput",
    "KeypointImageEncoder",
    "LeRobotFlowDistribution",
    "LeRobotFlowPolicy",
    "LeRobotPipeline",
    "LeRobotPolicyWrapper",
    "LeRobotSettings",
    "LearnedNoise",
    "LoRAConfig",
    "ModulePolicy",
    "NoiseSpacePolicy",
    "ObservationEncoder",
    "OneStepPolicy",
    "OutputKeys",
    "PolicyFactory",
    "Prefix",
    "ResidualPolicy",
    "SquashedChunkDistribution",
    "StdConfig",
    "SteeringPolicy",
    "StochasticVLAWrapper",
    "TextEncoder",
    "TextFeature",
    "TimmImageEncoder",
    "TinyChunkCritic",
    "TinyCritic",
    "TinyDiffusionVLA",
    "TinyFlowVLA",
    "TinyGaussianVLA",
    "TinySequenceVLA",
    "TinyTokenVLA",
    "TinyVLA",
    "TokenDecoder",
    "TokenDistribution",
    "TokenSampling",
    "TokenSequenceDistribution",
    "TokenSequenceVLAWrapper",
    "TokenStates",
    "TokenVLAWrapper",
    "TransformersImageEncoder",
    "TransformersTextEncoder",
    "TrunkConfig",
    "VLATrunk",
    "VLAWrapperBase",
    "VLMChunkPolicy",
    "VLMCritic",
    "VLMFlowPolicy",
    "VLMGaussianPolicy",
    "VLMHeadConfig",
    "VLMPolicy",
    "VLMTokenPolicy",
    "as_features",
    "as_policy",
    "check_lerobot_health",
    "check_writable",
    "cloning_loss_name",
    "environment_transforms",
    "guided_velocity",
    "image_features_key",
    "is_lerobot_folder",
    "load_adapter",
    "load_lerobot_policy",
    "load_policy",
    "load_trunk",
    "make_best_of_n",
    "make_chunk_critic",
    "make_critic",
    "make_critic_for",
    "make_from_factory",
    "make_image_encoder",
    "make_lerobot_policy",
    "make_noise_space_policy",
    "make_residual_policy",
    "make_text_encoder",
    "observation_encoder",
    "prompted_smollm2",
    "save_adapter",
    "save_policy",
    "target_transform",
    "to_stochastic",
]
