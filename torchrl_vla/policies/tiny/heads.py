"""Registry of the tiny policies by the name of their head."""

from __future__ import annotations

from functools import partial
from typing import Protocol

from torchrl_vla.policies.tiny.backbone import BackboneConfig
from torchrl_vla.policies.tiny.tiny_denoising import TinyDiffusionVLA, TinyFlowVLA
from torchrl_vla.policies.tiny.tiny_gaussian import TinyGaussianVLA
from torchrl_vla.policies.tiny.tiny_policy import TinyPolicy
from torchrl_vla.policies.tiny.tiny_sequence import TinySequenceVLA
from torchrl_vla.policies.tiny.tiny_vla import TinyTokenVLA, TinyVLA
from torchrl_vla.schema import InstructionTable, ObservationKeys
from torchrl_vla.tokenizers import ActionTokenizerBase, UniformActionTokenizer

#: Token heads split ``[-1, 1]`` into this many bins.
_NUM_BINS = 21


class MakeTinyPolicy(Protocol):
    """Constructor of a tiny policy with the defaults of its head."""

    def __call__(
        self,
        *,
        action_dim: int,
        chunk_size: int,
        backbone: BackboneConfig,
        keys: ObservationKeys,
        instructions: InstructionTable | None,
    ) -> TinyPolicy:
        """Make an untrained policy."""


def make_token_policy(
    *,
    action_dim: int,
    chunk_size: int,
    backbone: BackboneConfig,
    keys: ObservationKeys = ObservationKeys(),
    instructions: InstructionTable | None,
) -> TinyTokenVLA:
    """Make a token policy whose bins cover ``[-1, 1]``: min_max model space."""
    return TinyTokenVLA(
        action_dim=action_dim,
        chunk_size=chunk_size,
        action_tokenizer=UniformActionTokenizer(_NUM_BINS, low=-1.0, high=1.0),
        backbone=backbone,
        keys=keys,
        instructions=instructions,
    )


def make_sequence_policy(tokenizer: ActionTokenizerBase) -> MakeTinyPolicy:
    """Return a maker of policies that write a tokenizer's tokens one by one."""
    return partial(TinySequenceVLA, action_tokenizer=tokenizer)


#: Makers by the name of the head.
HEADS: dict[str, MakeTinyPolicy] = {
    "regression": TinyVLA,
    "tokens": make_token_policy,
    "gaussian": TinyGaussianVLA,
    "flow": TinyFlowVLA,
    "diffusion": TinyDiffusionVLA,
}
