"""Spec of an environment's action in a policy's convention."""

from __future__ import annotations

import torch
from tensordict import NestedKey, unravel_key
from torchrl.data import Bounded, Composite, TensorSpec, Unbounded
from torchrl.data.tensor_specs import ContinuousBox

from torchrl_vla.schema import RobotDatasetMetadata, SchemaError, SpaceError
from torchrl_vla.transforms.conversions.chunk_resampling import resampled_size
from torchrl_vla.transforms.conversions.conversion_keys import ConversionKeys
from torchrl_vla.transforms.conversions.conversion_plan import ConversionPlan


def acting_keys(
    action_spec: Composite, keys: ConversionKeys, *, needs_chunks: bool
) -> list[NestedKey]:
    """Return the keys of an environment's action that a conversion acts on.

    Args:
        action_spec: of the environment.
        keys: of the conversion.

    Keyword Args:
        needs_chunks: True = single actions are refused.

    Raises:
        SpaceError: there is no such action, or single ones where chunks are needed.
    """
    known = list(action_spec.keys(True, True))
    acting = [
        key for key in map(unravel_key, (keys.action, keys.chunk)) if key in known
    ]
    if not acting:
        # No KeyError: EnvBase.action_spec would replace it by its own.
        raise SpaceError(
            f"RobotConversion: expected {keys.action!r} or {keys.chunk!r} in the "
            f"environment's action spec, got {known}. Name its key with "
            "keys=ConversionKeys(action=...)."
        )
    if needs_chunks and acting != [unravel_key(keys.chunk)]:
        raise SpaceError(
            "RobotConversion: expected an environment that takes whole chunks at "
            f"{keys.chunk!r}, since the conversion changes relative actions or the "
            f"control rate, got {acting}. Put it after MultiAction, or give the "
            "executor ConvertedPolicy(policy, conversion) and leave the environment "
            "as it is."
        )
    return acting


def converted_action_leaf(
    leaf: TensorSpec, plan: ConversionPlan, metadata: RobotDatasetMetadata
) -> TensorSpec:
    """Return the spec of the target's actions ``[*B, A]`` or chunks ``[*B, H, A]``.

    Args:
        leaf: of the source's.
        plan: of the conversion.
        metadata: of the converted data, which hold the bounds.

    Raises:
        SchemaError: the action is not continuous.
        SpaceError: no number of actions at the target's rate fills the chunk.
    """
    if not isinstance(leaf.space, ContinuousBox):
        raise SchemaError(
            "RobotConversion: expected a continuous action spec, got "
            f"{type(leaf).__name__}. Only continuous actions can be converted."
        )
    shape = list(leaf.shape)
    if plan.actions is not None:
        shape[-1] = plan.actions.target_dim
    ratio = plan.rate_ratio
    if ratio != 1.0 and shape[-2] != -1:
        size = resampled_size(shape[-2], ratio)
        filled = resampled_size(size, 1 / ratio)
        if filled != shape[-2]:
            raise SpaceError(
                f"RobotConversion: expected chunks that fill {shape[-2]} actions of "
                f"the environment, got {ratio:g} times its control rate, at which "
                f"{size} actions fill {filled}. Make MultiAction without a chunk_size, "
                f"or with {filled}."
            )
        shape[-2] = size
    # A dynamic size (-1) cannot be constructed, only expanded to.
    sizes = [max(size, 1) for size in shape]
    spec: TensorSpec = Unbounded(sizes, device=leaf.device, dtype=leaf.dtype)
    low, high = metadata.action_low, metadata.action_high
    if isinstance(leaf, Bounded) and low is not None and high is not None:
        ends = (
            torch.tensor(end, dtype=leaf.dtype).expand(sizes) for end in (low, high)
        )
        spec = Bounded(
            *(end.clone() for end in ends),
            shape=sizes,
            device=leaf.device,
            dtype=leaf.dtype,
        )
    return spec if -1 not in shape else spec.expand(shape)
