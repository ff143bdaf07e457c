"""Several processes that train one policy: ranks, gradients, shards, states.

``Ranks`` is what the processes of a group tell one another, ``shard`` splits a policy's
weights among them, and ``share_gradients`` gives each the gradient of the global batch.
Alone, without a group, all of them change nothing.
"""

from torchrl_vla.distributed.batch_share import ShareSampler
from torchrl_vla.distributed.gradient_sharing import (
    GradientSharing,
    TotalLoss,
    clip_gradients,
    share_gradients,
)
from torchrl_vla.distributed.ranks import Ranks, joined_ranks, rank_seed
from torchrl_vla.distributed.sharding import (
    check_shards,
    copy_full_weights,
    is_sharded,
    shard,
)

__all__ = [
    "GradientSharing",
    "Ranks",
    "ShareSampler",
    "TotalLoss",
    "check_shards",
    "clip_gradients",
    "copy_full_weights",
    "is_sharded",
    "joined_ranks",
    "rank_seed",
    "shard",
    "share_gradients",
]
