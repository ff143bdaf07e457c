"""Keys and values of a language model's layers, beside its forward pass."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchrl_vla._internal.extras import import_extra
from torchrl_vla.policies.vlm.prefix import LayerCache


def make_cache(past: Sequence[LayerCache]) -> Any:
    """Return a cache of ``transformers`` that begins with ``past``.

    Unlike theirs it can be filled twice with the same tokens, as gradient checkpointing
    does; ``layers_of`` reads what was written last.

    Args:
        past: keys and values ``[N, G, L, D]`` of each layer; empty = of no tokens.
    """
    return _cache_class()(past)


def layers_of(cache: Any) -> tuple[LayerCache, ...]:
    """Return keys and values of all tokens, layer by layer."""
    return tuple(cache.made[index] for index in sorted(cache.made))


@functools.cache
def _cache_class() -> Any:
    base: Any = import_extra("transformers", "vlm", "TransformersVLA").DynamicCache

    class TrunkCache(base):
        def __init__(self, past: Sequence[LayerCache]) -> None:
            super().__init__()
            self.past = past
            self.made: dict[int, LayerCache] = {}

        def update(
            self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any
        ) -> LayerCache:
            """Return past and new keys and values, and keep them."""
            if self.past:
                before = self.past[layer_idx]
                keys = torch.cat([before[0].to(keys.dtype), keys], 2)
                values = torch.cat([before[1].to(values.dtype), values], 2)
            self.made[layer_idx] = (keys, values)
            return keys, values

        def get_seq_length(self, layer_idx: int = 0) -> int:
            """Return the number of past tokens."""
            return self.past[layer_idx][0].shape[2] if self.past else 0

    return TrunkCache
