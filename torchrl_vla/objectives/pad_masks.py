"""Padding masks of a batch of chunks: keys, reading and checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ACTION_DIM_IS_PAD_KEY,
    ACTION_IS_PAD_KEY,
    MissingKeyError,
    SchemaError,
)


@dataclass
class CloningKeys:
    """Keys of the target, the padding masks and the weights; None = there are none."""

    action: NestedKey = ACTION_CHUNK_KEY
    pad_mask: NestedKey | None = ACTION_IS_PAD_KEY
    dim_pad_mask: NestedKey | None = None
    weight: NestedKey | None = None


# At run time no LossModule: its metaclass would give this class a forward, which
# would hide that of a loss's second base.
if TYPE_CHECKING:
    from torchrl.objectives import LossModule as _LossModule
else:
    _LossModule = object


class OptionalPadMask(_LossModule):
    """Give a loss a ``set_keys(pad_mask=None)`` that declares that nothing is padded.

    Goes first among the bases of a loss.
    """

    _AcceptedKeys = CloningKeys
    tensor_keys: CloningKeys
    default_keys = CloningKeys

    def set_keys(self, **kwargs: NestedKey | None) -> None:
        """Name other keys; ``pad_mask=None`` declares that nothing is padded."""
        super().set_keys(**kwargs)
        if "pad_mask" in kwargs:  # TorchRL reads None as "back to the default"
            self.tensor_keys.pad_mask = kwargs["pad_mask"]

    def count_elements(self, tensordict: TensorDictBase) -> Tensor:
        """Return the number that the mean over a batch divides by, a scalar.

        It is the number of elements that are not padded, each counted by the weight of
        its row. Means of parts of a batch, weighted with it, add up to the mean of the
        whole.
        """
        keys, caller = self.tensor_keys, type(self).__name__
        target = read_target(tensordict, keys.action, caller)
        counts = self._countable(tensordict, target)
        if counts is not None:
            if keys.weight is not None:
                counts = counts * tensordict.get(keys.weight).unsqueeze(-1)
            return counts.sum()
        counts = torch.ones_like(target, dtype=torch.float64)
        if keys.pad_mask is not None:
            counts = counts * ~tensordict.get(keys.pad_mask).unsqueeze(-1)
        if keys.dim_pad_mask is not None:
            counts = counts * ~tensordict.get(keys.dim_pad_mask).unsqueeze(-2)
        if keys.weight is not None:
            counts = counts * tensordict.get(keys.weight)[..., None, None]
        return counts.sum()

    def _countable(self, tensordict: TensorDictBase, target: Tensor) -> Tensor | None:
        """Return 1.0 where a token of sequences counts; None = it is a chunk."""
        return None


def read_target(tensordict: TensorDictBase, key: NestedKey, caller: str) -> Tensor:
    """Return the expert's chunk, or raise naming what the batch holds instead."""
    target = tensordict.get(key, None)
    if target is None:
        raise MissingKeyError(
            f"{caller}: expected the expert's chunk [*B, H, A] at {key!r}, got only "
            f"{sorted(map(str, tensordict.keys(True, True)))}. Append the transform "
            "that builds it (ActionChunkTransform, ActionTokenizerTransform), or name "
            "another key with set_keys(action=...)."
        )
    return target


