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
from torchrl_vla.objectives.token_bc import TokenBCLoss

__all__ = [
    "CLONING_LOSSES",
    "AdvantageWeights",
    "BCLoss",
    "ChunkPPOLoss",
    "CloningOptions",
    "DecisionGAE",
    "DiffusionBCLoss",
    "EpisodeOutcomes",
    "FlowMatchingLoss",
    "GRPOAdvantage",
    "Granularity",
    "GroupAdvantage",
    "LeRobotLoss",
    "RLOOAdvantage",
    "TokenBCLoss",
    "add_reference_log_probs",
    "cloning_loss",
    "recompute_log_probs",
]
