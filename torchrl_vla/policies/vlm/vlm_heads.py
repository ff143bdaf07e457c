"""Registry of the heads of a vision-language trunk, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torchrl_vla.policies.vlm.action_expert import ExpertConfig
from torchrl_vla.policies.vlm.parallel_head import VLMChunkPolicy
from torchrl_vla.policies.vlm.token_head import VLMTokenPolicy
from torchrl_vla.policies.vlm.trunk import VLATrunk
from torchrl_vla.policies.vlm.vlm_flow_policy import FlowTrainingConfig, VLMFlowPolicy
from torchrl_vla.policies.vlm.vlm_policy import VLMPolicy
from torchrl_vla.tokenizers import ActionTokenizerBase, UniformActionTokenizer

_NUM_BINS = 256


@dataclass(frozen=True)
class VLMHeadConfig:
    """Sizes of a head; each head reads its own.

    Args:
        action_dim: ``A``.
        chunk_size: ``H``.
        num_steps: ``K`` of a flow.
        expert: of a flow.
        training: of a flow.
        tokenizer: of a token head; None = 256 bins over ``[-1, 1]``: ``min_max`` model
            space.
    """

    action_dim: int
    chunk_size: int
    num_steps: int = 10
    expert: ExpertConfig = ExpertConfig()
    training: FlowTrainingConfig = FlowTrainingConfig()
    tokenizer: ActionTokenizerBase | None = None


def _flow(trunk: VLATrunk, config: VLMHeadConfig) -> VLMPolicy:
    return VLMFlowPolicy(
        trunk,
        action_dim=config.action_dim,
        chunk_size=config.chunk_size,
        num_steps=config.num_steps,
        expert=config.expert,
        training=config.training,
    )


def _parallel(trunk: VLATrunk, config: VLMHeadConfig) -> VLMPolicy:
    sizes = {"action_dim": config.action_dim, "chunk_size": config.chunk_size}
    return VLMChunkPolicy(trunk, **sizes)


def _tokens(trunk: VLATrunk, config: VLMHeadConfig) -> VLMPolicy:
    bins = UniformActionTokenizer(_NUM_BINS, low=-1.0, high=1.0)
    return VLMTokenPolicy(
        trunk,
        action_dim=config.action_dim,
        chunk_size=config.chunk_size,
        action_tokenizer=config.tokenizer or bins,
    )


#: Makers of an untrained head on a trunk, by the name of the head.
VLM_HEADS: dict[str, Callable[[VLATrunk, VLMHeadConfig], VLMPolicy]] = {
    "flow": _flow,
    "parallel": _parallel,
    "tokens": _tokens,
}
