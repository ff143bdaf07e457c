"""Losses of training, and the advantages that some of them weigh with."""

from torchrl_vla.objectives.advantage_weights import AdvantageWeights
from torchrl_vla.objectives.bc import BCLoss
from torchrl_vla.objectives.chunk_ppo import ChunkPPOLoss, Granularity
from torchrl_vla.objectives.cloning_losses import (
    CLONING_LOSSES,
    CloningOptions,
    cloning_loss,
)
from torchrl_vla.objectives.decision_gae import DecisionGAE
from torchrl_vla.objectives.diffusion_bc import DiffusionBCLoss
from torchrl_vla.objectives.episode_outcomes import EpisodeOutcomes
from torchrl_vla.objectives.flow_matching import FlowMatchingLoss
from torchrl_vla.objectives.group_advantage import (
    GroupAdvantage,
    GRPOAdvantage,
    RLOOAdvantage,
)
from torchrl_vla.objectives.lerobot_loss import LeRobotLoss
from torchrl_vla.objectives.log_prob_recomputation import (
    add_reference_log_probs,
    recompute_log_probs,
)
from torchrl_vla.objectives.off_policy.chunk_calql import ChunkCalQLLoss
from torchrl_vla.objectives.off_policy.chunk_iql import ChunkIQLLoss
from torchrl_vla.objectives.off_policy.chunk_q_loss import (
    BackupConfig,
    ChunkCritic,
    ChunkQLoss,
)
from torchrl_vla.objectives.off_policy.chunk_sac import ChunkSACLoss, EntropyConfig
from torchrl_vla.objectives.off_policy.decision_targets import (
    DecisionKeys,
    decision_targets,
)
from torchrl_vla.objectives.off_policy.q_chunking import QCFQLLoss, QChunkingLoss
from torchrl_vla.objectives.token_bc import TokenBCLoss

__all__ = [
    "CLONING_LOSSES",
    "AdvantageWeights",
    "BCLoss",
    "BackupConfig",
    "ChunkCalQLLoss",
    "ChunkCritic",
    "ChunkIQLLoss",
    "ChunkPPOLoss",
    "ChunkQLoss",
    "ChunkSACLoss",
    "CloningOptions",
    "DecisionGAE",
    "DecisionKeys",
    "DiffusionBCLoss",
    "EntropyConfig",
    "EpisodeOutcomes",
    "FlowMatchingLoss",
    "GRPOAdvantage",
    "Granularity",
    "GroupAdvantage",
    "LeRobotLoss",
    "QCFQLLoss",
    "QChunkingLoss",
    "RLOOAdvantage",
    "TokenBCLoss",
    "add_reference_log_probs",
    "cloning_loss",
    "decision_targets",
    "recompute_log_probs",
]
