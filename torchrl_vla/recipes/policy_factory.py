"""Factory of tiny policies by the name of their head, with their spaces and losses."""

from __future__ import annotations

from typing import get_args

import torch
from torch import nn
from torchrl.objectives import LossModule

from torchrl_vla._internal.option_names import Head, VLMHead
from torchrl_vla.data.demonstrations import check_demonstrations
from torchrl_vla.objectives import CloningOptions, cloning_loss
from torchrl_vla.policies import (
    HEADS,
    BackboneConfig,
    ImageEncoder,
    TextEncoder,
    VLAWrapperBase,
    as_policy,
    to_stochastic,
)
from torchrl_vla.policies.tiny.heads import make_sequence_policy
from torchrl_vla.recipes.dataset_opening import Demonstrations, image_sizes_of
from torchrl_vla.schema import STATE_KEY, ObservationKeys, RobotDatasetMetadata
from torchrl_vla.spaces import ModelSpace
from torchrl_vla.tokenizers import ActionTokenizerBase

__all__ = ["Head", "make_cloning_loss", "make_policy", "make_space", "to_stochastic"]


def make_policy(
    dataset: Demonstrations,
    *,
    chunk_size: int,
    head: Head = "regression",
    hidden: int = 256,
    depth: int = 2,
    text_encoder: TextEncoder | None = None,
    image_encoder: ImageEncoder | None = None,
    tokenizer: ActionTokenizerBase | None = None,
) -> VLAWrapperBase:
    """Make an untrained tiny policy that fits a dataset.

    Its image sizes are the dataset's; images of other sizes are refused.

    Args:
        dataset: gives the sizes, the cameras and the instructions; without a state, or
            without images, the policy reads none.
        chunk_size: ``H``.
        head: what the policy emits.
        hidden: width of the trunk.
        depth: residual blocks of the trunk.
        text_encoder: of the instructions; None = bytes, trained from scratch.
        image_encoder: of all cameras; None = convolutions, trained from scratch.
        tokenizer: of the head ``tokens``, which then writes them one after the other,
            such as :func:`fit_tokenizer` makes it; None = bins that are independent of
            each other.

    Raises:
        ValueError: there is no such head, or it takes no tokenizer.
        SchemaError: the image encoder takes images of another size.
        ArgumentTypeError: the dataset is of another kind, such as a path.
    """
    if head not in get_args(Head):
        raise ValueError(
            f"make_policy: expected a head of {get_args(Head)}, got {head!r}."
        )
    check_demonstrations("make_policy", dataset)
    has_state = STATE_KEY in dataset.frames.keys(True)
    sizes = image_sizes_of(dataset)
    cameras = None if None in sizes else tuple(name for name in sizes if name)
    backbone = BackboneConfig(
        state_dim=dataset.metadata.state_dim if has_state else None,
        cameras=cameras,
        hidden=hidden,
        depth=depth,
        image_sizes=tuple(sizes.values()),
        text_encoder=text_encoder,
        image_encoder=image_encoder,
    )
    if image_encoder is not None:
        for size in sizes.values():  # refused now, not in the first step
            image_encoder.image_input.prepare("make_policy", torch.zeros(1, *size))
    make = HEADS[head]
    if tokenizer is not None:
        if head != "tokens":
            raise ValueError(
                f"make_policy: expected tokenizer=None for the head {head!r}, got a "
                f"{type(tokenizer).__name__}. Pass head='tokens'."
            )
        make = make_sequence_policy(tokenizer)
    return make(
        action_dim=dataset.metadata.make_action_spec().shape[-1],
        chunk_size=chunk_size,
        backbone=backbone,
        keys=ObservationKeys() if has_state else ObservationKeys(state=None),
        instructions=dataset.instructions,
    )


def make_space(
    metadata: RobotDatasetMetadata, head: Head | VLMHead = "regression"
) -> ModelSpace:
    """Return the model space that a head is trained in.

    Tokens need bounds, so their space is ``min_max``; the others' is ``mean_std``.
    """
    return ModelSpace(metadata, "min_max" if head == "tokens" else "mean_std")


def make_cloning_loss(
    policy: nn.Module, options: CloningOptions = CloningOptions()
) -> LossModule:
    """Return the loss that clones demonstrations into a policy: the one it names.

    Args:
        policy: ours, LeRobot's or the user's module.
        options: of the losses that have some.

    Raises:
        SchemaError: the policy names a loss that does not exist.
    """
    policy = as_policy(policy)
    return cloning_loss(policy, policy.cloning_loss, options)