def read_pad_mask(
    tensordict: TensorDictBase,
    key: NestedKey,
    target: Tensor,
    caller: str,
    own_step: int = 0,
) -> Tensor:
    """Return the mask bool ``[*B, H]``, True = padded, that belongs to a target.

    A mask that is missing, of another dtype or shape, that leaves nothing to learn
    from or that can only be inverted raises: the loss would train on something else.
    Inside ``torch.compile`` the last two checks are left out (they need values).

    Args:
        tensordict: the batch.
        key: where the mask is.
        target: the expert's chunk ``[*B, H, A]``.
        caller: opens the error message.
        own_step: position of the frame's own action; above 0 for chunks that begin in
            the past.

    Raises:
        MissingKeyError: nothing is at ``key``; lists the bool keys that are there.
        SchemaError: the mask is not bool, has another shape, is True everywhere, or
            True at the frame's own action and False at a later one.
    """
    pad = tensordict.get(key, None)
    if pad is None:
        raise MissingKeyError(
            f"{caller}: expected a bool mask [*B, H] at {key!r}, got none. Bool keys "
            f"in the batch: {_bool_keys(tensordict)}. Name the right one with "
            "set_keys(pad_mask=...); set_keys(pad_mask=None) says that nothing is "
            "padded."
        )
    if pad.dtype != torch.bool:
        raise SchemaError(
            f"{caller}: expected dtype bool at {key!r}, got {pad.dtype}. True = padded "
            "(past the episode's end, to be ignored); a mask of valid positions is "
            "the opposite: pass valid == 0."
        )
    if pad.shape != target.shape[:-1]:
        raise SchemaError(
            f"{caller}: expected shape {list(target.shape[:-1])} at {key!r}, one flag "
            f"per action of a chunk {list(target.shape)}, got {list(pad.shape)}."
        )
    if not torch.compiler.is_compiling() and pad.all():
        raise SchemaError(
            f"{caller}: expected at least one valid position at {key!r}, got a batch "
            f"{list(pad.shape)} that is True (padded) everywhere. Nothing is left to "
            "learn from: the polarity may be inverted, or the chunks lie past the end "
            "of their episodes."
        )
    if not torch.compiler.is_compiling():
        inverted = pad[..., own_step] & ~pad[..., own_step:].all(-1)
        if inverted.any():
            raise SchemaError(
                f"{caller}: expected False at position {own_step} of {key!r}, the "
                "frame's own action, wherever a later one is valid, got True (padded) "
                f"in {int(inverted.sum())} of {inverted.numel()} samples, such as "
                f"{pad[inverted][0].tolist()}. A mask of valid positions is the "
                "opposite: pass ~valid."
            )
    return pad


def read_dim_pad_mask(
    tensordict: TensorDictBase, key: NestedKey | None, target: Tensor, caller: str
) -> Tensor | None:
    """Return the mask bool ``[*B, A]`` of dimensions that a sample's robot lacks.

    Args:
        tensordict: the batch.
        key: where the mask is; None = all dimensions count.
        target: the expert's chunk ``[*B, H, A]``.
        caller: opens the error message.

    Raises:
        MissingKeyError: nothing is at ``key``.
        SchemaError: the mask is not bool, has another shape, or is True
            everywhere in a sample; or it is in the batch and ``key`` is None.
    """
    if key is None:
        if tensordict.get(ACTION_DIM_IS_PAD_KEY, None) is not None:
            raise SchemaError(
                f"{caller}: expected a key of padded dimensions, got none and a batch "
                f"with {ACTION_DIM_IS_PAD_KEY!r}. Call set_keys(dim_pad_mask="
                f"{ACTION_DIM_IS_PAD_KEY!r}); or exclude it from the batch to "
                "learn padded dimensions."
            )
        return None
    pad = tensordict.get(key, None)
    if pad is None:
        raise MissingKeyError(
            f"{caller}: expected a bool mask [*B, A] of padded dimensions at {key!r}, "
            f"got none. Bool keys in the batch: {_bool_keys(tensordict)}. "
            "set_keys(dim_pad_mask=None) says that all dimensions count."
        )
    shape = (*target.shape[:-2], target.shape[-1])
    if pad.dtype != torch.bool or pad.shape != shape:
        raise SchemaError(
            f"{caller}: expected bool {list(shape)} at {key!r}, one flag per dimension "
            f"of a chunk {list(target.shape)}, got {pad.dtype} {list(pad.shape)}."
        )
    if not torch.compiler.is_compiling() and pad.all(-1).any():
        raise SchemaError(
            f"{caller}: expected a valid dimension in each sample of {key!r}, got one "
            "that is True (padded) everywhere. The polarity may be inverted."
        )
    return pad


def _bool_keys(tensordict: TensorDictBase) -> list[str]:
    return sorted(
        str(key)
        for key, value in tensordict.items(True, True)
        if isinstance(value, Tensor) and value.dtype == torch.bool
    )
